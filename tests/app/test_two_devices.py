"""Two devices: the app's device selectors and its CFG split give each device a ring and a queue of its own, and the
memory of a device holds layers of a model on the other."""

import json
import subprocess
import sys

import pytest

from tests.app.test_before_the_run import expect
from tests.app.test_bit_identity import dit_report
from tests.app.test_host_tier import ROADS, flux, said, tiers
from tests.support import pixels, simdev
from tests.support.app_server import AppServer
from tests.support.devkit import paths
from tests.support.workflows import (
    CLIP,
    CONTROL_NET,
    MODEL,
    NEGATIVE,
    SAMPLER,
    VAE,
    behind,
    build,
    with_controlnet,
    with_our_loaders,
)

pytestmark = pytest.mark.app

SLOW_LINK = 300_000_000
MEMORY = {"mode": "memory"}
LOADER = "LayerwiseOffloadDiffusionModelLoader"


@pytest.fixture(scope="module")
def started():
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    with AppServer("sim", devices=2, bandwidth=SLOW_LINK) as server:
        yield server


@pytest.fixture
def server(started, request):
    request.node.app_server = started
    started.free()
    started.sim_reset()
    before = used(started)
    yield started
    started.free()
    assert started.sim_stats()["races"] == 0, started.sim_stats()["race_message"]
    assert used(started) == before, "device bytes were left behind"


def used(server) -> list[int]:
    return [device["used"] for device in server.sim_stats()["devices"]]


def saved(server, prompt) -> str:
    """The digest of what the prompt saved; the device is not emptied, so that the report is of this run."""
    server.free()
    server.sim_reset()
    result = server.run(prompt).check()
    arrays = server.latents(result) + server.images(result)
    pixels.assert_sane(arrays)
    return pixels.sha256(arrays)


def streamed_on(server) -> set[tuple[str, str]]:
    """(component, device) of all that have been streamed there: copied ahead, pass by pass."""
    return {
        (component["component"], component["plan"]["device"])
        for component in server.report()["components"]
        if component["summary"]["bytes_copied"] and component["summary"]["prefetch_hits"]
    }


def test_each_selector_moves_its_component_to_the_other_device(server):
    prompt = build("flux")
    reference = saved(server, prompt)
    ours = with_our_loaders(prompt, {MODEL: {}, CLIP: {}}, MEMORY)
    assert saved(server, ours) == reference
    assert streamed_on(server) == {("dit", "npu:0"), ("text_encoder", "npu:0")}
    moved = behind(ours, MODEL, "SelectModelDevice", "model", device="gpu:1")
    assert saved(server, moved) == reference
    assert streamed_on(server) == {("dit", "npu:1"), ("text_encoder", "npu:0")}
    assert saved(server, behind(ours, CLIP, "SelectCLIPDevice", "clip", device="gpu:1")) == reference
    assert streamed_on(server) == {("dit", "npu:0"), ("text_encoder", "npu:1")}
    back = behind(moved, next(reversed(moved)), "SelectModelDevice", "model", device="default")
    assert saved(server, back) == reference
    assert streamed_on(server) == {("dit", "npu:0"), ("text_encoder", "npu:0")}


def test_a_vae_on_the_other_device(server):
    prompt = build("wan")
    reference = saved(server, prompt)
    ours = with_our_loaders(prompt, {VAE: {}}, MEMORY)
    assert saved(server, behind(ours, VAE, "SelectVAEDevice", "vae", device="gpu:1")) == reference
    assert [component["plan"]["device"] for component in server.report()["components"]] == ["npu:1"]
    assert any(layer["placement"] == "streamed" for layer in server.report()["components"][0]["plan"]["layers"])


def test_one_encoder_on_both_devices_in_one_graph(server):
    """The module goes from device to device, with queue and masters."""
    prompt = build("flux")
    reference = saved(server, prompt)
    ours = with_our_loaders(prompt, {CLIP: {}}, MEMORY)
    moved = behind(ours, CLIP, "SelectCLIPDevice", "clip", device="gpu:1")
    moved[NEGATIVE]["inputs"]["clip"] = [CLIP, 0]
    assert saved(server, moved) == reference
    moved[NEGATIVE]["inputs"]["clip"], moved["6"]["inputs"]["clip"] = moved["5"]["inputs"]["clip"], [CLIP, 0]
    assert saved(server, moved) == reference


@pytest.mark.parametrize("lora", [0.8, pytest.param(None, marks=pytest.mark.long)])
def test_cfg_split_gives_each_device_its_own_ring(server, lora):
    prompt = build("flux", lora=lora)
    last = prompt[SAMPLER]["inputs"]["model"][0]
    prompt[SAMPLER]["inputs"]["cfg"] = 4.0  # at 1 there is nothing to split
    reference = saved(server, behind(prompt, last, "MultiGPU_WorkUnits", "model", max_gpus=2))
    ours = with_our_loaders(prompt, {MODEL: {"placement": "layerwise", "budget_gb": 0.03}})
    assert saved(server, behind(ours, last, "MultiGPU_WorkUnits", "model", max_gpus=2)) == reference
    assert streamed_on(server) == {("dit", "npu:0"), ("dit", "npu:1")}
    reports = [component for component in server.report()["components"] if component["component"] == "dit"]
    passes = [component["summary"]["passes"] for component in reports]
    assert passes[0] == passes[1] > 0, "each device has half of the work"
    for component in reports:
        assert component["summary"]["peak_device_bytes"] <= 30_000_000


def codes(report: dict) -> list[str]:
    return [notice["code"] for notice in report["notices"]]


@pytest.mark.parametrize("road", ROADS)
def test_layers_of_a_model_lie_on_the_other_device(server, road):
    reference = saved(server, build("flux"))
    prompt = said(road, flux(), host_tier="npu:1")
    told = expect(server, prompt)
    assert saved(server, prompt) == reference
    report = dit_report(server)
    assert tiers(report["plan"]) == tiers(told["components"][0]["plan"]) == {"peer"}
    assert report["plan"]["peer_device"] == "npu:1" and "npu:1" in report["plan_text"]
    assert report["summary"]["prefetch_hits"] > 0 and report["summary"]["pinned_bytes"] == 0
    row = {device["name"]: device for device in server.report()["devices"]}["npu:1"]
    assert row["stored_bytes"] == report["plan"]["peer_bytes"] <= used(server)[1]
    assert {device["name"] for device in told["devices"]} == {"npu:0", "npu:1"}
    setting = report["settings"]["host_tier"]
    assert (setting["value"], setting["source"]) == ("npu:1", road)


def test_no_more_than_its_budget_lies_on_the_other_device(server):
    lora = build("flux", lora=0.8)
    reference = saved(server, lora)
    assert saved(server, said("graph", flux(lora=0.8), host_tier="npu:1", peer_budget_gb=0.03)) == reference
    report = dit_report(server)
    assert 0 < report["plan"]["peer_bytes"] <= 30_000_000 and tiers(report["plan"]) > {"peer"}


def test_of_all_components_of_a_node_those_on_the_named_device_stream_from_the_host(server):
    prompt = build("flux")
    reference = saved(server, prompt)
    ours = with_our_loaders(prompt, {MODEL: {}, CLIP: {}}, {**MEMORY, "host_tier": "npu:1"})
    assert saved(server, behind(ours, CLIP, "SelectCLIPDevice", "clip", device="gpu:1")) == reference
    of = {report["component"]: report for report in server.report()["components"]}
    assert tiers(of["dit"]["plan"]) == {"peer"} and "peer" not in tiers(of["text_encoder"]["plan"])
    assert "is_own_device" in codes(of["text_encoder"]) and "is_own_device" not in codes(of["dit"])


def test_a_device_of_another_machine_is_refused_with_those_there_are(server):
    choices = server.object_info()["LayerwiseOffloadOptions"]["input"]["optional"]["host_tier"][1]["options"]
    assert choices[-2:] == ["npu:0", "npu:1"]
    for road in ROADS:
        result = server.run(said(road, flux(), host_tier="npu:7"))
        assert not result.ok and "npu:7" in result.message and "found npu:0, npu:1" in result.message
        assert result.error.get("node_type") in (None, LOADER), "it is known before anything is loaded"


def test_nothing_is_stored_between_the_devices_of_a_cfg_split(server):
    prompt = build("flux")
    last = prompt[SAMPLER]["inputs"]["model"][0]
    prompt[SAMPLER]["inputs"]["cfg"] = 4.0
    reference = saved(server, behind(prompt, last, "MultiGPU_WorkUnits", "model", max_gpus=2))
    widgets = {MODEL: {"placement": "layerwise", "budget_gb": 0.03}}
    ours = with_our_loaders(prompt, widgets, {"host_tier": "npu:1"})
    assert saved(server, behind(ours, last, "MultiGPU_WorkUnits", "model", max_gpus=2)) == reference
    reports = [report for report in server.report()["components"] if report["component"] == "dit"]
    assert len(reports) == 2
    for report in reports:
        assert "peer" not in tiers(report["plan"]) and "no_store_in_split" in codes(report)
    reference = saved(server, prompt)
    assert saved(server, ours) == reference
    assert tiers(dit_report(server)["plan"]) == {"peer"}, "the split is gone from the graph"


@pytest.mark.long
def test_cfg_split_with_a_controlnet(server):
    prompt = with_controlnet(build("flux"), "controlnet_flux")
    prompt[SAMPLER]["inputs"]["cfg"] = 4.0
    split = behind(prompt, MODEL, "MultiGPU_WorkUnits", "model", max_gpus=2)
    reference = saved(server, split)
    widgets = {MODEL: {"placement": "layerwise"}, CONTROL_NET: {"placement": "layerwise", "budget_gb": 0.02}}
    assert saved(server, with_our_loaders(split, widgets, {**MEMORY, "dit_budget_gb": 0.05})) == reference


@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")
def test_what_was_measured_on_one_device_is_not_planned_by_on_another():
    file = paths.MODELS / "diffusion_models" / "flux_mid.safetensors"
    command = [sys.executable, "-m", "tests.app.case_measured_elsewhere", str(file)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"device": "cpu", "segments": True, "link": "assumed: a file on a solid state disk"}
