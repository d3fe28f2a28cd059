"""A budget that is too small: the panel is told as data whose it is, in which widgets, and which one would do."""

import json
import re

import pytest

from tests.support.workflows import APPLY, CLIP, MODEL, OPTIONS, VAE, all_in_one, build, node, with_our_loaders

pytestmark = pytest.mark.app

SMALL_GB = 0.01
"""Less than any ring for these models beside what cannot be streamed."""


def expect(server, prompt: dict) -> dict:
    return server.post("/layerwise_offload/expect", {"prompt": prompt})


def flux(options: dict | None = None, **widgets) -> dict:
    return with_our_loaders(build("flux", vae="vae_flux"), {MODEL: widgets, CLIP: {}, VAE: {}}, options)


def said(source: str, budget_gb: float, **components) -> str:
    return json.dumps({"schema": 1, source: {"components": {"dit": {"budget_gb": budget_gb}, **components}}})


def by_node(gb: float) -> dict:
    return flux(placement="layerwise", budget_gb=gb)


def by_ring(gb: float) -> dict:
    return flux(placement="layerwise", budget_gb=gb, ring_gb=0.04)


def resident(gb: float) -> dict:
    return flux(placement="resident", budget_gb=gb)


def of_pipeline(gb: float) -> dict:
    return all_in_one(build("flux", vae="vae_flux"), mode="memory", dit_budget_gb=gb)


def by_options(gb: float) -> dict:
    return flux({"dit_budget_gb": gb, "dit_placement": "layerwise"})


def by_graph(gb: float) -> dict:
    return flux(placement="layerwise", graph_options=said("graph", gb))


def by_settings(gb: float) -> dict:
    return flux(placement="layerwise", graph_options=said("settings", gb))


def by_apply(gb: float) -> dict:
    return build("flux", "apply", placement="layerwise", budget_gb=gb)


def of_encoder(gb: float) -> dict:
    clip = {"placement": "layerwise", "budget_gb": gb, "ring_gb": 0.03}
    return with_our_loaders(build("wan_t5"), {MODEL: {}, CLIP: clip, VAE: {}})


CASES = {
    "a loader's widget": (by_node, "dit", "node", [(MODEL, "budget_gb")]),
    "beside a ring": (by_ring, "dit", "node", [(MODEL, "budget_gb")]),
    "resident": (resident, "dit", "node", [(MODEL, "budget_gb")]),
    "the pipeline's loader": (of_pipeline, "dit", "node", [(MODEL, "dit_budget_gb")]),
    "an options node": (by_options, "dit", "options", [(OPTIONS, "dit_budget_gb")]),
    "the graph's options": (by_graph, "dit", "graph", []),
    "the user's settings": (by_settings, "dit", "settings", []),
    "an Apply node": (by_apply, "dit", "node", [(APPLY, "budget_gb")]),
    "an encoder": (of_encoder, "text_encoder", "node", [(CLIP, "budget_gb")]),
}


@pytest.mark.parametrize(("prompt", "component", "source", "widgets"), CASES.values(), ids=CASES)
def test_the_budget_that_is_named_is_enough_and_less_is_not(sim, prompt, component, source, widgets):
    told = expect(sim, prompt(SMALL_GB))
    assert told.keys() == {"schema", "error", "budget"} and component in told["error"]
    budget = told["budget"]
    assert [(one["node"], one["widget"]) for one in budget["widgets"]] == widgets
    assert (budget["component"], budget["source"], budget["asked_bytes"]) == (component, source, SMALL_GB * 1e9)
    smallest_bytes, smallest_gb = budget["smallest_bytes"], budget["smallest_gb"]
    assert smallest_gb > SMALL_GB and 0 <= round(smallest_gb * 1e9) - smallest_bytes < 10**7

    for gb in (smallest_gb - 0.01, (smallest_bytes - 1) / 1e9):
        again = expect(sim, prompt(round(gb, 9)))
        assert again["budget"]["smallest_bytes"] == smallest_bytes, gb
    refused = sim.run(prompt(round(smallest_gb - 0.01, 2)))
    needed_gb = float(re.search(r"give at least (\S+) GB", refused.message)[1])
    assert smallest_gb - 0.01 < needed_gb <= smallest_gb, "the run says the same, and so does the report"
    (waiting,) = [one for one in sim.report()["expected"] if one["component"] == component]
    assert waiting["error"] in refused.message
    ran = waiting["budget"]
    assert (ran["source"], ran["smallest_gb"], ran["widgets"]) == (source, smallest_gb, [])
    (dit,) = [one for one in expect(sim, prompt(smallest_gb))["components"] if one["component"] == component]
    assert dit["device_bytes"] <= round(smallest_gb * 1e9)
    sim.run(prompt(smallest_gb)).check()


def test_every_options_node_that_says_it_is_named(sim):
    prompt = flux({"dit_budget_gb": SMALL_GB}, placement="layerwise")
    prompt["91"] = node("LayerwiseOffloadOptions", dit_budget_gb=SMALL_GB)
    prompt["92"] = node("LayerwiseOffloadOptions", mode="memory")
    prompt["30"] = node("LayerwiseOffloadApply", model=[MODEL, 0], placement="layerwise", options=["91", 0])
    prompt["31"] = node("LayerwiseOffloadApply", model=["30", 0], placement="layerwise", options=["92", 0])
    budget = expect(sim, prompt)["budget"]
    assert [one["node"] for one in budget["widgets"]] == [OPTIONS, "91"], "the third says nothing of it"
    assert {one["widget"] for one in budget["widgets"]} == {"dit_budget_gb"}
    for node_id in (OPTIONS, "91"):
        prompt[node_id]["inputs"]["dit_budget_gb"] = budget["smallest_gb"]
    assert "error" not in expect(sim, prompt)


def test_the_last_apply_nodes_budget_is_the_one_that_counts(sim):
    prompt = flux(placement="layerwise", budget_gb=0.5)
    prompt["30"] = node("LayerwiseOffloadApply", model=[MODEL, 0], placement="layerwise", budget_gb=SMALL_GB)
    assert expect(sim, prompt)["budget"]["widgets"] == [{"node": "30", "widget": "budget_gb"}]


def test_where_no_budget_is_enough_none_is_named(sim):
    sim.sim_configure(mb=64)
    budget = expect(sim, resident(SMALL_GB))["budget"]
    assert budget["smallest_bytes"] > 64 * 2**20 and budget["smallest_gb"] is None, "the device is too small"
    budget = expect(sim, flux(placement="resident"))["budget"]
    assert (budget["source"], budget["widgets"], budget["smallest_gb"]) == (None, [], None), "none is set"
