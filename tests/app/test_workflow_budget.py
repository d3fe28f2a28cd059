"""One number for the weights of a workflow, and one for its system memory: held, told before, and said in every way."""

import json
import re

import pytest

from tests.app.test_apply_only import LOADER, SLOTS, controlled
from tests.app.test_before_the_run import by_name, expect
from tests.app.test_bit_identity import outcome
from tests.app.test_host_tier import ROADS, said
from tests.support.workflows import CLIP, MODEL, SAMPLER, VAE, applied, build, with_our_loaders

pytestmark = pytest.mark.app

NUMBER_GB = 0.06
HOST_GB = 0.05
TOO_LITTLE_FOR_TWO_GB = 0.15
"""For two of the diffusion model, which has 98.6 MB."""
MODEL_PATCH_OUTPUT = SLOTS["model_patch"][1]


def flux(**widgets) -> dict:
    return with_our_loaders(build("flux", vae="vae_flux"), {MODEL: widgets, CLIP: {}, VAE: {}})


def weights_on_device(server) -> int:
    """Bytes of all components of ours on the device, the shared ring once."""
    (device,) = server.report()["devices"]
    return device["ring_bytes"] + device["resident_bytes"] + device["loose_bytes"]


def copies(server) -> int:
    host = server.report()["host"]
    return host["pinned_bytes"] + host["pageable_bytes"]


def parts(components: list[dict]) -> dict[str, int]:
    """What each component may take in its turn. Its `budget_bytes` are less once it had to give some back."""
    return {name: component["settings"]["budget_bytes"]["value"] for name, component in by_name(components).items()}


def most_beside_weights(server, text: str) -> int:
    """The most bytes on the device at any time of a run beside the weights, when the app has all of them there."""
    prompt = build("flux", vae="vae_flux", text=text)
    before = server.sim_reset()["used"]
    server.run(prompt).check()
    stats = server.sim_stats()
    assert stats["used"] == before, "it loaded something: nothing was measured"
    return stats["peak"] - before


@pytest.mark.parametrize("road", ROADS)
def test_the_number_is_kept_and_told_before_and_the_picture_is_the_same(sim, road):
    reference = outcome(sim, build("flux", vae="vae_flux"))
    activations = most_beside_weights(sim, "a harbour")
    sim.free()
    sim.sim_reset()
    prompt = said(road, flux(), workflow_budget_gb=NUMBER_GB)
    told = expect(sim, prompt)
    assert outcome(sim, prompt) == reference
    assert 0 < weights_on_device(sim) <= NUMBER_GB * 1e9
    assert sim.sim_stats()["peak"] - sim.idle_bytes - activations <= NUMBER_GB * 1e9, "at some time it held more"
    ran = sim.report()["components"]
    assert parts(ran).keys() == parts(told["components"]).keys() == {"dit", "text_encoder", "vae"}
    for name, part in parts(told["components"]).items():
        assert abs(parts(ran)[name] - part) <= 0.1 * part, name
    for component in (*told["components"], *ran):
        settings = component["settings"]
        assert settings["workflow_budget_bytes"]["value"] == NUMBER_GB * 1e9
        assert settings["workflow_budget_bytes"]["source"] == settings["budget_bytes"]["source"] == road
        assert settings["budget_bytes"]["why"]["code"] == "part_of_workflow"
    assert sim.report()["devices"][0]["budget_bytes"] == NUMBER_GB * 1e9
    assert parts(ran)["dit"] == NUMBER_GB * 1e9, "it gives up nothing for what runs once"
    assert sim.sim_stats()["races"] == 0


def test_each_prompt_is_divided_as_the_first_was(sim):
    divided = []
    for seed in (1, 2):
        prompt = flux()
        prompt[SAMPLER]["inputs"]["seed"] = seed
        sim.run(said("graph", prompt, workflow_budget_gb=NUMBER_GB)).check()
        assert weights_on_device(sim) <= NUMBER_GB * 1e9
        divided.append(parts(sim.report()["components"]))
    assert divided[0] == divided[1]


def test_system_memory_is_within_its_number_and_the_rest_is_read_from_the_file(sim):
    reference = outcome(sim, build("flux", vae="vae_flux"))
    sim.free()
    prompt = said("options", flux(), workflow_budget_gb=NUMBER_GB, workflow_host_gb=HOST_GB)
    assert outcome(sim, prompt) == reference
    assert 0 < copies(sim) <= HOST_GB * 1e9 and weights_on_device(sim) <= NUMBER_GB * 1e9
    dit = by_name(sim.report()["components"])["dit"]
    tiers = {layer["host_tier"] for layer in dit["plan"]["layers"] if layer["placement"] == "streamed"}
    assert "mapped" in tiers and sim.sim_stats()["races"] == 0


@pytest.mark.parametrize("road", ROADS)
def test_too_small_a_number_is_refused_with_the_smallest_that_works(sim, road):
    small = expect(sim, said(road, flux(), workflow_budget_gb=0.001))
    budget = small["budget"]
    assert (budget["component"], budget["setting"], budget["source"]) == ("all", "workflow_budget_gb", road)
    widgets = [{"node": "90", "widget": "workflow_budget_gb"}] if road == "options" else []
    assert budget["widgets"] == widgets and budget["asked_bytes"] == 1_000_000
    result = sim.run(said(road, flux(), workflow_budget_gb=0.001))
    assert not result.ok and "for the weights of the workflow" in result.message
    least_gb = float(re.search(r"give at least ([0-9.]+) GB", result.message)[1])
    assert least_gb <= budget["smallest_gb"] < least_gb + 0.01, "which a widget shows with fewer digits"
    enough = said(road, flux(), workflow_budget_gb=budget["smallest_gb"])
    assert "error" not in expect(sim, enough)
    sim.run(said(road, flux(), workflow_budget_gb=least_gb)).check()
    assert weights_on_device(sim) <= least_gb * 1e9


def test_a_number_for_one_component_is_refused(sim):
    prompt = flux()
    components = {"dit": {"workflow_budget_gb": 1}}
    prompt[MODEL]["inputs"]["graph_options"] = json.dumps({"schema": 1, "graph": {"components": components}})
    assert "for all components together" in expect(sim, prompt)["error"]


def test_a_budget_of_its_own_counts_within_the_number_and_wins_where_it_is_more(sim):
    prompt = said("graph", flux(budget_gb=0.02), workflow_budget_gb=NUMBER_GB)
    sim.run(prompt).check()
    dit = by_name(sim.report()["components"])["dit"]["settings"]["budget_bytes"]
    assert (dit["value"], dit["source"]) == (20_000_000, "node")
    larger = said("graph", flux(budget_gb=0.08), workflow_budget_gb=NUMBER_GB)
    told = expect(sim, larger)
    sim.run(larger).check()
    for document in (told, sim.report()):
        component = by_name(document["components"])["dit"]
        dit = component["settings"]["budget_bytes"]
        assert (dit["value"], dit["source"]) == (80_000_000, "node")
        assert "own_beyond_workflow" in [notice["code"] for notice in component["notices"]]


def test_a_stronger_sources_number_wins_over_a_budget_of_the_settings(sim):
    prompt = flux()
    options = {"graph": {"components": {"all": {"workflow_budget_gb": NUMBER_GB}}}}
    options |= {"schema": 1, "settings": {"components": {"dit": {"budget_gb": 0.08}}}}
    for node_id in (MODEL, CLIP, VAE):
        prompt[node_id]["inputs"]["graph_options"] = json.dumps(options)
    sim.run(prompt).check()
    report = by_name(sim.report()["components"])["dit"]
    dit = report["settings"]["budget_bytes"]
    assert (dit["value"], dit["source"]) == (NUMBER_GB * 1e9, "graph")
    assert "own_within_workflow" in [notice["code"] for notice in report["notices"]]


def test_a_loader_that_no_output_depends_on_has_no_part(sim):
    prompt = flux()
    prompt["70"] = {**prompt[MODEL], "inputs": {**prompt[MODEL]["inputs"], "placement": "resident"}}
    prompt = said("graph", prompt, workflow_budget_gb=NUMBER_GB)
    assert parts(expect(sim, prompt)["components"])["dit"] == NUMBER_GB * 1e9
    sim.run(prompt).check()
    assert parts(sim.report()["components"])["dit"] == NUMBER_GB * 1e9


def test_what_the_app_has_kept_under_another_name_is_counted_once(sim):
    """The first of two loaders goes: what the other brought is still called `dit_2`, and the prompt calls it `dit`."""
    prompt = flux(placement="resident")
    prompt["70"] = prompt[MODEL]
    prompt[SAMPLER]["inputs"]["model"] = ["70", 0]
    prompt = said("graph", prompt, workflow_budget_gb=TOO_LITTLE_FOR_TWO_GB)
    sim.run(prompt).check()
    assert "dit_2" in by_name(sim.report()["components"])
    del prompt[MODEL]
    prompt[SAMPLER]["inputs"]["seed"] = 2
    sim.run(prompt).check()
    assert "dit_2" in by_name(sim.report()["components"]), "it was loaded anew: nothing was tested"
    assert weights_on_device(sim) <= TOO_LITTLE_FOR_TWO_GB * 1e9


@pytest.mark.parametrize(
    ("dit", "patch", "number_gb"), [("resident", "auto", 0.027), ("layerwise", "resident", 0.0365)]
)
def test_what_is_loaded_in_the_middle_of_a_step_and_has_no_room_is_said_and_the_run_goes_on(sim, dit, patch, number_gb):
    """The model patch calls the VAE inside the diffusion model's pass, where nothing can be given back."""
    plain = controlled()
    behind_apply = applied(plain, LOADER, "model_patch", MODEL_PATCH_OUTPUT, model_patch_placement=patch)
    ours = with_our_loaders(behind_apply, {MODEL: {"placement": dit}, VAE: {}})
    prompt = said("graph", ours, workflow_budget_gb=number_gb)
    for seed in (1, 2):  # what the patch's file holds is known from the second prompt on
        for nodes in (plain, prompt):
            nodes[SAMPLER]["inputs"]["seed"] = seed
        ran = outcome(sim, prompt)
        said_of_vae = [notice["code"] for notice in by_name(sim.report()["components"])["vae"]["notices"]]
        assert "beyond_workflow" in said_of_vae
        assert sim.sim_stats()["races"] == 0
        assert ran == outcome(sim, plain), seed
        sim.free()
