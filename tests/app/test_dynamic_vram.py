"""With the app's Dynamic VRAM on: ours and the app's dynamic models share a card; what Apply makes of a dynamic model.

The app's own code runs on a stand-in for its native library (`tests/support/simdev/dynamic`).
"""

import numpy as np
import pytest

from tests.app.conftest import EXTENSION_PACK, PROBE_PACK, SIM_DEFAULTS
from tests.app.test_bit_identity import outcome
from tests.app.test_components import report_of
from tests.support import pixels, simdev, tiny_models
from tests.support.app_server import APP_RESERVE_MB, AppServer
from tests.support.workflows import CLIP, MODEL, VAE, build, node, with_controlnet, with_our_loaders

pytestmark = pytest.mark.app

FAMILY = "wan_t5"


@pytest.fixture
def dynamic(server_pool, request):
    """A server with Dynamic VRAM on, empty."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    packs = (PROBE_PACK, EXTENSION_PACK)
    server = server_pool.get("dynamic", lambda: AppServer("sim", extra_packs=packs, dynamic_vram=True))
    request.node.app_server = server
    server.sim_configure(**SIM_DEFAULTS)
    server.free()
    server.sim_reset()
    return server


def resident_bytes(server) -> int:
    return server.get("/probe/dynamic")["resident_bytes"]


def applied(prompt: dict, **inputs: str) -> dict:
    """The prompt with an Apply node that takes over what `inputs` (input: node) bring."""
    outputs = {"model": 0, "clip": 1, "vae": 2}
    wires = {name: [source, 0] for name, source in inputs.items()}
    changed = {"80": node("LayerwiseOffloadApply", placement="layerwise", budget_gb=0.0, **wires)}
    for node_id, entry in prompt.items():
        moved = {source: ["80", outputs[name]] for name, source in inputs.items()}
        new = {
            name: moved.get(value[0], value) if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }
        changed[node_id] = {**entry, "inputs": new}
    return changed


def test_the_apps_models_are_dynamic_here(dynamic):
    dynamic.run(build(FAMILY)).check()
    assert resident_bytes(dynamic) > 50_000_000


def test_our_loaders_and_the_apps_share_a_card(dynamic):
    reference = outcome(dynamic, build(FAMILY))
    for ours in ({MODEL}, {CLIP}, {VAE}, {MODEL, CLIP, VAE}):
        dynamic.free()
        dynamic.sim_reset()
        widgets = {node_id: {"placement": "layerwise"} for node_id in ours}
        assert outcome(dynamic, with_our_loaders(build(FAMILY), widgets)) == reference, ours
        reports = dynamic.report()["components"]
        assert len(reports) == len(ours)
        assert not any("second time" in line for report in reports for line in report["warnings"])
        assert dynamic.sim_stats()["races"] == 0


def test_with_a_lora_ours_is_the_apps_full_load_and_its_dynamic_model_is_near_it(dynamic, sim):
    """The app patches a dynamic model in the weights' own type at each cast, a full load once and in float32."""
    prompt = build("flux", lora=0.8, steps=8)
    whole = sim.images(sim.run(prompt).check())
    ours = dynamic.images(dynamic.run(with_our_loaders(prompt, {MODEL: {"placement": "layerwise"}})).check())
    pixels.assert_identical(whole, ours)
    dynamic.free()
    others = dynamic.images(dynamic.run(prompt).check())
    differences = np.abs(np.stack(others).astype(int) - np.stack(whole).astype(int))
    share = (differences > 0).mean()
    print(f"{share:.0%} of the pixel values differ, by {differences.max()} of 255 at most")
    assert 0 < differences.max() < 16 and share < 0.5


def test_our_load_evicts_no_more_than_it_asks_for(dynamic):
    """An encoder of ours runs beside a dynamic diffusion model that fills the device: none of that is staged again."""
    ours = {CLIP: {"placement": "layerwise"}}
    dynamic.run(with_our_loaders(build("flux", text="nought"), ours)).check()
    dynamic.sim_configure(mb=dynamic.sim_stats()["used"] / 2**20 + APP_RESERVE_MB + 8)
    dynamic.run(with_our_loaders(build("flux", text="one"), ours)).check()
    held = resident_bytes(dynamic)
    assert held > 60_000_000
    before = report_of(dynamic, "text_encoder")["summary"]["bytes_copied"]
    dynamic.sim_reset()
    dynamic.run(with_our_loaders(build("flux", text="two"), ours)).check()
    streamed = report_of(dynamic, "text_encoder")["summary"]["bytes_copied"] - before
    assert resident_bytes(dynamic) == held
    assert dynamic.sim_stats()["h2d_bytes"] - streamed < 5_000_000


@pytest.mark.parametrize("what", ["model", "clip", "vae"])
def test_apply_demotes_a_dynamic_model_and_names_the_second_copy(dynamic, what):
    source = {"model": MODEL, "clip": CLIP, "vae": VAE}[what]
    reference = outcome(dynamic, build(FAMILY))
    dynamic.free()
    assert outcome(dynamic, applied(build(FAMILY), **{what: source})) == reference
    (report,) = dynamic.report()["components"]
    assert any("loaded a second time" in line for line in report["warnings"])
    assert dynamic.sim_stats()["races"] == 0


@pytest.mark.parametrize("what", ["model", "clip", "vae"])
def test_what_is_left_to_the_app_stays_dynamic(dynamic, what):
    """The placement `whole` behind the app's loader: nothing is loaded a second time, and the app goes its own way."""
    source = {"model": MODEL, "clip": CLIP, "vae": VAE}[what]
    reference = outcome(dynamic, build(FAMILY))
    held = resident_bytes(dynamic)
    dynamic.free()
    prompt = applied(build(FAMILY), **{what: source})
    widgets = {"placement": "whole", "clip_placement": "whole", "vae_placement": "whole"}
    prompt["80"]["inputs"] |= widgets
    assert outcome(dynamic, prompt) == reference
    assert dynamic.report()["components"] == []
    assert resident_bytes(dynamic) == held


def test_apply_refuses_what_the_app_cannot_load_without_dynamic_vram(dynamic):
    prompt = with_our_loaders(with_controlnet(build("sd15"), "controlnet_sd15"), {CLIP: {"placement": "layerwise"}})
    prompt["80"] = node(
        "LayerwiseOffloadApply", placement="auto", control_net_placement="layerwise", control_net=["13", 0]
    )
    prompt["15"]["inputs"]["control_net"] = ["80", 4]
    result = dynamic.run(prompt)
    assert not result.ok and "Dynamic VRAM" in result.message and "Layerwise Offload" in result.message
    tiny_models.ensure("clip_vision_tiny")
    vision = {
        "1": node("CLIPVisionLoader", clip_name=tiny_models.file_name("clip_vision_tiny")),
        "2": node("LayerwiseOffloadApply", placement="auto", clip_vision_placement="layerwise", clip_vision=["1", 0]),
        "3": node("EmptyImage", width=64, height=64, batch_size=1, color=0x4080C0),
        "4": node("CLIPVisionEncode", clip_vision=["2", 3], image=["3", 0], crop="center"),
        "5": node("ProbeTensors", value=["4", 0]),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix="dynamic"),
    }
    result = dynamic.run(vision)
    assert not result.ok and "Dynamic VRAM" in result.message
