"""Patches (LoRA and the like) on streamed models: applied on arrival, equal to the app's fully loaded model.

What the app does with a file that changes a model is the reference, whatever that is: each kind is compared with the
app's own loader on the same file.
"""

import pytest

from tests.app.test_bit_identity import dit_report, outcome, smallest_budget_gb
from tests.app.test_components import encoding, saved
from tests.support import pixels
from tests.support.patch_files import PatchFiles
from tests.support.workflows import CLIP, LORA, MODEL, POSITIVE, SAMPLER, build, node, with_our_loaders

pytestmark = pytest.mark.app

BLOCKS = ("double_blocks.1.img_mlp", "single_blocks.2.linear1", "double_blocks.3.txt_attn.qkv")
UNET_BLOCKS = ("input_blocks.1", "middle_block", "output_blocks.3")
BUDGET_GB = 0.03


@pytest.fixture(scope="module")
def patch_file():
    files = PatchFiles()
    yield files.make
    files.close()


def with_patch(prompt: dict, name: str, strength: float = 0.8) -> dict:
    """The prompt with the file's changes between the model's loader and whatever it went to."""
    taker = next(entry for key, entry in prompt.items() if entry["inputs"].get("model") == [MODEL, 0])
    taker["inputs"]["model"] = [LORA, 0]
    patch = node("LoraLoaderModelOnly", model=[MODEL, 0], lora_name=name, strength_model=strength)
    return {**prompt, LORA: patch}


def long(*values):
    return pytest.param(*values, marks=pytest.mark.long)


def equal_to_the_app(sim, family: str, name: str, loaders=("layerwise",), strength=0.8, **settings) -> dict:
    """Compare with and without the file. Returns the report of the patched run."""
    reference = outcome(sim, with_patch(build(family, "app"), name, strength))
    plain = outcome(sim, build(family, "app"))
    assert reference != plain, "a file that changes nothing proves nothing"
    for loader in loaders:
        sim.free()
        sim.sim_reset()
        assert outcome(sim, with_patch(build(family, loader, **settings), name, strength)) == reference
        report = dit_report(sim)
        assert outcome(sim, build(family, loader, **settings)) == plain, "what was taken out leaves no trace"
        assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    assert report["summary"]["revised_layers"] > 0
    sim.free()
    return report


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft", "boft", "glora", long("diff"), "set_weight"])
def test_every_kind_on_flux(sim, patch_file, kind):
    strength = 1.0 if kind == "boft" else 0.8  # at any other the app mixes types, logs an error and changes nothing
    equal_to_the_app(sim, "flux", patch_file(kind, "flux_tiny", BLOCKS), strength=strength, budget_gb=BUDGET_GB)


@pytest.mark.long
def test_a_lora_behind_apply(sim, patch_file):
    name = patch_file("lora", "flux_tiny", BLOCKS)
    equal_to_the_app(sim, "flux", name, loaders=("apply",), budget_gb=BUDGET_GB)


@pytest.mark.parametrize("kind", ["lora", long("diff")])
def test_convolutions_of_a_unet(sim, patch_file, kind):
    budget = smallest_budget_gb(sim, "sd15")
    sim.free()
    equal_to_the_app(sim, "sd15", patch_file(kind, "sd15_unet", UNET_BLOCKS), budget_gb=budget)


@pytest.mark.parametrize("family", ["flux_fp8", "flux_fp8_scaled", long("flux_int8"), "flux_nvfp4", long("flux_mxfp8")])
def test_a_lora_on_quantised_weights_is_rounded_as_the_app_rounds(sim, patch_file, family):
    budget = smallest_budget_gb(sim, family)
    sim.free()
    equal_to_the_app(sim, family, patch_file("lora", "flux_tiny", BLOCKS), budget_gb=1.5 * budget)


def test_weights_outside_layers_are_patched_too(sim, patch_file):
    equal_to_the_app(sim, "flux", patch_file("diff", "flux_tiny", ("txt_in", "final_layer", *BLOCKS)), budget_gb=0.03)


@pytest.mark.parametrize(("clip", "kind", "where"), [
    ("clip_l_tiny", "stable_diffusion", "text_model.encoder.layers"),
    ("t5xxl_tiny", "ltxv", "encoder.block"),
])  # fmt: skip
def test_a_lora_on_an_encoder(sim, patch_file, clip, kind, where):
    prefix = "text_encoders.clip_l.transformer." if clip == "clip_l_tiny" else "text_encoders.t5xxl.transformer."
    name = patch_file("lora", clip, (where,), prefix)

    def patched(prompt: dict) -> dict:
        prompt["30"] = node("UNETLoader", unet_name="flux_tiny.safetensors", weight_dtype="default")
        prompt["31"] = node(
            *("LoraLoader",),
            **{"model": ["30", 0], "clip": [CLIP, 0], "lora_name": name, "strength_model": 0.0, "strength_clip": 0.7},
        )
        prompt[POSITIVE]["inputs"]["clip"] = ["31", 1]
        return prompt

    plain = saved(sim, encoding(clip=clip, clip_type=kind))
    reference = saved(sim, patched(encoding(clip=clip, clip_type=kind)))
    assert reference != plain
    sim.free()
    ours = with_our_loaders(encoding(clip=clip, clip_type=kind), {CLIP: {"placement": "layerwise"}})
    assert saved(sim, patched(with_our_loaders(encoding(clip=clip, clip_type=kind), {CLIP: {"placement": "layerwise"}}))
                 ) == reference  # fmt: skip
    assert saved(sim, ours) == plain


# ---------------------------------------------------------------------- shapes


def test_an_input_that_a_patch_widens_is_right_outside_layers(sim, patch_file):
    """As the app does it: what comes of a widened projection is the app's own affair, an error included."""
    name = patch_file("wider", "flux_tiny", ("img_in",))
    results = []
    for loader in ("app", "layerwise"):
        settings = {} if loader == "app" else {"placement": "layerwise", "budget_gb": BUDGET_GB}
        result = sim.run(with_patch(build("flux", loader, **settings), name))
        results.append(pixels.sha256(sim.latents(result)) if result.ok else result.message.splitlines()[0])
        sim.free()
    assert results[0] == results[1]


def test_a_streamed_layer_keeps_its_shapes_and_says_so(sim, patch_file):
    name = patch_file("wider", "flux_tiny", ("single_blocks.2.linear2",))
    result = sim.run(with_patch(build("flux", "layerwise", placement="layerwise", budget_gb=BUDGET_GB), name))
    assert not result.ok
    assert "single_blocks.2.linear2.weight to the shape" in result.message and "whole" in result.message
    assert "streamed layer diffusion_model.single_blocks.2," in result.message
    assert sim.run(build("flux", "layerwise", placement="layerwise", budget_gb=BUDGET_GB)).ok
    sim.free()
    results = []
    for loader in ("app", "layerwise"):  # as the message advises; what comes of the patch is the app's own affair
        ended = sim.run(with_patch(build("flux", loader, **({} if loader == "app" else {"placement": "whole"})), name))
        results.append(pixels.sha256(sim.latents(ended)) if ended.ok else ended.message.splitlines()[0])
        sim.free()
    assert results[0] == results[1] and "OffloadError" not in results[0]


# ---------------------------------------------------------------------- several patch sets


def two_samplers(loader: str, seed: int, strengths=(0.8, 0.3), **settings) -> dict:
    """One model, two LoRA strengths, each with its own sampler."""
    prompt = build("flux", loader, lora=strengths[0], seed=seed, **settings)
    lora = dict(prompt[LORA]["inputs"], strength_model=strengths[1])
    prompt["102"] = node("LoraLoaderModelOnly", **lora)
    prompt["108"] = node("KSampler", **{**prompt[SAMPLER]["inputs"], "model": ["102", 0]})
    prompt["112"] = node("SaveLatent", samples=["108", 0], filename_prefix="latents/other")
    return prompt


def both_latents(sim, prompt: dict) -> tuple[str, str]:
    result = sim.run(prompt).check()
    return pixels.sha256(sim.latents(result, node="12")), pixels.sha256(sim.latents(result, node="112"))


def test_clones_with_different_strengths_never_mix(sim):
    references = {seed: both_latents(sim, two_samplers("app", seed)) for seed in (1, 2)}
    assert references[1][0] != references[1][1]
    sim.free()
    sim.sim_reset()
    revised = []
    for seed in (1, 2, 1, 2):
        ours = two_samplers("layerwise", seed, placement="layerwise", budget_gb=BUDGET_GB)
        assert both_latents(sim, ours) == references[seed]
        revised.append(dit_report(sim)["summary"]["revised_layers"])
    assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]
    layers = dit_report(sim)["plan"]["layers"]
    residents = sum(layer["placement"] == "resident" for layer in layers)
    assert residents < len(layers) <= revised[0]
    assert revised[3] - revised[2] <= 2 * residents, (
        "what streams has a copy for each set; residents one place for both"
    )


def test_what_a_changed_strength_costs(sim, patch_file):
    """Only what the patch touches is done again, once; nothing is loaded anew. Another strength takes the memory of the
    one before; from the first return on both are kept, and going back and forth costs nothing."""
    name = patch_file("lora", "flux_tiny", BLOCKS)
    budget = smallest_budget_gb(sim, "flux")
    sim.free()
    reference = {s: outcome(sim, with_patch(build("flux", "app"), name, s)) for s in (0.8, 0.4)}
    sim.free()
    costs = []
    for strength, seed in ((0.8, 1), (0.8, 2), (0.4, 1), (0.4, 2), (0.8, 1), (0.4, 1), (0.8, 1)):
        prompt = with_patch(build("flux", "layerwise", budget_gb=budget, seed=seed), name, strength)
        before = dit_report(sim)["summary"] if costs else {}
        result = outcome(sim, prompt)
        assert seed == 2 or result == reference[strength]
        after = dit_report(sim)["summary"]
        keys = ("bytes_copied", "revised_layers", "copied_back", "passes")
        costs.append({key: after[key] - before.get(key, 0) for key in keys})
    plan = dit_report(sim)["plan"]
    assert not plan["resident_bytes"], "the smallest budget keeps no layer"
    assert [cost["revised_layers"] for cost in costs] == [3, 0, 3, 0, 3, 0, 0]
    assert [cost["passes"] for cost in costs] == [2] * 7
    unchanged = costs[1]["bytes_copied"]
    ring = plan["ring_bytes"]  # what look-ahead had fetched of the other set at the change
    assert unchanged and all(cost["bytes_copied"] <= unchanged + ring for cost in costs[2:])
    changed = sum(l["bytes"] for l in plan["layers"] if any(l["name"].endswith(n) for n in (  # noqa: E741
        "double_blocks.1", "single_blocks.2", "double_blocks.3")))  # fmt: skip
    assert [cost["copied_back"] for cost in costs] == [changed, 0, changed, 0, changed, 0, 0]


def test_a_lora_without_touching_weights_is_right(sim, patch_file):
    """The app's bypass mode: the low-rank path is added to the output of each layer it stands before."""
    name = patch_file("lora", "flux_tiny", BLOCKS)

    def bypassed(prompt: dict) -> dict:
        prompt = with_patch(prompt, name)
        return {**prompt, LORA: node("LoraLoaderBypassModelOnly", **prompt[LORA]["inputs"])}

    reference = outcome(sim, bypassed(build("flux", "app")))
    assert reference != outcome(sim, build("flux", "app"))
    sim.free()
    assert outcome(sim, bypassed(build("flux", "layerwise", budget_gb=BUDGET_GB))) == reference
    assert outcome(sim, build("flux", "layerwise", budget_gb=BUDGET_GB)) == outcome(sim, build("flux", "app"))
    assert sim.sim_stats()["races"] == 0
