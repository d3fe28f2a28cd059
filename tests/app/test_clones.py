"""Clones, and who looks at the weights of a streamed model: the same picture however it was cloned, true values."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.support import pixels, tiny_models
from tests.support.workflows import SAMPLER, build, node

pytestmark = pytest.mark.app

OURS = {"placement": "layerwise", "budget_gb": 0.03}
HOW = ("plain", "disable_dynamic", "model_override", "positional", "force_deepcopy", "of_a_clone")


def cloned(prompt: dict, how: str) -> dict:
    source = prompt[SAMPLER]["inputs"]["model"]
    sampler = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"model": ["60", 0]}))
    return {**prompt, "60": node("ProbeClone", model=source, how=how), SAMPLER: sampler}


@pytest.mark.parametrize("how", HOW)
def test_a_clone_is_streamed_and_gives_the_same_picture(sim, how):
    reference = outcome(sim, build("flux"))
    for loader in ("layerwise", "apply"):
        sim.free()
        assert outcome(sim, cloned(build("flux", loader, **OURS), how)) == reference
        running = [one for one in sim.report()["components"] if one["summary"]["passes"]]
        assert len(running) == 1
        assert any(layer["placement"] == "streamed" for layer in running[0]["plan"]["layers"])
        assert running[0]["summary"]["device_bytes"] <= 30_000_000, "a clone keeps the budget"


@pytest.mark.parametrize("placements", [("layerwise", "whole"), ("whole", "layerwise"), ("resident", "whole")])
def test_two_samplers_over_one_model_that_is_placed_in_two_ways(sim, placements):
    """Two Apply nodes over one loader: each takes the module from the other, twice."""

    def twice(prompt: dict, applied: bool) -> dict:
        source = prompt[SAMPLER]["inputs"]["model"]
        for number, placement in enumerate(placements):
            inputs = prompt[SAMPLER]["inputs"] | {"seed": 1 + number}
            if applied:
                prompt[f"7{number}"] = node("LayerwiseOffloadApply", model=source, placement=placement)
                inputs["model"] = [f"7{number}", 0]
            prompt[f"8{number}"] = node("KSampler", **inputs)
            prompt[f"9{number}"] = node("SaveLatent", samples=[f"8{number}", 0], filename_prefix=f"latents/{number}")
        return prompt

    def latents(prompt: dict) -> list[str]:
        result = sim.run(prompt).check()
        return [pixels.sha256(sim.latents(result, node=number)) for number in ("90", "91")]

    reference = latents(twice(build("flux"), False))
    assert reference[0] != reference[1]
    sim.free()
    for steps in (2, 3):  # the second time both have been loaded before
        expected = reference if steps == 2 else latents(twice(build("flux", steps=steps), False))
        assert latents(twice(build("flux", steps=steps), True)) == expected
    assert sim.sim_stats()["races"] == 0


def in_two_orders(prompt: dict) -> dict:
    """Two samplers in place of one, over clones of one model: under a LoRA with the single blocks called in the reverse
    order, and without one, where the first step calls each block twice."""
    source = prompt[SAMPLER]["inputs"]["model"]
    tiny_models.ensure("lora_flux_tiny")
    file = tiny_models.file_name("lora_flux_tiny")
    prompt["70"] = node("LoraLoaderModelOnly", model=source, lora_name=file, strength_model=0.8)
    prompt["71"] = node("ProbeExtension", model=["70", 0], name="backwards")
    prompt["72"] = node("ProbeExtension", model=source, name="twice_in_the_first_step")
    sampler = prompt.pop(SAMPLER)["inputs"]
    for entry in prompt.values():
        if entry["inputs"].get("samples") == [SAMPLER, 0]:
            entry["inputs"]["samples"] = ["81", 0]
    for clone in ("71", "72"):
        prompt[f"8{clone[1]}"] = node("KSampler", **(sampler | {"model": [clone, 0]}))
        prompt[f"9{clone[1]}"] = node("SaveLatent", samples=[f"8{clone[1]}", 0], filename_prefix=f"latents/{clone}")
    return prompt


def test_clones_that_call_the_layers_in_different_orders(sim):
    """One set of layers, which the samplers use in turns: nothing is freed between the runs."""
    steps, seeds = 2, (1, 2)

    def latents(prompt: dict) -> list[str]:
        result = sim.run(prompt).check()
        arrays = [sim.latents(result, node=number) for number in ("91", "92")]
        pixels.assert_sane([array for latent in arrays for array in latent])
        return [pixels.sha256(latent) for latent in arrays]

    plain = outcome(sim, build("flux", steps=steps))
    references = [latents(in_two_orders(build("flux", steps=steps, seed=seed))) for seed in seeds]
    assert len({plain[1], *references[0], *references[1]}) == 5
    for loader in ("layerwise", "apply"):
        sim.free()
        counted = []
        for seed, reference in zip(seeds, references):
            assert latents(in_two_orders(build("flux", loader, steps=steps, seed=seed, **OURS))) == reference, loader
            counted.append(dit_report(sim)["summary"])
        assert outcome(sim, build("flux", loader, steps=steps, **OURS)) == plain
        plan, (first, second) = dit_report(sim)["plan"], counted
        assert any(layer["placement"] == "streamed" for layer in plan["layers"])
        assert second["visits"] - first["visits"] == (2 * steps + 1) * len(plan["layers"])
        assert second["peak_device_bytes"] <= 30_000_000
    assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]


def test_what_the_apps_own_patcher_has_patched_is_not_left(sim):
    """One loader, by turns with a LoRA and without us, and with us and without a LoRA; nothing is freed in between."""
    plain, patched = outcome(sim, build("flux")), outcome(sim, build("flux", lora=0.8))
    assert plain != patched
    sim.free()
    for prompt, expected in [
        (build("flux", lora=0.8), patched),
        (build("flux", "apply", **OURS), plain),
        (build("flux", lora=0.8), patched),
        (build("flux", "apply", lora=0.8, **OURS), patched),
        (build("flux"), plain),
    ]:
        assert outcome(sim, prompt) == expected


def digest(server, prompt: dict) -> str:
    source = prompt[SAMPLER]["inputs"]["model"]
    probed = {
        **prompt,
        "61": node("ProbeState", model=source, after=[SAMPLER, 0]),
        "62": node("PreviewAny", source=["61", 0]),
    }
    return server.run(probed).check().outputs["62"]["text"][0]


def test_the_state_dict_of_a_streamed_model_is_true(sim):
    """While it is loaded, with residents on the device and layers off it: true shapes, true values, nothing else."""
    reference = digest(sim, build("flux"))
    sim.free()
    assert digest(sim, build("flux", "layerwise", **OURS)) == reference
    assert digest(sim, build("flux", "layerwise", **OURS, seed=2)) == reference
    sim.free()
    assert digest(sim, build("flux", "apply", **OURS)) == reference
    assert digest(sim, build("sd15", "layerwise", placement="layerwise")) != reference
