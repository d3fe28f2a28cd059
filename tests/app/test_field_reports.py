"""What people reported publicly of the app and of other packs, tried on streamed models: the app's own picture.

`docs/pains.md` names the threads.
"""

import pytest
from safetensors.torch import load_file, save_file

from tests.app.test_bit_identity import dit_report, outcome, smallest_budget_gb
from tests.app.test_patches import BLOCKS, BUDGET_GB, patch_file, with_patch  # noqa: F401 - one is a fixture
from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import LATENT, SAMPLER, build, node

pytestmark = pytest.mark.app

STREAMED = {"placement": "layerwise", "budget_gb": BUDGET_GB}
BETWEEN, SECOND_SAMPLER = "62", "63"


@pytest.mark.parametrize("kind", ["lokr", "dora"])
@pytest.mark.parametrize("family", ["flux", "flux_fp8"])
def test_the_same_seed_gives_the_same_picture_each_time(sim, patch_file, family, kind):  # noqa: F811
    """Seeds 1, 2, 1, 2, 1 of one loaded model, whose changed layers come from the host from the second run on."""
    budget = 1.5 * smallest_budget_gb(sim, family)
    sim.free()
    name = patch_file(kind, "flux_tiny", BLOCKS)
    references = {seed: outcome(sim, with_patch(build(family, seed=seed), name)) for seed in (1, 2)}
    assert references[1] != references[2] != outcome(sim, build(family, seed=2))
    sim.free()
    for number, seed in enumerate((1, 2, 1, 2, 1)):
        prompt = with_patch(build(family, "layerwise", seed=seed, placement="layerwise", budget_gb=budget), name)
        assert outcome(sim, prompt) == references[seed], number
    report = dit_report(sim)
    assert report["summary"]["passes"] == 5 * 2, "none of the runs was answered from the app's cache"
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    assert sim.sim_stats()["races"] == 0


def test_a_strength_of_zero_is_none(sim, patch_file):  # noqa: F811
    """On, at zero, away, on, another kind, away, on: nothing is left behind by what was there before."""
    lokr, dora = (patch_file(kind, "flux_tiny", BLOCKS) for kind in ("lokr", "dora"))
    none = outcome(sim, build("flux"))
    with_lokr, with_dora = (outcome(sim, with_patch(build("flux"), name, 1.0)) for name in (lokr, dora))
    assert len({none, with_lokr, with_dora}) == 3
    sim.free()
    steps = [(lokr, 1.0, with_lokr), (lokr, 0.0, none), (None, 0.0, none), (lokr, 1.0, with_lokr)]
    steps += [(dora, 1.0, with_dora), (None, 0.0, none), (lokr, 1.0, with_lokr)]
    for number, (name, strength, reference) in enumerate(steps):
        prompt = build("flux", "layerwise", **STREAMED)
        if name is not None:
            prompt = with_patch(prompt, name, strength)
        assert outcome(sim, prompt) == reference, number


def sampled_twice(prompt: dict, between: str) -> dict:
    """The prompt with a second sampler of the same model behind the first, and a node between the two."""
    first = prompt[SAMPLER]["inputs"]
    second = node("KSampler", **(first | {"latent_image": [BETWEEN, 0], "seed": 7, "denoise": 0.6}))
    changed = {**prompt, SECOND_SAMPLER: second, BETWEEN: node("ProbeUnload", latent=[SAMPLER, 0], how=between)}
    for key, entry in prompt.items():
        wires = {
            name: [SECOND_SAMPLER, 0] if value == [SAMPLER, 0] else value for name, value in entry["inputs"].items()
        }
        changed[key] = node(entry["class_type"], **wires)
    assert changed[SAMPLER]["inputs"]["latent_image"] == [LATENT, 0]
    return changed


@pytest.mark.parametrize("how", ["all", "free_memory", "one by one", "detach"])
def test_an_unload_between_two_samplers(sim, how):
    """The second sampler loads the model again, with its LoRA."""
    reference = outcome(sim, sampled_twice(build("flux", lora=0.8), "all"))
    sim.free()
    for loader in ("layerwise", "apply"):
        for seed in (2, 1):
            prompt = sampled_twice(build("flux", loader, lora=0.8, seed=seed, **STREAMED), how)
            picture = outcome(sim, prompt)
        assert picture == reference, loader
        sim.free()
    assert sim.sim_stats()["races"] == 0
    assert sim.sim_stats()["used"] <= sim.idle_bytes


def test_previews_in_mid_sampling_leave_the_latents_alone(app_server_factory, tmp_path):
    """A preview network that comes to the device in the first step and computes between the passes."""
    tiny_models.ensure("taef1")
    folder = tmp_path / "vae_approx"
    folder.mkdir()
    whole = load_file(paths.MODELS / tiny_models.RECIPES["taef1"].path)
    start = "taesd_decoder."
    decoder = {name.removeprefix(start): tensor for name, tensor in whole.items() if name.startswith(start)}
    decoder_file = folder / "taef1_decoder.safetensors"
    save_file(decoder, decoder_file)
    config = tmp_path / "folders.yaml"
    config.write_text(f"previews:\n  base_path: {tmp_path}\n  vae_approx: vae_approx\n")
    words = ("--preview-method", "taesd", "--extra-model-paths-config", str(config))
    server = app_server_factory("sim", extra_args=words)
    prompts = [build("flux", seed=seed, steps=4, lora=0.8) for seed in (1, 2)]
    references = [outcome(server, prompt) for prompt in prompts]
    for _ in range(2):
        server.free()
        for seed, reference in zip((1, 2), references):
            prompt = build("flux", "layerwise", seed=seed, steps=4, lora=0.8, **STREAMED)
            assert outcome(server, prompt) == reference
    assert server.sim_stats()["races"] == 0
    decoder_file.unlink()
    decoder_file.write_bytes(b"")
    assert not server.run(build("flux", seed=3)).ok, "the preview's file is read in each sampling: there were previews"
