"""Host memory in the real app: weights that stay in their file, on the CPU and on the device, and files that change."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bench.disk_stream import in_cgroup
from tests.app.test_bit_identity import outcome
from tests.support import memory_use, pixels, tiny_models
from tests.support.devkit import paths
from tests.support.workflows import CLIP, MODEL, VAE, build, with_our_loaders

FOLDER = paths.MODELS / "diffusion_models"


def workflow(file, **settings):
    prompt = build("flux", loader="layerwise", placement="layerwise", **settings)
    for node in prompt.values():
        if "model_name" in node["inputs"]:
            node["inputs"]["model_name"] = file.name
    return prompt


def part(server, component="dit"):
    return next(one for one in server.report()["components"] if one["component"] == component)


def test_on_the_cpu_layers_come_from_the_file_and_the_picture_is_the_same(cpu):
    reference = cpu.run(build("flux", loader="app")).check()
    cpu.free()
    result = cpu.run(build("flux", loader="layerwise", placement="layerwise", budget_gb=0.05)).check()
    assert not pixels.difference(cpu.images(reference), cpu.images(result))
    report = part(cpu)
    streamed = [layer for layer in report["plan"]["layers"] if layer["placement"] == "streamed"]
    assert streamed and {layer["host_tier"] for layer in streamed} == {"mapped"}
    assert report["summary"]["host_bytes"]["mapped"] == sum(layer["bytes"] for layer in streamed)
    assert report["summary"]["bytes_copied"] > 0 and report["plan"]["ring_bytes"] > 0


def test_on_the_device_streamed_layers_are_page_locked_to_the_byte_and_residents_stay_in_the_file(sim):
    before = sim.sim_stats()["pinned"]
    sim.run(build("flux", loader="layerwise", placement="layerwise", budget_gb=0.03)).check()
    report = part(sim)
    streamed = sum(layer["bytes"] for layer in report["plan"]["layers"] if layer["placement"] == "streamed")
    resident = sum(layer["bytes"] for layer in report["plan"]["layers"] if layer["placement"] == "resident")
    assert report["summary"]["host_bytes"] == {"pinned": streamed, "pageable": 0, "mapped": resident}
    slots = 4 << 24
    assert streamed <= sim.sim_stats()["pinned"] - before + slots and report["summary"]["pinned_bytes"] == streamed
    assert sim.sim_stats()["races"] == 0


CHANGES = {
    "truncated": (lambda file: os.truncate(file, 1 << 20), "truncated from"),
    "replaced": (lambda file: os.replace(shutil.copy(file, f"{file}.new"), file), "another file in its place"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_under_a_streamed_model_is_an_error_and_not_a_crash(cpu, own_file, change):
    prompt = workflow(own_file, budget_gb=0.05)
    cpu.run(prompt).check()
    what, words = CHANGES[change]
    what(own_file)
    for node in prompt.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] += 100
    result = cpu.run(prompt)
    assert result.status == "error" and words in result.message and own_file.name in result.message
    assert cpu.alive
    cpu.run(build("flux", loader="layerwise", placement="layerwise", budget_gb=0.05, seed=5)).check()


def anonymous_bytes(server) -> int:
    with open(f"/proc/{server.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks the kernel of Linux")
def test_the_server_does_not_grow_from_load_to_load(sim):
    """Each load has another plan and another LoRA strength: masters, patched versions and rings come and go."""
    one_model, loads = 81_000_000, 12
    for number in range(4 + loads):
        sim.run(build("flux", "layerwise", budget_gb=0.03 + 0.001 * (number % 7), lora=0.5 + number / 50)).check()
        sim.free()
        if number == 3:
            before = anonymous_bytes(sim)
    assert anonymous_bytes(sim) - before < 1.5 * one_model


def larger_than_memory(source, target):
    """The file `source` with one more tensor behind the others, of nothing, and more of it than this machine has."""
    with open("/proc/meminfo") as meminfo:
        entries = dict(line.split(":") for line in meminfo)
    memory = sum(int(entries[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    content = source.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["not_of_the_model"] = {"dtype": "U8", "shape": [memory], "data_offsets": [end, end + memory]}
    text = json.dumps(header).encode()
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + content[8 + length :])
        file.truncate(8 + len(text) + end + memory)


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(
    not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() != "0",
    reason="needs a kernel that refuses mappings larger than its memory",
)
def test_a_file_larger_than_memory_and_swap_is_loaded_though_the_app_cannot_map_it(cpu, own_file):
    reference = cpu.run(build("flux", loader="app")).check()
    larger_than_memory(FOLDER / tiny_models.file_name("flux_tiny"), own_file)
    prompt = build("flux", loader="app")
    prompt[MODEL]["inputs"]["unet_name"] = own_file.name
    refused = cpu.run(prompt)
    assert refused.status == "error" and "Cannot allocate memory" in refused.message
    result = cpu.run(workflow(own_file, budget_gb=0.05)).check()
    assert not pixels.difference(cpu.images(reference), cpu.images(result))


@pytest.mark.parametrize("family", ["flux_fp8_scaled", "flux_nvfp4"])
def test_quantised_weights_are_streamed_from_the_file_too(cpu, family):
    reference = cpu.run(build(family, loader="app")).check()
    cpu.free()
    result = cpu.run(build(family, loader="layerwise", placement="layerwise", budget_gb=0.02)).check()
    assert not pixels.difference(cpu.images(reference), cpu.images(result))
    plan, host = part(cpu)["plan"], part(cpu)["summary"]["host_bytes"]
    assert host["mapped"] and host["pageable"] + plan["ring_bytes"] + plan["loose_bytes"] <= 0.02e9


@pytest.fixture
def memory_group():
    """`memory_group(nbytes)`: a memory cgroup of that limit, removed after the test and the servers it has started."""
    groups = []

    def make(nbytes: int) -> Path:
        try:
            groups.append(in_cgroup(nbytes))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here, only the user's number was tried: {error}")
        return groups[-1]

    yield make
    for group in groups:
        group.rmdir()


@pytest.mark.skipif(not memory_use.can_measure(), reason="measured by Linux's /proc")
def test_on_the_device_a_model_that_memory_has_no_room_for_stays_in_its_file(memory_group, app_server_factory):
    """What a warm server takes is limited to less than the model: by the user's number, and then by the kernel, which
    would end it. The simulated device's memory is the server's own, and counts."""
    tiny_models.ensure("flux_large")
    model_bytes = (FOLDER / tiny_models.file_name("flux_large")).stat().st_size
    limit_bytes = int(0.85 * model_bytes)
    server = app_server_factory("sim", env=memory_use.GIVES_BACK)
    plain = build("flux_large")
    with memory_use.Growth(server.pid) as whole:
        reference = outcome(server, plain)
    assert whole.anonymous_bytes > model_bytes, "the measure sees a model that is loaded"
    for bound, options in (("number", {"workflow_host_gb": 0.05}), ("cgroup", {})):
        server.free()
        if bound == "cgroup":
            (memory_group(limit_bytes) / "cgroup.procs").write_text(str(server.pid))
        ours = with_our_loaders(plain, {MODEL: {"budget_gb": 0.06}, CLIP: {}, VAE: {}}, {"mode": "memory", **options})
        with memory_use.Growth(server.pid) as growth:
            assert outcome(server, ours) == reference, bound
        host = part(server)["summary"]["host_bytes"]
        assert host["mapped"] > model_bytes - limit_bytes, bound
        assert growth.anonymous_bytes < limit_bytes, (bound, growth.as_dict())
        assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
