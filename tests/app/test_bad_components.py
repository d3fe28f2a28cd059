"""Every node with a wrong file or wrong settings: one clear error that names it, and the server goes on."""

import re

import pytest

from tests.app.test_components import decoding, encoding, looking, saved
from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import (
    APPLY,
    CLIP,
    CONTROL_NET,
    MODEL,
    OPTIONS,
    VAE,
    all_in_one,
    build,
    node,
    with_controlnet,
    with_our_loaders,
)

pytestmark = pytest.mark.app

FOLDERS = {
    "diffusion_models": "flux_tiny",
    "text_encoders": "clip_l_tiny",
    "vae": "vae_flux",
    "clip_vision": "clip_vision_tiny",
    "controlnet": "controlnet_flux",
}


def good_file(folder: str) -> bytes:
    name = FOLDERS[folder]
    tiny_models.ensure(name)
    return (paths.MODELS / folder / tiny_models.file_name(name)).read_bytes()


def loading(folder: str, name: str) -> dict:
    """A prompt in which our loader for `folder` loads the file `name`."""
    prompt, node_id, key = {
        "diffusion_models": (build("flux"), MODEL, "model_name"),
        "text_encoders": (encoding(), CLIP, "clip_name1"),
        "vae": (decoding(), VAE, "vae_name"),
        "clip_vision": (looking(), "1", "clip_name"),
        "controlnet": (with_controlnet(build("flux"), "controlnet_flux"), CONTROL_NET, "control_net_name"),
    }[folder]
    return with_our_loaders(prompt, {node_id: {key: name}})


WRONG_KINDS = [
    ("text_encoders", "vae", "VAE"),
    ("text_encoders", "diffusion_models", "diffusion model"),
    ("text_encoders", "clip_vision", "CLIP vision model"),
    ("vae", "text_encoders", "text encoder"),
    ("vae", "diffusion_models", "diffusion model"),
    ("clip_vision", "vae", "VAE"),
    ("clip_vision", "text_encoders", "text encoder"),
    ("controlnet", "vae", "VAE"),
    ("controlnet", "text_encoders", "text encoder"),
]


@pytest.mark.parametrize(("slot", "content", "word"), WRONG_KINDS)
def test_a_file_of_the_wrong_kind_is_refused_by_name_and_kind(sim, model_files, slot, content, word):
    name = model_files.put(slot, "wrong_kind.safetensors", good_file(content))
    result = sim.run(loading(slot, name))
    assert not result.ok
    assert name in result.message and f"it is a {word}" in result.message


def test_a_text_encoder_is_no_diffusion_model(sim, model_files):
    name = model_files.put("diffusion_models", "wrong_kind.safetensors", good_file("text_encoders"))
    result = sim.run(loading("diffusion_models", name))
    assert not result.ok and name in result.message


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "diffusion_models"])
def test_a_damaged_file_is_one_clear_error(sim, model_files, folder):
    before = sim.sim_stats()["used"]
    for number, content in enumerate((b"", b"no model" * 100, good_file(folder)[:5000])):
        name = model_files.put(folder, f"damaged_{number}.safetensors", content)
        result = sim.run(loading(folder, name))
        assert not result.ok
        assert name in result.message
    assert sim.sim_stats()["used"] <= before


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_missing_file_is_refused_by_name(sim, folder):
    result = sim.run(loading(folder, "not_there.safetensors"))
    assert not result.ok and "not_there.safetensors" in result.message


def test_the_loader_of_all_refuses_a_vae_where_a_text_encoder_belongs(sim, model_files):
    name = model_files.put("text_encoders", "wrong_kind.safetensors", good_file("vae"))
    result = sim.run(all_in_one(build("flux"), clip_name1=name))
    assert not result.ok and name in result.message and "it is a VAE" in result.message


def test_the_checkpoint_loader_names_a_damaged_file(sim, model_files):
    name = model_files.put("checkpoints", "damaged.safetensors", b"no model" * 100)
    prompt = build("flux")
    prompt[MODEL] = node("LayerwiseOffloadCheckpointLoader", ckpt_name=name, placement="auto")
    result = sim.run(prompt)
    assert not result.ok and name in result.message


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"vae_placement": "layerwise"}, "vae"),
        ({"image_encoder_budget_gb": 1.0}, "image_encoder"),
        ({"selection": "text_encoder, vocoder"}, "vocoder"),
    ],
)
def test_options_for_a_component_that_is_not_there(sim, options, word):
    result = sim.run(with_our_loaders(build("flux"), {MODEL: {}, CLIP: {}}, options))
    assert not result.ok
    assert word in result.message and "dit, text_encoder" in result.message


@pytest.mark.parametrize("selection", ["text encoder!", "a" * 200, "9lives"])
def test_a_selection_that_is_not_understood(sim, selection):
    result = sim.run(with_our_loaders(build("flux"), {MODEL: {}, CLIP: {}}, {"selection": selection}))
    assert not result.ok and selection[:9] in result.message


@pytest.mark.parametrize("selection", ["default", "all", "DIT,,text-encoder"])
def test_a_selection_of_groups_may_miss_some(sim, selection):
    sim.run(with_our_loaders(build("flux"), {MODEL: {}, CLIP: {}}, {"selection": selection})).check()


def test_a_mode_that_does_not_exist(sim):
    result = sim.run(with_our_loaders(build("flux"), {MODEL: {}}, {"mode": "turbo"}))
    assert not result.ok and "turbo" in result.message


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"dit_placement": "resident"}, {"dit_placement": "layerwise"}, "dit.placement"),
        ({"mode": "memory"}, {"mode": "manual"}, "mode"),
    ],
)
def test_two_options_nodes_that_contradict_each_other(sim, first, second, word):
    prompt = with_our_loaders(build("flux"), {MODEL: {}}, first)
    prompt["91"] = node("LayerwiseOffloadOptions", **second)
    prompt[APPLY] = node("LayerwiseOffloadApply", model=[MODEL, 0], placement="auto", options=["91", 0])
    prompt["8"]["inputs"]["model"] = [APPLY, 0]
    result = sim.run(prompt)
    assert not result.ok
    assert word in result.message and first.popitem()[1] in result.message
    prompt[APPLY]["inputs"]["options"] = [OPTIONS, 0]
    del prompt["91"]
    assert sim.run(prompt).ok, "the same node twice is no conflict"


@pytest.mark.parametrize("role", [CLIP, VAE])
def test_too_small_a_budget_names_the_smallest_that_works(sim, role):
    prompt = build("flux", vae="vae_flux")
    result = sim.run(with_our_loaders(prompt, {role: {"placement": "layerwise", "budget_gb": 0.0001}}))
    assert not result.ok
    smallest = float(re.search(r"at least ([0-9.]+) GB", result.message).group(1))
    assert sim.run(with_our_loaders(prompt, {role: {"placement": "layerwise", "budget_gb": smallest}})).ok


def test_apply_with_nothing_connected_does_nothing_and_gives_nothing(sim):
    prompt = build("flux")
    reference = saved(sim, prompt)
    prompt[APPLY] = node("LayerwiseOffloadApply", placement="auto")
    prompt["33"] = node("LayerwiseOffloadReport", value=[APPLY, 0])
    assert saved(sim, prompt) == reference


def test_the_cpu_cannot_be_asked_for_after_loading(sim):
    prompt = build("flux")
    prompt["91"] = node("LayerwiseOffloadOptions", text_encoder_placement="cpu")
    prompt[APPLY] = node("LayerwiseOffloadApply", clip=[CLIP, 0], placement="auto", options=["91", 0])
    prompt["5"]["inputs"]["clip"] = [APPLY, 1]
    result = sim.run(prompt)
    assert not result.ok and "placement = cpu" in result.message
