"""Merging, saving and extracting while layers are streamed: values and files equal the app's."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.support import pixels, saved_weights
from tests.support.workflows import CLIP, LORA, MODEL, SAMPLER, VAE, build, node

pytestmark = pytest.mark.app

BUDGET_GB = 0.03
STREAMED = {"placement": "layerwise", "budget_gb": BUDGET_GB}


def settings(loader: str) -> dict:
    return {} if loader == "app" else STREAMED


def saved_file(server, prompt: dict, prefix: str) -> dict[str, str]:
    """Run the prompt, and read the newest file that it saved under `prefix`: digests of the tensors by name."""
    server.run(prompt).check()
    return saved_weights.take(server.base / "output", prefix)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("flux", 0.8),
        ("flux_fp8_scaled", 0.8),
        pytest.param("flux", None, marks=pytest.mark.long),
        pytest.param("flux_fp8_scaled", None, marks=pytest.mark.long),
    ],
)
def test_a_saved_model_is_the_apps(sim, family, lora):
    files = []
    for loader in ("app", "layerwise"):
        prompt = build(family, loader, lora=lora, **settings(loader))
        source = prompt[SAMPLER]["inputs"]["model"]
        sim.run(prompt).check()  # streamed, residents on the device, patched
        prompt["50"] = node("ModelSave", model=source, filename_prefix="diffusion_models/true")
        files.append(saved_file(sim, prompt, "true"))
        sim.free()
    assert files[0] == files[1] and len(files[0]) > 100
    if lora is not None:
        assert outcome(sim, build(family, "layerwise", lora=lora, **STREAMED)) == outcome(
            sim, build(family, "app", lora=lora)
        ), "saving has changed nothing"


def test_a_saved_checkpoint_is_the_apps(sim):
    files = []
    for loader in ("app", "layerwise"):
        prompt = build("flux", loader, lora=0.8, **settings(loader))
        if loader == "layerwise":
            name = prompt[CLIP]["inputs"].pop("clip_name")
            prompt[CLIP] = node(
                "LayerwiseOffloadCLIPLoader", clip_name1=name, type="stable_diffusion", placement="layerwise"
            )
        prompt["50"] = node(
            *("CheckpointSave",),
            **{"model": prompt[SAMPLER]["inputs"]["model"], "clip": [CLIP, 0], "vae": [VAE, 0]},
            filename_prefix="checkpoints/true",
        )
        files.append(saved_file(sim, prompt, "true"))
        sim.free()
    assert files[0] == files[1] and len(files[0]) > 200


def test_a_merge_of_streamed_models_is_the_apps(sim):
    """Two models, one of them patched and already on the device, are merged and sampled; then saved."""

    def merged(loader: str, model: str, seed: int = 1) -> dict:
        prompt = build("flux", loader, lora=0.8, seed=seed, **settings(loader))
        second = build("flux", loader, model=model, **settings(loader))[MODEL]
        prompt["40"] = second
        prompt["41"] = node("ModelMergeSimple", model1=[LORA, 0], model2=["40", 0], ratio=0.3)
        prompt["108"] = node("KSampler", **{**prompt[SAMPLER]["inputs"], "model": ["41", 0]})
        prompt["112"] = node("SaveLatent", samples=["108", 0], filename_prefix="latents/merged")
        return prompt

    results = {}
    for loader in ("app", "layerwise"):
        sim.run(build("flux", loader, model="flux_tiny_fp8", weight_dtype="default", **settings(loader))).check()
        sim.sim_reset()
        prompt = merged(loader, "flux_tiny_fp8")
        result = sim.run(prompt).check()
        latents = [pixels.sha256(sim.latents(result, node=number)) for number in ("12", "112")]
        assert latents[0] != latents[1]
        prompt["50"] = node("ModelSave", model=["41", 0], filename_prefix="diffusion_models/merged")
        results[loader] = (latents, saved_file(sim, prompt, "merged"))
        assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]
        sim.free()
    assert results["layerwise"] == results["app"]


@pytest.mark.parametrize(("merge", "weight"), [("ModelMergeAdd", {}), ("ModelMergeSimple", {"ratio": 0.3})])
def test_a_merge_with_weights_of_the_same_streamed_model_is_the_apps(sim, merge, weight):
    """One with a LoRA and one without, over one module not loaded before: what is added is the untouched
    weight, although by then the module's weights are to be others."""

    def merged(loader: str) -> dict:
        prompt = build("flux", loader, lora=0.8, **settings(loader))
        prompt["41"] = node(merge, model1=[LORA, 0], model2=[MODEL, 0], **weight)
        prompt[SAMPLER]["inputs"]["model"] = ["41", 0]
        return prompt

    reference = outcome(sim, merged("app"))
    sim.free()
    assert outcome(sim, merged("layerwise")) == reference
    assert sim.sim_stats()["races"] == 0


def test_an_extracted_lora_is_the_apps(sim):
    files = []
    for loader in ("app", "layerwise"):
        prompt = build("flux", loader, lora=0.8, **settings(loader))
        sim.run(prompt).check()
        prompt["45"] = node("ModelMergeSubtract", model1=[LORA, 0], model2=[MODEL, 0], multiplier=1.0)
        prompt["50"] = node(
            *("LoraSave",),
            **{"filename_prefix": "loras/extracted", "rank": 4, "lora_type": "full_diff", "bias_diff": True},
            model_diff=["45", 0],
        )
        files.append(saved_file(sim, prompt, "extracted"))
        if loader == "layerwise":
            assert any(layer["placement"] == "streamed" for layer in dit_report(sim)["plan"]["layers"])
        sim.free()
    assert files[0] == files[1] and len(files[0]) > 50
