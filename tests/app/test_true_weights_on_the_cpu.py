"""Where layers are streamed from a file of another type than the model's: what is saved and merged equals the app's.

On the CPU the app computes in another type than most files have. Ours leave the weights in the file, as they are there.
"""

import pytest

from tests.support import pixels, saved_weights
from tests.support.workflows import CLIP, MODEL, SAMPLER, VAE, build, node, with_our_loaders

pytestmark = pytest.mark.app

STREAMED = {"placement": "layerwise", "budget_gb": 0.05}
OURS = {MODEL: STREAMED, CLIP: STREAMED, VAE: STREAMED}


def tiers(server) -> dict[str, dict]:
    return {one["component"]: one["summary"]["host_bytes"] for one in server.report()["components"]}


def saved_by(server, saver: str, prefix: str, settings: dict, **wires) -> dict[str, str]:
    """What `saver` writes, by tensor; `wires` are its inputs."""
    prompt = build("flux", lora=0.8, vae="vae_flux")
    wires = {name: prompt[SAMPLER]["inputs"]["model"] if wire is SAMPLER else [wire, 0] for name, wire in wires.items()}
    prompt = with_our_loaders(prompt, settings)
    prompt["90"] = node(saver, filename_prefix=f"{prefix}/types", **wires)
    server.run(prompt).check()
    if settings:
        mapped = tiers(server)
        assert mapped["dit"]["mapped"] and mapped["vae"]["mapped"], mapped
    found = saved_weights.take(server.base / "output", "types")
    server.free()
    return found


@pytest.mark.parametrize(
    ("saver", "prefix", "wires"),
    [
        ("ModelSave", "diffusion_models", {"model": SAMPLER}),
        ("CheckpointSave", "checkpoints", {"model": MODEL, "clip": CLIP, "vae": VAE}),
        ("VAESave", "vae", {"vae": VAE}),
    ],
)
def test_a_saved_file_is_the_apps(cpu, saver, prefix, wires):
    apps, ours = (saved_by(cpu, saver, prefix, settings, **wires) for settings in ({}, OURS))
    assert len(apps) > 100 and any("float32" in entry for entry in apps.values())
    assert apps == ours


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_a_merge_is_the_apps(cpu, weight_dtype):
    latents = []
    for settings in ({}, {MODEL: STREAMED}):
        prompt = build("flux", lora=0.8)
        prompt[MODEL]["inputs"]["weight_dtype"] = weight_dtype
        merged = {"model1": prompt[SAMPLER]["inputs"]["model"], "model2": [MODEL, 0], "ratio": 0.3}
        prompt["41"] = node("ModelMergeSimple", **merged)
        prompt[SAMPLER]["inputs"]["model"] = ["41", 0]
        latents.append(pixels.sha256(cpu.latents(cpu.run(with_our_loaders(prompt, settings)).check())))
        cpu.free()
    assert latents[0] == latents[1]
