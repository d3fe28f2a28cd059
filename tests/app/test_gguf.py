"""A GGUF pack's model behind Apply: streamed as the bytes it is stored in, equal to the pack's own patcher to the bit.

The pack is a double (`tests/support/gguf_pack`); what it shares with the real ones is said there.
"""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.app.test_components import encoding, report_of, saved
from tests.app.test_encoder_lora import lora as lora_of_encoder  # noqa: F401 - a fixture
from tests.app.test_encoder_lora import with_lora
from tests.support.patch_files import PatchFiles
from tests.support.saved_weights import take
from tests.support.workflows import CLIP, LORA, MODEL, SAMPLER, applied, build, node

pytestmark = pytest.mark.app

BUDGET_GB = 0.02
BLOCKS = ("double_blocks.1.img_mlp", "single_blocks.2.linear1", "double_blocks.3.txt_attn.qkv")


@pytest.fixture(scope="module")
def patch_file():
    files = PatchFiles()
    yield files.make
    files.close()


def gguf(loader: str, lora: float | None = None, lora_name: str = "", seed: int = 1, **widgets) -> dict:
    """Flux by the double's loader, with Apply behind it or not."""
    own = {name: widgets.pop(name) for name in ("patch_on_device", "moves") if name in widgets}
    prompt = build("flux", loader, lora=lora, seed=seed, **widgets)
    prompt[MODEL] = node("GGUFDoubleLoader", unet_name=prompt[MODEL]["inputs"]["unet_name"], **own)
    if lora_name:
        prompt[LORA]["inputs"]["lora_name"] = lora_name
    return prompt


STREAMED = {"placement": "layerwise", "budget_gb": BUDGET_GB}


def test_its_model_is_streamed_as_the_bytes_that_are_stored(sim):
    reference = outcome(sim, gguf("app"))
    assert reference != outcome(sim, build("flux")), "it is quantised"
    sim.free()
    before = sim.sim_stats()["used"]
    assert outcome(sim, gguf("apply", **STREAMED)) == reference
    report = dit_report(sim)
    streamed = [layer for layer in report["plan"]["layers"] if layer["placement"] == "streamed"]
    assert streamed and report["summary"]["peak_device_bytes"] <= BUDGET_GB * 1e9
    assert sum(layer["bytes"] for layer in report["plan"]["layers"]) < 50_000_000, "8 bits a weight, not 16"
    assert outcome(sim, gguf("app")) == reference, "and without us again"
    assert sim.sim_stats()["races"] == 0
    sim.free()
    assert sim.sim_stats()["used"] == before


@pytest.mark.parametrize("on_device", [False, True])
def test_a_lora_on_it_is_what_its_own_patcher_makes_of_it(sim, on_device):
    """Patches travel beside the bytes: another strength fetches nothing again, and none is left behind."""
    own = {"patch_on_device": on_device}
    plain = outcome(sim, gguf("app", **own))
    references = {strength: outcome(sim, gguf("app", lora=strength, **own)) for strength in (0.8, -0.5)}
    assert len({plain, *references.values()}) == 3
    sim.free()
    sim.sim_reset()
    for strength in (0.8, -0.5, 0.8):
        assert outcome(sim, gguf("apply", lora=strength, **own, **STREAMED)) == references[strength]
    report = dit_report(sim)
    assert report["summary"]["revised_layers"] == 0, "no byte of a quantised weight changes"
    assert outcome(sim, gguf("apply", **own, **STREAMED)) == plain
    assert outcome(sim, gguf("app", lora=0.8, **own)) == references[0.8]
    assert outcome(sim, gguf("apply", **own, **STREAMED)) == plain, "the pack's own patches are not left either"
    assert sim.sim_stats()["races"] == 0


def test_left_to_the_app_it_goes_its_own_packs_way(sim):
    """The placement `whole`, also behind another Apply node and by turns with streaming."""
    reference = outcome(sim, gguf("app", lora=0.8))
    sim.free()
    for placement in ("whole", "layerwise", "whole"):
        assert outcome(sim, gguf("apply", lora=0.8, placement=placement)) == reference
    twice = gguf("apply", lora=0.8, **STREAMED)
    twice["70"] = node("LayerwiseOffloadApply", model=twice[SAMPLER]["inputs"]["model"], placement="whole")
    twice[SAMPLER]["inputs"]["model"] = ["70", 0]
    assert outcome(sim, twice) == reference
    assert sim.sim_stats()["races"] == 0


def test_weights_that_are_not_quantised_are_patched_by_its_own_arithmetic(sim, patch_file):
    """A difference on weights in layers and outside them; where it is quantised it is carried."""
    name = patch_file("diff", "flux_tiny", ("txt_in", "final_layer", *BLOCKS))
    reference = outcome(sim, gguf("app", lora=0.8, lora_name=name))
    assert reference != outcome(sim, gguf("app"))
    sim.free()
    sim.sim_reset()
    assert outcome(sim, gguf("apply", lora=0.8, lora_name=name, **STREAMED)) == reference
    assert dit_report(sim)["summary"]["revised_layers"] == 0, "in the layers all that is patched is quantised"
    assert outcome(sim, gguf("apply", **STREAMED)) == outcome(sim, gguf("app"))
    assert sim.sim_stats()["races"] == 0


def test_two_strengths_over_one_model_never_mix(sim):
    def twice(loader: str, seed: int = 1, **widgets) -> dict:
        prompt = gguf(loader, lora=0.8, seed=seed, **widgets)
        source = prompt[SAMPLER]["inputs"]["model"]
        second = dict(prompt[LORA]["inputs"], model=source, strength_model=-0.5)
        prompt["102"] = node("LoraLoaderModelOnly", **second)
        prompt["108"] = node("KSampler", **{**prompt[SAMPLER]["inputs"], "model": ["102", 0]})
        prompt["112"] = node("SaveLatent", samples=["108", 0], filename_prefix="latents/other")
        return prompt

    references = {seed: outcome(sim, twice("app", seed)) for seed in (1, 2)}
    sim.free()
    for seed in (1, 2, 1):
        assert outcome(sim, twice("apply", seed, **STREAMED)) == references[seed]


def test_what_cannot_be_done_with_it_says_so(sim):
    refused = sim.run(gguf("apply", moves=True, **STREAMED))
    assert not refused.ok and "MovingModelPatcher" in refused.message and "its own way" in refused.message
    prompt = gguf("apply", **STREAMED)
    prompt["40"] = node(
        "CreateHookLoraModelOnly", lora_name=build("flux", lora=1.0)[LORA]["inputs"]["lora_name"], strength_model=0.9
    )
    prompt["41"] = node(
        *("ConditioningSetProperties",),
        **{"cond_NEW": prompt[SAMPLER]["inputs"]["positive"], "strength": 1.0, "set_cond_area": "default"},
        hooks=["40", 0],
    )
    prompt[SAMPLER]["inputs"]["positive"] = ["41", 0]
    hooked = sim.run(prompt)
    assert not hooked.ok and "schedule a LoRA" in hooked.message and "BlockModelPatcher" in hooked.message
    saved = gguf("apply", seed=2, **STREAMED)
    saved["50"] = node("ModelSave", model=saved[SAMPLER]["inputs"]["model"], filename_prefix="diffusion_models/no")
    ended = sim.run(saved)
    assert not ended.ok and "only its own pack can write" in ended.message
    assert sim.run(gguf("apply", seed=3, **STREAMED)).ok


def plain_encoder() -> dict:
    """An ordinary file by the double's loader for encoders, which gives it the same patcher."""
    prompt = encoding()
    prompt[CLIP] = node("GGUFDoubleCLIPLoader", **prompt[CLIP]["inputs"])
    return prompt


def test_an_ordinary_file_that_its_loader_takes_is_streamed_as_well(sim, lora_of_encoder):  # noqa: F811
    """The patcher is the pack's, and what it makes of a LoRA is rounded its own way; the weights are plain."""
    references = {
        strength: saved(sim, with_lora(plain_encoder(), lora_of_encoder, strength)) for strength in (0.8, -0.5)
    }
    plain = saved(sim, plain_encoder())
    assert len({plain, *references.values()}) == 3
    sim.free()

    def ours(strength):
        prompt = plain_encoder() if strength is None else with_lora(plain_encoder(), lora_of_encoder, strength)
        options = {"90": node("LayerwiseOffloadOptions", mode="memory")}
        return applied(prompt, CLIP, "clip", 1, clip_placement="auto", options=["90", 0]) | options

    for strength in (None, 0.8, -0.5, 0.8, None):
        assert saved(sim, ours(strength)) == (plain if strength is None else references[strength])
    report = report_of(sim, "text_encoder")
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"]) and report["warnings"] == []
    assert saved(sim, plain_encoder()) == plain, "and without us again"


def test_an_ordinary_file_of_its_loader_is_saved_as_the_apps_would_be(sim, lora_of_encoder):  # noqa: F811
    """That loader's own patcher cannot: it knows no way to be asked for one patched weight."""

    def saved_weights(prompt):
        prompt["50"] = node("CLIPSave", clip=["2", 1], filename_prefix="clip/of_the_pack")
        sim.run(prompt).check()
        return take(sim.base / "output", "of_the_pack")

    apps = saved_weights(with_lora(encoding(), lora_of_encoder, 0.8))
    assert apps != saved_weights(with_lora(encoding(), lora_of_encoder, -0.5))
    behind_ours = applied(plain_encoder(), CLIP, "clip", 1, clip_placement="layerwise")
    prompt = with_lora(behind_ours, lora_of_encoder, 0.8)
    prompt["2"]["inputs"]["clip"] = ["30", 1]
    assert saved_weights(prompt) == apps
