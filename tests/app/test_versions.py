"""The pack in every ComfyUI version it is for: it works, bit for bit, or says at load and on the node what is missing.

`python3 dev.py versions` runs all of them, and with `--comfyui PATH` only the tree that is named; an ordinary run tries
the oldest (the others' tiers run in the newest).
"""

from pathlib import Path

import pytest

from tests.app.test_apply_only import LOADER, upscaled
from tests.support import pixels, saved_weights, tiny_models
from tests.support.devkit import apps
from tests.support.devkit.versions import APP_RELEASES, OLDEST_APP
from tests.support.workflows import (
    CLIP,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SAMPLER,
    VAE,
    all_in_one,
    applied,
    build,
    from_checkpoint,
    node,
    with_our_loaders,
)

pytestmark = pytest.mark.app

SLOW_LINK = 300_000_000
LACKING_PACK = Path(__file__).parent / "lacking_pack"
PROBE_PACK = Path(__file__).parent / "probe_pack"


def saved(server, prompt) -> str:
    """The digest of what a run of `prompt` saved; the device is empty afterwards."""
    return streamed(server, prompt)[1]


def streamed(server, prompt) -> tuple[set[str], str]:
    """The components of which layers were streamed in a run of `prompt`, and the digest of what it saved."""
    result = server.run(prompt).check()
    names = {
        component["component"]
        for component in server.report()["components"]
        if any(layer["placement"] == "streamed" for layer in component["plan"]["layers"])
    }
    arrays = server.latents(result) + server.images(result)
    pixels.assert_sane(arrays)
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
    server.free()
    return names, pixels.sha256(arrays)


def names():
    """The known versions, and the app under test where `--comfyui PATH` names a tree."""
    for version in APP_RELEASES:
        yield version if version == OLDEST_APP else pytest.param(version, marks=pytest.mark.long)
    if (app := apps.under_test()).is_own_tree:
        yield pytest.param(app.name, id="tree")


@pytest.mark.parametrize("name", list(names()))
def test_the_pack_works_in(name, app_server_factory):
    app = apps.find(name)
    if not app.tree.is_dir():
        pytest.skip(f"python3 dev.py setup --comfyui {name}")
    server = app_server_factory("sim", version=name, bandwidth=SLOW_LINK)
    assert f"Layerwise Offload on ComfyUI {app.version}" in server.log()
    used = server.sim_stats()["used"]
    for lora, loader in ((None, "layerwise"), (0.8, "layerwise"), (0.8, "apply")):
        reference = saved(server, build("flux", lora=lora))
        ours = build("flux", loader, lora=lora, placement="layerwise", budget_gb=0.03)
        assert streamed(server, ours) == ({"dit"}, reference), (loader, lora)
    prompts = [
        (build("flux"), (CLIP,), {"text_encoder"}),
        (build("wan"), (MODEL, VAE), {"dit", "vae"}),
        (from_checkpoint(build("sd15", steps=1), "sd15_checkpoint"), (MODEL,), {"dit", "text_encoder"}),
    ]
    for prompt, loaders, components in prompts:
        reference = saved(server, prompt)
        ours = with_our_loaders(prompt, dict.fromkeys(loaders, {}), {"mode": "memory"})
        assert streamed(server, ours) == (components, reference)
    streams = {MODEL: {"placement": "layerwise", "budget_gb": 0.03}, CLIP: {"placement": "layerwise"}}
    models, encoders = zip(*(files_saved(server, settings) for settings in ({}, streams)))
    assert models[0] == models[1] and len(models[0]) > 100, "a model that is saved after it was streamed"
    assert encoders[0] == encoders[1] and len(encoders[0]) > 50, "a patched text encoder that is saved"
    assert server.sim_stats()["used"] <= used, "device bytes were left behind"


def files_saved(server, settings):
    """What is in the file of a patched model, and in those of a patched text encoder alone and in a checkpoint."""
    tiny_models.ensure("lora_clip_l_tiny")
    prompt = build("flux", lora=0.8)
    lora = {"lora_name": tiny_models.file_name("lora_clip_l_tiny"), "strength_model": 0.0, "strength_clip": 0.7}
    model, clip = prompt[SAMPLER]["inputs"]["model"], ["65", 1]
    prompt["65"] = node("LoraLoader", model=[MODEL, 0], clip=prompt[POSITIVE]["inputs"]["clip"], **lora)
    for consumer in (POSITIVE, NEGATIVE):
        prompt[consumer]["inputs"]["clip"] = clip
    prompt["91"] = node("ModelSave", model=model, filename_prefix="diffusion_models/version")
    prompt["92"] = node("CLIPSave", clip=clip, filename_prefix="clip/encoder")
    prompt["93"] = node("CheckpointSave", model=[MODEL, 0], clip=clip, vae=[VAE, 0], filename_prefix="checkpoints/all")
    server.run(with_our_loaders(prompt, settings)).check()
    files = [saved_weights.take(server.base / "output", prefix) for prefix in ("version", "encoder", "all")]
    server.free()
    return files[0], {**files[1], **files[2]}


@pytest.mark.parametrize(
    "lacking, name",
    [
        ({}, "comfy.sd.load_checkpoint_guess_config(te_model_options)"),
        ({"LACKING": "weight_wrapper_patches"}, "ModelPatcher(...).weight_wrapper_patches"),
    ],
    ids=["a function", "an attribute of patchers"],
)
def test_an_app_that_lacks_something_is_refused_in_the_log_and_on_the_node(app_server_factory, lacking, name):
    server = app_server_factory("sim", extra_packs=(LACKING_PACK,), env=lacking)
    what = f"lacks {name}; the pack works from ComfyUI 0.16.3 on"
    assert what in server.log()
    result = server.run(all_in_one(build("flux")))
    assert result.status == "error"
    assert what in result.message
    if not lacking:  # the app itself can do without the function
        assert what in server.run(build("flux", "apply")).message
        server.run(build("flux")).check()  # its own nodes are not our business


def test_an_upscale_model_that_its_node_moves_itself_is_handed_on(app_server_factory):
    """The oldest version's upscale models have no patcher."""
    app = apps.find(OLDEST_APP)
    if not app.tree.is_dir():
        pytest.skip(f"python3 dev.py setup --comfyui {OLDEST_APP}")
    server = app_server_factory("sim", version=OLDEST_APP, bandwidth=SLOW_LINK, extra_packs=(PROBE_PACK,))
    reference = saved(server, upscaled())
    needs, output = "upscale_model", 7
    prompt = applied(upscaled(), LOADER, needs, output, upscale_model_placement="layerwise")
    result = server.run(prompt).check()
    assert pixels.sha256(server.latents(result)) == reference
    (entry,) = server.report()["bystanders"]
    assert (entry["component"], entry["why"]["code"]) == ("upscaler", "no_patcher")
