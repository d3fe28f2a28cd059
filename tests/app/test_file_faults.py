"""Weight files that come to harm under a streamed model, in the real app: one clear error, and the next prompt works.

Where the file is read into the ring (the CPU), where it is read through page-locked slots (the simulated accelerator,
with too little host memory for copies), and host memory that gets short while models are loaded.
"""

import os
import shutil
import time

import pytest

from tests.support import pixels, tiny_models
from tests.support.devkit import paths
from tests.support.workflows import MODEL, SAMPLER, VAE, build, node, with_our_loaders

FOLDER = paths.MODELS / "diffusion_models"
SOUND = FOLDER / tiny_models.file_name("flux_tiny")
BUDGET_GB = {"cpu": 0.05, "faulty": 0.03}
FROM_THE_FILE_MB = 1
"""So little host memory that no layer gets a copy."""


@pytest.fixture(params=["cpu", "faulty"])
def server(request):
    """One that streams from the file."""
    found = request.getfixturevalue(request.param)
    found.budget_gb = BUDGET_GB[request.param]
    if request.param == "faulty":
        found.post("/fault", {"name": "little_memory", "at": FROM_THE_FILE_MB})
    return found


def workflow(server, file, seed=1, more_gb=0.0, **settings):
    budget = server.budget_gb + more_gb
    prompt = build("flux", loader="layerwise", placement="layerwise", budget_gb=budget, seed=seed, **settings)
    prompt[MODEL]["inputs"]["model_name"] = file.name
    return prompt


def tiers(server):
    return next(one for one in server.report()["components"] if one["component"] == "dit")["summary"]["host_bytes"]


def spoil_in_place(file):
    with file.open("r+b") as content:
        content.seek(-100, os.SEEK_END)
        content.write(b"\0" * 100)


CHANGES = {
    "changed": (spoil_in_place, "its content was changed"),
    "truncated": (lambda file: os.truncate(file, 1 << 20), "truncated from"),
    "replaced": (lambda file: os.replace(shutil.copy(file, f"{file}.new"), file), "another file in its place"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_no_longer_what_was_loaded(server, own_file, change):
    """Found when the next prompt runs the model that is loaded; and after the error the sound file is loaded again."""
    picture = pixels.sha256(server.images(server.run(workflow(server, SOUND, seed=2)).check()))
    server.run(workflow(server, own_file)).check()
    assert tiers(server)["mapped"] and not tiers(server)["pinned"]
    what, words = CHANGES[change]
    what(own_file)
    result = server.run(workflow(server, own_file, seed=2))
    assert result.status == "error" and words in result.message, result.message
    assert own_file.name in result.message and "at byte" in result.message
    assert server.alive
    shutil.copy(SOUND, own_file)
    again = server.run(workflow(server, own_file, seed=2, more_gb=0.001)).check()
    assert pixels.sha256(server.images(again)) == picture


def test_a_file_that_changes_between_being_loaded_and_being_run(cpu, own_file):
    """The loader's node has run, the sampler has not: what lies outside the layers is still to be read as well."""
    cpu.budget_gb = BUDGET_GB["cpu"]
    prompt = workflow(cpu, own_file)
    refused = {**prompt, SAMPLER: {**prompt[SAMPLER], "inputs": {**prompt[SAMPLER]["inputs"], "steps": 1}}}
    cpu.post("/fault", {"name": "failure_before_load"})
    assert cpu.run(refused).status == "error"
    cpu.post("/fault", {"name": ""})
    os.truncate(own_file, 1 << 20)
    result = cpu.run(prompt)
    assert result.status == "error" and "truncated from" in result.message and own_file.name in result.message
    assert cpu.alive


def test_a_file_that_is_deleted_in_the_middle_of_a_run(server, own_file):
    picture = pixels.sha256(server.images(server.run(workflow(server, SOUND, seed=2)).check()))
    server.run(workflow(server, own_file)).check()
    server.post("/fault", {"name": "deleted", "at": 5, "keep": True})
    result = server.run(workflow(server, own_file, seed=2))
    assert result.status == "error" and "was deleted" in result.message and own_file.name in result.message
    server.post("/fault", {"name": ""})
    shutil.copy(SOUND, own_file)
    again = server.run(workflow(server, own_file, seed=2, more_gb=0.001)).check()
    assert pixels.sha256(server.images(again)) == picture


def test_reads_that_fail_in_the_middle_of_a_pass(server):
    reference = pixels.sha256(server.images(server.run(workflow(server, SOUND)).check()))
    server.free()
    server.post("/fault", {"name": "unreadable", "at": 30})
    if server.device == "sim":
        server.post("/fault", {"name": "little_memory", "at": FROM_THE_FILE_MB, "keep": True})
    result = server.run(workflow(server, SOUND))
    assert result.status == "error" and "Permission denied" in result.message and SOUND.name in result.message
    server.post("/fault", {"name": ""})
    assert pixels.sha256(server.images(server.run(workflow(server, SOUND)).check())) == reference


def test_a_user_who_gives_up_need_not_wait_for_a_slow_file(server):
    """A pass of it would take a minute: the prompt ends with the read that has begun, and the next one is right."""
    reference = pixels.sha256(server.images(server.run(workflow(server, SOUND, seed=2)).check()))
    server.free()
    server.run(workflow(server, SOUND)).check()
    server.post("/fault", {"name": "slow", "at": 5, "keep": True})
    waiting = server.submit(workflow(server, SOUND, seed=2))
    time.sleep(2)
    assert not server.get(f"/history/{waiting}")
    server.interrupt()
    assert server.wait(waiting, 15).status == "interrupted"
    server.post("/fault", {"name": ""})
    assert pixels.sha256(server.images(server.run(workflow(server, SOUND, seed=2)).check())) == reference


def test_host_memory_that_gets_short_is_given_back_with_the_next_prompt(faulty):
    faulty.budget_gb = BUDGET_GB["faulty"]
    reference = pixels.sha256(faulty.images(faulty.run(workflow(faulty, SOUND)).check()))
    before = tiers(faulty)
    assert before["pinned"] and faulty.sim_stats()["pinned"] >= before["pinned"]
    faulty.post("/fault", {"name": "little_memory", "at": FROM_THE_FILE_MB})
    faulty.run(workflow(faulty, SOUND, seed=2)).check()
    left = tiers(faulty)
    assert left["pinned"] < 0.7 * before["pinned"] and left["mapped"] > before["mapped"], (before, left)
    assert not left["pageable"]
    faulty.free()
    assert pixels.sha256(faulty.images(faulty.run(workflow(faulty, SOUND)).check())) == reference
    assert faulty.sim_stats()["races"] == 0


def test_a_device_that_computes_in_host_memory_gets_no_copies_beside_the_file(faulty):
    """As Apple's do. Here the simulated one is taken for such a device."""
    faulty.budget_gb = BUDGET_GB["faulty"]
    reference = pixels.sha256(faulty.images(faulty.run(build("flux", loader="app")).check()))
    faulty.free()
    faulty.post("/fault", {"name": "unified_memory"})
    for lora in (None, 0.8):
        result = faulty.run(workflow(faulty, SOUND, lora=lora)).check()
        held = tiers(faulty)
        assert held["mapped"] and not held["pinned"] and not held["pageable"], held
        if lora is None:
            assert pixels.sha256(faulty.images(result)) == reference
    assert faulty.sim_stats()["races"] == 0


def save_model(prompt):
    return {MODEL: prompt[MODEL], "90": node("ModelSave", model=[MODEL, 0], filename_prefix="diffusion_models/harm")}


def save_vae(prompt):
    return {VAE: prompt[VAE], "90": node("VAESave", vae=[VAE, 0], filename_prefix="vae/harm")}


@pytest.mark.parametrize("save", [save_model, save_vae])
def test_who_saves_weights_of_a_file_that_came_to_harm_is_told_and_the_server_lives(
    server, own_file, model_files, save
):
    """Saving reads all of them, where they are mapped: touching pages that are gone would end the process."""
    prompt = workflow(server, own_file, vae="vae_flux")
    spoiled = own_file
    if save is save_vae:
        sound = paths.MODELS / "vae" / prompt[VAE]["inputs"]["vae_name"]
        spoiled = sound.with_name(model_files.put("vae", "own.safetensors", sound))
        prompt = with_our_loaders(prompt, {VAE: {"placement": "layerwise", "budget_gb": 0.05}})
        prompt[VAE]["inputs"] |= {"vae_name": spoiled.name, "precision": "bf16"}
    server.run(prompt).check()
    os.truncate(spoiled, 1 << 15)
    result = server.run(save(prompt))
    assert result.status == "error" and "truncated from" in result.message and spoiled.name in result.message
    assert server.alive


def test_a_merge_with_weights_of_a_file_that_came_to_harm_is_an_error(server, own_file):
    """They are wanted whenever a layer of the other model arrives, long after the merge was made."""

    def merged(seed):
        prompt = workflow(server, SOUND, seed=seed)
        prompt[MODEL]["inputs"]["lora_mode"] = "on_arrival"
        prompt["40"] = workflow(server, own_file)[MODEL]
        prompt["41"] = node("ModelMergeSimple", model1=[MODEL, 0], model2=["40", 0], ratio=0.3)
        prompt[SAMPLER]["inputs"]["model"] = ["41", 0]
        return prompt

    server.run(merged(1)).check()
    os.truncate(own_file, 1 << 20)
    result = server.run(merged(2))
    assert result.status == "error" and "truncated from" in result.message and own_file.name in result.message
    assert server.alive
