"""Models that only Apply takes over: streamed when named, with the app's results; what cannot be is handed on."""

import pytest

from offload_core.settings import node_table
from tests.app.test_components import report_of, saved
from tests.app.test_dynamic_vram import dynamic  # noqa: F401 - a fixture
from tests.support import tiny_models
from tests.support.workflows import MODEL, OPTIONS, SAMPLER, VAE, applied, build, node

pytestmark = pytest.mark.app

LOADER, USER = "50", "51"
SLOW_LINK = 300_000_000
PLACEMENTS = ("auto", "layerwise", "resident", "whole")


def with_results(prompt: dict, source: list) -> dict:
    """The prompt, with the tensors of an output saved."""
    probe = {"20": node("ProbeTensors", value=source)}
    return {**prompt, **probe, "21": node("SaveLatent", samples=["20", 0], filename_prefix="latents/apply_only")}


def loaded(name: str, class_type: str, widget: str) -> dict:
    tiny_models.ensure(name)
    return {LOADER: node(class_type, **{widget: tiny_models.file_name(name)})}


def picture(color: int) -> dict:
    return node("EmptyImage", width=64, height=64, batch_size=1, color=color)


def controlled() -> dict:
    """A small Wan under a small Uni3C ControlNet."""
    prompt = build("wan", steps=3) | loaded("uni3c_tiny", "ModelPatchLoader", "name")
    prompt["52"] = picture(0x4080C0)
    prompt[USER] = node(
        "WanUni3CControlnetApply",
        **{"model": [MODEL, 0], "model_patch": [LOADER, 0], "vae": [VAE, 0], "render_video": ["52", 0]},
        **{"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    )
    prompt[SAMPLER]["inputs"]["model"] = [USER, 0]
    return prompt


def listening() -> dict:
    prompt = loaded("wav2vec2_base", "AudioEncoderLoader", "audio_encoder_name")
    prompt["52"] = node("EmptyAudio", duration=0.5, sample_rate=16000, channels=1)
    prompt[USER] = node("AudioEncoderEncode", audio_encoder=[LOADER, 0], audio=["52", 0])
    return with_results(prompt, [USER, 0])


def upscaled() -> dict:
    prompt = loaded("swinir_tiny", "UpscaleModelLoader", "model_name")
    prompt["52"] = picture(0x4080C0)
    prompt[USER] = node("ImageUpscaleWithModel", upscale_model=[LOADER, 0], image=["52", 0])
    return with_results(prompt, [USER, 0])


def latent_upscaled() -> dict:
    prompt = loaded("hunyuan_sr_tiny", "LatentUpscaleModelLoader", "model_name")
    prompt["52"] = node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1)
    sizes = {"upscale_method": "bilinear", "width": 192, "height": 192, "crop": "disabled"}
    prompt[USER] = node("HunyuanVideo15LatentUpscaleWithModel", model=[LOADER, 0], samples=["52", 0], **sizes)
    return with_results(prompt, [USER, 0])


def interpolated() -> dict:
    prompt = loaded("rife", "FrameInterpolationModelLoader", "model_name")
    prompt |= {"52": picture(0x4080C0), "53": picture(0xC08040)}
    prompt["54"] = node("ImageBatch", image1=["52", 0], image2=["53", 0])
    prompt[USER] = node("FrameInterpolate", interp_model=[LOADER, 0], images=["54", 0], multiplier=3)
    return with_results(prompt, [USER, 0])


PROMPTS = {
    node_table.MODEL_PATCH: controlled,
    node_table.AUDIO_ENCODER: listening,
    node_table.UPSCALER: upscaled,
    node_table.LATENT_UPSCALER: latent_upscaled,
    node_table.FRAME_INTERPOLATOR: interpolated,
}
SLOTS = {slot.kind: (slot.needs, output) for output, slot in enumerate(node_table.NODES[node_table.APPLY])}


def behind_apply(kind: str, placement: str = "auto", options: dict | None = None) -> dict:
    """The prompt of a kind with our Apply node, "30", behind the app's loader."""
    needs, output = SLOTS[kind]
    prompt = applied(PROMPTS[kind](), LOADER, needs, output, **{f"{needs}_placement": placement})
    if options:
        prompt[OPTIONS] = node("LayerwiseOffloadOptions", **options)
        prompt["30"]["inputs"]["options"] = [OPTIONS, 0]
    return prompt


def bystander_of(server, kind: str) -> dict:
    return next(entry for entry in server.report()["bystanders"] if entry["component"] == kind)


@pytest.mark.parametrize(
    "kind", [kind if kind != "audio_encoder" else pytest.param(kind, marks=pytest.mark.long) for kind in PROMPTS]
)
def test_each_kind_gives_what_the_app_gives_and_is_streamed_when_named(sim, kind):
    reference = saved(sim, PROMPTS[kind]())
    sim.sim_configure(bandwidth=SLOW_LINK)
    for placement in PLACEMENTS:
        sim.free()
        assert saved(sim, behind_apply(kind, placement)) == reference, placement
        if placement == "auto":
            assert bystander_of(sim, kind)["why"]["code"] == "no_group"
    sim.free()
    assert saved(sim, behind_apply(kind, options={"mode": "memory", "selection": kind})) == reference
    report = report_of(sim, kind)
    assert report["plan"]["ring_bytes"] and report["summary"]["visits"]
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])


@pytest.mark.parametrize("kind", [node_table.UPSCALER, node_table.MODEL_PATCH])
def test_under_dynamic_vram_it_is_handed_on_with_the_reason(dynamic, kind):  # noqa: F811
    reference = saved(dynamic, PROMPTS[kind]())
    dynamic.free()
    log = len(dynamic.log())
    assert saved(dynamic, behind_apply(kind, "layerwise")) == reference
    entry = bystander_of(dynamic, kind)
    assert entry["why"]["code"] == "only_dynamic" and entry["nodes"] == ["30"]
    assert "loaded for Dynamic VRAM" in dynamic.log()[log:] and "--disable-dynamic-vram" in dynamic.log()[log:]
    dynamic.free()
    assert saved(dynamic, behind_apply(kind, "auto")) == reference
    assert bystander_of(dynamic, kind)["why"]["code"] == "no_group"


def test_before_the_run_its_file_is_seen_later(sim):
    told = sim.post("/layerwise_offload/expect", {"prompt": behind_apply(node_table.UPSCALER, "layerwise")})
    (entry,) = [entry for entry in told["bystanders"] if entry["component"] == node_table.UPSCALER]
    assert entry["why"]["code"] == "seen_later"
