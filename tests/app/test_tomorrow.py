"""The pack in an app that is newer than the pack: it passes more arguments than any app that the pack was tested in.

`tomorrow_pack` makes such an app of today's. What comes out equals that app's own pictures; what the pack does not heed
is said in the log and on its nodes.
"""

import json
from pathlib import Path

import pytest

from tests.support import pixels, simdev
from tests.support.app_server import AppServer
from tests.support.workflows import (
    CLIP,
    CONTROL_NET,
    LORA,
    MODEL,
    OPTIONS,
    VAE,
    all_in_one,
    applied,
    behind,
    build,
    from_checkpoint,
    looking,
    node,
    with_controlnet,
    with_our_loaders,
)

pytestmark = pytest.mark.app

TOMORROW_PACK = Path(__file__).parent / "tomorrow_pack"
PROBE_PACK = Path(__file__).parent / "probe_pack"
SLOW_LINK = 300_000_000
STREAMED = {"placement": "layerwise", "budget_gb": 0.03}
STREAMED_CONTROLNET = json.dumps(
    {"schema": 1, "graph": {"components": {"controlnet": {"placement": "layerwise", "budget_gb": 0.02}}}}
)
UNHEEDED = (
    ": is_dynamic(tomorrow), load(tomorrow), loaded_size(tomorrow), model_size(tomorrow), partially_load(tomorrow)"
)


@pytest.fixture(scope="module")
def started():
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    with AppServer("sim", devices=2, bandwidth=SLOW_LINK, extra_packs=(TOMORROW_PACK, PROBE_PACK)) as server:
        yield server


@pytest.fixture
def server(started, request):
    request.node.app_server = started
    started.free()
    started.sim_reset()
    return started


def saved(server, prompt) -> str:
    server.free()
    result = server.run(prompt).check()
    arrays = server.latents(result) + server.images(result)
    pixels.assert_sane(arrays)
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
    return pixels.sha256(arrays)


def streamed(server) -> set[str]:
    return {
        component["component"]
        for component in server.report()["components"]
        if any(layer["placement"] == "streamed" for layer in component["plan"]["layers"])
    }


def lora_behind(prompt: dict, model: str) -> dict:
    file = build("flux", lora=0.8)[LORA]["inputs"]["lora_name"]
    return behind(prompt, model, "LoraLoaderModelOnly", "model", lora_name=file, strength_model=0.8)


def model_sampling_behind(prompt: dict, model: str) -> dict:
    values = {"max_shift": 1.3, "base_shift": 0.4, "width": 64, "height": 64}
    return behind(prompt, model, "ModelSamplingFlux", "model", **values)


def with_memory_mode(prompt: dict) -> dict:
    return {**prompt, OPTIONS: node("LayerwiseOffloadOptions", mode="memory")}


def roads():
    """By name: the app's prompt, ours, and the components that ours streams."""
    flux, wan, vision = build("flux"), build("wan"), looking()
    apply = applied(flux, MODEL, "model", 0, placement="layerwise", budget_gb=0.03)
    checkpoint = from_checkpoint(build("sd15", steps=1), "sd15_checkpoint")
    controlled = with_controlnet(flux, "controlnet_flux")
    memory = {"mode": "memory"}
    return {
        "diffusion model": (flux, with_our_loaders(flux, {MODEL: STREAMED}), {"dit"}),
        "text encoder": (flux, with_our_loaders(flux, {CLIP: {}}, memory), {"text_encoder"}),
        "vae": (wan, with_our_loaders(wan, {VAE: {}}, memory), {"vae"}),
        "clip vision": (vision, with_our_loaders(vision, {"1": {}}, memory), {"image_encoder"}),
        "controlnet": (
            controlled,
            with_our_loaders(controlled, {CONTROL_NET: {"placement": "layerwise", "budget_gb": 0.02}}),
            {"controlnet"},
        ),
        "checkpoint": (checkpoint, with_our_loaders(checkpoint, {MODEL: {}}, memory), {"dit", "text_encoder"}),
        "whole pipeline": (flux, all_in_one(flux, mode="memory"), {"dit", "text_encoder"}),
        "left to the app": (flux, with_our_loaders(flux, {MODEL: {"placement": "whole"}}), set()),
        "apply": (flux, apply, {"dit"}),
        "apply, then a lora": (lora_behind(flux, MODEL), lora_behind(apply, "30"), {"dit"}),
        "apply, then model sampling": (
            model_sampling_behind(flux, MODEL),
            model_sampling_behind(apply, "30"),
            {"dit"},
        ),
        "loader, then a lora": (
            lora_behind(flux, MODEL),
            lora_behind(with_our_loaders(flux, {MODEL: STREAMED}), MODEL),
            {"dit"},
        ),
        "apply to a vision model": (
            vision,
            with_memory_mode(applied(vision, "1", "clip_vision", 3, options=[OPTIONS, 0])),
            {"image_encoder"},
        ),
        "apply to a controlnet": (
            controlled,
            applied(controlled, CONTROL_NET, "control_net", 4, graph_options=STREAMED_CONTROLNET),
            {"controlnet"},
        ),
        "on the other device": (
            flux,
            behind(with_our_loaders(flux, {MODEL: STREAMED}), MODEL, "SelectModelDevice", "model", device="gpu:1"),
            {"dit"},
        ),
    }


ROADS = (
    *("diffusion model", "text encoder", "vae", "clip vision", "controlnet", "checkpoint", "whole pipeline"),
    *("left to the app", "apply", "apply, then a lora", "apply, then model sampling", "loader, then a lora"),
    *("apply to a vision model", "apply to a controlnet", "on the other device"),
)


@pytest.mark.parametrize("name", ROADS)
def test_an_argument_more_changes_no_picture(server, name):
    reference, ours, components = roads()[name]
    expected = saved(server, reference)
    assert saved(server, ours) == expected
    assert streamed(server) == components


def test_what_is_not_heeded_is_said_in_the_log_and_on_the_nodes(server):
    assert UNHEEDED in server.log()
    server.run(with_our_loaders(build("flux"), {MODEL: STREAMED})).check()
    (component,) = server.report()["components"]
    assert any(UNHEEDED in warning for warning in component["warnings"])


def test_today_nothing_is_said(sim):
    assert "passes more to this pack than it knows" not in sim.log()


def test_a_call_that_ours_refuses_is_blamed_on_the_version(app_server_factory):
    """A pack that was written before the argument came: what today's would be without `**kwargs`."""
    server = app_server_factory("sim", extra_packs=(TOMORROW_PACK,), env={"TOMORROW_PACK": "closed"})
    prompt = build("flux")
    twice = behind(applied(prompt, MODEL, "model", 0), "30", "LayerwiseOffloadApply", "model", placement="auto")
    for broken, asked in (
        (with_our_loaders(prompt, {MODEL: STREAMED}), "to load the diffusion model flux_tiny.safetensors"),
        (with_our_loaders(prompt, {CLIP: {}}), "to load the text encoder clip_l_tiny.safetensors"),
        (twice, "to apply layerwise offload to a dit"),
    ):
        result = server.run(broken)
        assert result.status == "error"
        assert f"asked {asked}; found that ComfyUI" in result.message
        assert "this ComfyUI is newer than the pack" in result.message
        assert "check that the file" not in result.message
    server.run(prompt).check()
