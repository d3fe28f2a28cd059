"""Each kind of component under layerwise offload, alone: conditionings, features and pictures equal the app's."""

import pytest

from tests.support import pixels, tiny_models
from tests.support.workflows import (
    CLIP,
    CONTROL_NET,
    DECODE,
    MODEL,
    POSITIVE,
    PROMPT_TEXT,
    VAE,
    all_in_one,
    applied,
    build,
    from_checkpoint,
    looking,
    node,
    with_controlnet,
    with_our_loaders,
)

pytestmark = pytest.mark.app

SLOW_LINK = 300_000_000
PLACEMENTS = ("auto", "layerwise", "resident", "whole")


def report_of(server, name: str) -> dict:
    return next(component for component in server.report()["components"] if component["component"] == name)


def saved(server, prompt) -> str:
    """Digest of everything the prompt saved, after checking that it is worth comparing."""
    result = server.run(prompt).check()
    arrays = server.latents(result) + server.images(result)
    pixels.assert_sane(arrays)
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
    warned = [line for component in server.report()["components"] for line in component["warnings"]]
    assert not any("outside their layer's call" in line for line in warned), warned
    return pixels.sha256(arrays)


def encoding(text: str = PROMPT_TEXT, clip: str = "clip_l_tiny", clip_type: str = "stable_diffusion") -> dict:
    """A prompt that only encodes a text, and saves the conditioning."""
    tiny_models.ensure(clip)
    return {
        CLIP: node("CLIPLoader", clip_name=tiny_models.file_name(clip), type=clip_type),
        POSITIVE: node("CLIPTextEncode", clip=[CLIP, 0], text=text),
        "20": node("ProbeTensors", value=[POSITIVE, 0]),
        "21": node("SaveLatent", samples=["20", 0], filename_prefix="latents/cond"),
    }


def decoding(vae: str = "vae_flux", size: int = 64, decode: str = "VAEDecode", **inputs) -> dict:
    """A prompt that decodes an empty latent, and encodes the picture again."""
    tiny_models.ensure(vae)
    return {
        "1": node("EmptySD3LatentImage", width=size, height=size, batch_size=1),
        VAE: node("VAELoader", vae_name=tiny_models.file_name(vae)),
        DECODE: node(decode, samples=["1", 0], vae=[VAE, 0], **inputs),
        "11": node("SaveImage", images=[DECODE, 0], filename_prefix="decoded"),
        "12": node("VAEEncode", pixels=[DECODE, 0], vae=[VAE, 0]),
        "13": node("SaveLatent", samples=["12", 0], filename_prefix="latents/encoded"),
    }


ENCODERS = {
    "clip_l_tiny": ("clip_l_tiny", "stable_diffusion"),
    "t5xxl_tiny": ("t5xxl_tiny", "ltxv"),
}
SLOW_ENCODERS = {
    "umt5xxl_tiny": ("umt5xxl_tiny", "wan"),
    "qwen25vl_tiny": ("qwen25vl_tiny", "qwen_image"),
    "qwen3_8b_tiny": ("qwen3_8b_tiny", "flux2"),
}


@pytest.mark.parametrize("name", [*ENCODERS, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW_ENCODERS)])
def test_text_encoder_equals_the_app(sim, name):
    clip, clip_type = (ENCODERS | SLOW_ENCODERS)[name]
    prompt = encoding(clip=clip, clip_type=clip_type)
    reference = saved(sim, prompt)
    sim.sim_configure(bandwidth=SLOW_LINK)
    for placement in PLACEMENTS:
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {CLIP: {"placement": placement}})) == reference, placement
    sim.free()
    assert saved(sim, applied(prompt, CLIP, "clip", 1, clip_placement="layerwise")) == reference
    sim.free()
    assert saved(sim, with_our_loaders(prompt, {CLIP: {}}, {"mode": "memory"})) == reference
    report = report_of(sim, "text_encoder")
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    assert report["settings"]["placement"]["source"] == "policy"


def test_an_output_projection_that_no_encoding_calls_does_not_size_the_ring(faulty):
    """Qwen3 8B, as Flux 2 Klein has it: its lm_head is three times a block. There is room for it once, not three times.

    In full size it is a layer of its own because it has more than 64 MB; here a lower limit makes it one.
    """
    prompt = encoding(clip="qwen3_8b_tiny", clip_type="flux2")
    reference = saved(faulty, prompt)
    faulty.free()
    faulty.post("/fault", {"name": "single_layers_from", "at": 4})
    faulty.sim_configure(bandwidth=SLOW_LINK)
    assert saved(faulty, with_our_loaders(prompt, {CLIP: {}}, {"mode": "memory"})) == reference
    report = report_of(faulty, "text_encoder")
    plan, visits = report["plan"], report["summary"]["visits"]
    sizes = {layer["name"].rpartition(".")[2]: layer["bytes"] for layer in plan["layers"]}
    block, projection = sizes["0"], sizes["lm_head"]
    assert len(sizes) == visits + 1, "every layer but the projection is called"
    assert 3 * block < projection < 4 * block
    assert projection <= plan["ring_bytes"] + plan["resident_bytes"] < 2 * projection


def test_two_encoders_in_one_clip_equal_the_app(sim):
    prompt = encoding()
    tiny_models.ensure("t5xxl_tiny")
    files = {
        f"clip_name{number}": tiny_models.file_name(name) for number, name in ((1, "clip_l_tiny"), (2, "t5xxl_tiny"))
    }
    prompt[CLIP] = node("DualCLIPLoader", **files, type="flux")
    reference = saved(sim, prompt)
    assert reference != saved(sim, encoding())
    sim.sim_configure(bandwidth=SLOW_LINK)
    for options in ({}, {"mode": "memory"}):
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {CLIP: {}}, options)) == reference
    layers = report_of(sim, "text_encoder")["plan"]["layers"]
    assert {"clip_l", "t5xxl"} <= {layer["name"].split(".")[0] for layer in layers}
    swapped = with_our_loaders(prompt, {CLIP: {"clip_name1": files["clip_name2"], "clip_name2": files["clip_name1"]}})
    assert saved(sim, swapped) == reference, "the app tells the encoders apart by themselves"


@pytest.mark.long
def test_an_encoder_in_two_files_equals_the_app(sim):
    """LTX-2's: Gemma, and a file with the projection and the connectors of the diffusion model."""
    prompt = pair()
    reference = saved(sim, prompt)
    sim.sim_configure(bandwidth=SLOW_LINK)
    for options in ({}, {"mode": "memory"}):
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {CLIP: {}}, options)) == reference, options
    layers = report_of(sim, "text_encoder")["plan"]["layers"]
    assert sum("gemma3_12b.transformer.model.layers" in layer["name"] for layer in layers) == 48
    assert any(layer["placement"] == "streamed" for layer in layers)
    sim.free()
    assert saved(sim, applied(prompt, CLIP, "clip", 1, clip_placement="layerwise")) == reference


def pair() -> dict:
    """A prompt that only encodes a text with LTX-2's encoder."""
    names = ("gemma3_12b_tiny", "ltxav_projection_tiny")
    tiny_models.ensure(*names)
    files = {f"clip_name{number}": tiny_models.file_name(name) for number, name in enumerate(names, start=1)}
    return {**encoding(), CLIP: node("DualCLIPLoader", **files, type="ltxv")}


def test_text_encoder_on_the_cpu_equals_the_apps(sim):
    prompt = encoding()
    prompt[CLIP]["inputs"]["device"] = "cpu"
    reference = saved(sim, prompt)
    sim.free()
    used = sim.sim_stats()["used"]
    assert saved(sim, with_our_loaders(prompt, {CLIP: {"placement": "cpu"}})) == reference
    assert sim.sim_stats()["used"] <= used


@pytest.mark.parametrize("decode", ["VAEDecode", pytest.param("VAEDecodeTiled", marks=pytest.mark.long)])
def test_vae_equals_the_app(sim, decode):
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    prompt = decoding(decode=decode, size=128, **(tiles if decode == "VAEDecodeTiled" else {}))
    reference = saved(sim, prompt)
    sim.sim_configure(bandwidth=SLOW_LINK)
    for placement in PLACEMENTS:
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {VAE: {"placement": placement}})) == reference, placement
    sim.free()
    assert saved(sim, applied(prompt, VAE, "vae", 2, vae_placement="layerwise")) == reference
    sim.free()
    assert saved(sim, with_our_loaders(prompt, {VAE: {}}, {"mode": "memory"})) == reference
    assert any(layer["placement"] == "streamed" for layer in report_of(sim, "vae")["plan"]["layers"])


def test_vae_precision_auto_is_the_apps_and_explicit_wins(sim):
    prompt = decoding()
    reference = saved(sim, prompt)
    digests = {}
    for precision in ("auto", "bf16", "fp32"):
        sim.free()
        digests[precision] = saved(sim, with_our_loaders(prompt, {VAE: {"precision": precision}}))
    assert digests["auto"] == reference
    assert digests["bf16"] != digests["fp32"]


def test_image_encoder_equals_the_app(sim):
    prompt = looking()
    reference = saved(sim, prompt)
    sim.sim_configure(bandwidth=SLOW_LINK)
    for placement in PLACEMENTS:
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {"1": {"placement": placement}})) == reference, placement
    sim.free()
    assert saved(sim, applied(prompt, "1", "clip_vision", 3, clip_vision_placement="layerwise")) == reference
    sim.free()
    assert saved(sim, with_our_loaders(prompt, {"1": {}}, {"mode": "memory"})) == reference
    assert any(layer["placement"] == "streamed" for layer in report_of(sim, "image_encoder")["plan"]["layers"])


@pytest.mark.parametrize("family", ["flux", pytest.param("sd15", marks=pytest.mark.long)])
def test_controlnet_in_the_step_equals_the_app_and_shares_the_ring(sim, family):
    plain = saved(sim, build(family))
    prompt = with_controlnet(build(family), f"controlnet_{family}")
    reference = saved(sim, prompt)
    assert reference != plain, "the ControlNet does nothing"
    sim.sim_configure(bandwidth=SLOW_LINK)
    for placement in ("auto", "layerwise", "resident"):
        sim.free()
        ours = with_our_loaders(prompt, {CONTROL_NET: {"placement": placement}})
        assert saved(sim, ours) == reference, placement
    sim.free()
    assert saved(sim, applied(prompt, CONTROL_NET, "control_net", 4, control_net_placement="layerwise")) == reference
    sim.free()
    both = {MODEL: {"placement": "layerwise"}, CONTROL_NET: {"placement": "layerwise", "budget_gb": 0.02}}
    ours = with_our_loaders(prompt, both, {"mode": "memory", "dit_budget_gb": 0.05})
    assert saved(sim, ours) == reference
    for name in ("dit", "controlnet"):
        assert any(layer["placement"] == "streamed" for layer in report_of(sim, name)["plan"]["layers"]), name


def test_checkpoint_equals_the_app(sim):
    prompt = from_checkpoint(build("sd15"), "sd15_checkpoint")
    reference = saved(sim, prompt)
    for widgets in ({}, {"placement": "layerwise", "budget_gb": 0.05, "clip_placement": "layerwise"}):
        sim.free()
        assert saved(sim, with_our_loaders(prompt, {MODEL: widgets})) == reference
    assert {"dit", "text_encoder"} <= {component["component"] for component in sim.report()["components"]}


def test_with_the_app_on_the_cpu_all_loaders_step_aside(cpu):
    def picture(prompt) -> str:
        result = cpu.run(prompt).check()
        return pixels.sha256(cpu.images(result) + cpu.latents(result))

    prompt = build("flux")
    reference = picture(prompt)
    for ours in (with_our_loaders(prompt, {MODEL: {}, CLIP: {}, VAE: {}}), all_in_one(prompt, mode="memory")):
        cpu.free()
        assert picture(ours) == reference
