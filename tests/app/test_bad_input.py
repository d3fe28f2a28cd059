"""Files that are no models, and nodes that are asked for the impossible: one clear error, and the server goes on."""

import json

import pytest

from tests.support import pixels, tiny_models
from tests.support.devkit import paths
from tests.support.workflows import APPLY, MODEL, build, node

pytestmark = pytest.mark.app


def good_file() -> bytes:
    tiny_models.ensure("flux_tiny")
    return (paths.MODELS / "diffusion_models" / tiny_models.file_name("flux_tiny")).read_bytes()


def loaded_with(name: str) -> dict:
    prompt = build("flux", "layerwise", budget_gb=0.03)
    prompt[MODEL]["inputs"]["model_name"] = name
    return prompt


def file_of_other_shapes() -> bytes:
    """The matrices of the blocks on their side."""
    data = good_file()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, tensor in header.items():
        if "_blocks." in name:
            tensor["shape"].reverse()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


CASES = {
    "other_shapes.safetensors": file_of_other_shapes,
    "empty.safetensors": lambda: b"",
    "no_model.safetensors": lambda: b"this is not a model" * 100,
    "cut_header.safetensors": lambda: good_file()[:1000],
    "cut_data.safetensors": lambda: good_file()[:-100_000],
    "huge_header.safetensors": lambda: (2**60).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_no_model_is_one_clear_error(sim, model_files, name):
    before = sim.sim_stats()["used"]
    result = sim.run(loaded_with(model_files.put("diffusion_models", name, CASES[name]())))
    assert not result.ok
    assert name in result.message, "the file's name is what the user needs"
    assert len(result.message) < 1000, "not every weight that does not fit"
    assert ("lines more, see the log" in result.message) == (name == "other_shapes.safetensors"), result.message
    reference = pixels.sha256(sim.latents(sim.run(build("flux", "app")).check()))
    assert pixels.sha256(sim.latents(sim.run(build("flux", "layerwise", budget_gb=0.03)).check())) == reference
    sim.free()
    assert sim.sim_stats()["used"] <= before


def test_a_file_with_bytes_behind_its_last_tensor_is_not_called_incomplete(sim, model_files):
    """The app refuses it; what is to be done is not to get it again."""
    name = model_files.put("diffusion_models", "padded.safetensors", good_file() + bytes(4096))
    message = sim.run(loaded_with(name)).message
    assert f"{name}: too long: 4096 bytes lie behind its last tensor" in message
    assert "do not get it again: cut its last 4096 bytes off" in message
    assert "check that the file is complete" not in message
    cut = model_files.put("diffusion_models", "cut.safetensors", good_file()[:-4096])
    message = sim.run(loaded_with(cut)).message
    assert f"{cut}: truncated: 4096 of " in message and "get the file again" in message


def test_a_missing_file_is_refused_by_name(sim):
    result = sim.run(loaded_with("not_there.safetensors"))
    assert not result.ok
    assert "not_there.safetensors" in result.message


def test_on_the_cpu_a_budget_is_one_of_ram_and_auto_steps_aside(cpu):
    reference = pixels.sha256(cpu.latents(cpu.run(build("flux", "app")).check()))
    for settings in ({"budget_gb": 0.05}, {}):  # the CPU computes bf16 weights as fp32: a layer has twice the bytes
        cpu.free()
        assert pixels.sha256(cpu.latents(cpu.run(build("flux", "layerwise", **settings)).check())) == reference
        assert bool(cpu.report()["components"]) == bool(settings)
    result = cpu.run(build("flux", "layerwise", budget_gb=0.03))
    assert not result.ok and "at least 0.031" in result.message


def test_apply_twice_is_apply_once(sim):
    reference = pixels.sha256(sim.latents(sim.run(build("flux", "app")).check()))
    sim.free()
    prompt = build("flux", "apply", budget_gb=0.03)
    prompt["33"] = node("LayerwiseOffloadApply", model=[APPLY, 0], placement="layerwise", budget_gb=0.025)
    prompt["8"]["inputs"]["model"] = ["33", 0]
    assert pixels.sha256(sim.latents(sim.run(prompt).check())) == reference
    (report,) = sim.report()["components"]
    assert report["plan"]["ring_bytes"] + report["plan"]["resident_bytes"] + report["plan"]["loose_bytes"] <= 25_000_000


def test_old_prompts_without_the_optional_inputs_still_run(sim):
    prompt = build("flux", "layerwise")
    prompt[MODEL]["inputs"] = {key: prompt[MODEL]["inputs"][key] for key in ("model_name", "weight_dtype", "placement")}
    assert sim.run(prompt).ok


def test_nothing_is_left_on_disk_by_a_run(sim):
    before = {path.name for path in paths.ROOT.iterdir()}
    sim.run(build("flux", "layerwise", budget_gb=0.03)).check()
    assert {path.name for path in paths.ROOT.iterdir()} - before <= {"__pycache__"}
