"""Placements of all components at once, generated: the whole pipeline equals the app's, and no widget is changed."""

import json
import random

import pytest

from tests.support import pixels
from tests.support.app_server import APP_RESERVE_MB
from tests.support.workflows import APPLY, CLIP, MODEL, OPTIONS, VAE, all_in_one, build, node, with_our_loaders

pytestmark = pytest.mark.app

PLACEMENTS = ("auto", "layerwise", "resident", "whole")
MODES = ("auto", "memory", "speed", "manual")
SCARCE_MB, PLENTY_MB = 110, 6000
BUDGETS_GB = {"dit": (0.03, 0.05), "clip": (0.015, 0.02), "vae": (0.04, 0.06)}
"""Enough for a ring, too little for all of it."""


def combination(seed: int) -> dict:
    """One combination, always the same for a seed. Every placement of every component comes up within a few seeds."""
    generator = random.Random(seed)
    form = generator.choice(("loaders", "apply", "all_in_one", "graph"))
    widgets = {}
    for number, name in enumerate(("dit", "clip", "vae")):
        placement = PLACEMENTS[(seed >> (2 * number)) % 4] if seed < 64 else generator.choice(PLACEMENTS)
        widgets[f"{name}_placement"] = placement
        if placement in ("auto", "layerwise") and generator.random() < 0.5:
            widgets[f"{name}_budget_gb"] = generator.choice(BUDGETS_GB[name])
    mode = generator.choice(MODES)
    scarce = generator.random() < 0.5 and not any(widgets[f"{name}_placement"] == "whole" for name in ("dit", "vae"))
    return {"form": form, "widgets": widgets, "mode": mode, "mb": SCARCE_MB if scarce else PLENTY_MB}


def prompt_for(form: str, widgets: dict, mode: str) -> dict:
    plain = build("flux", vae="vae_flux")
    if form == "graph":
        return _with_graph_options(plain, widgets, mode)
    if form == "all_in_one":
        return all_in_one(plain, mode=mode, **widgets)
    ids = {"dit": MODEL, "clip": CLIP, "vae": VAE}
    if form == "loaders":
        settings = {ids[name]: {} for name in ids}
        for key, value in widgets.items():
            name, _, what = key.partition("_")
            settings[ids[name]][what] = value
        return with_our_loaders(plain, settings, {"mode": mode})
    return _with_apply(plain, widgets, mode)


def _with_graph_options(plain: dict, widgets: dict, mode: str) -> dict:
    """The loader of all with its widgets left alone, and everything said by the graph's options."""
    names = {"dit": "dit", "clip": "text_encoder", "vae": "vae"}
    components = {
        names[name]: {
            what: widgets[f"{name}_{what}"] for what in ("placement", "budget_gb") if f"{name}_{what}" in widgets
        }
        for name in names
    }
    said = {"schema": 1, "graph": {"mode": mode, "components": components}}
    return all_in_one(plain, graph_options=json.dumps(said))


def _with_apply(plain: dict, widgets: dict, mode: str) -> dict:
    """One Apply node behind the app's three loaders; what it has no widget for comes from an options node."""
    outputs = {MODEL: 0, CLIP: 1, VAE: 2}
    changed = {}
    for node_id, entry in plain.items():
        wires = {
            name: [APPLY, outputs[value[0]]] if isinstance(value, list) and value[0] in outputs else value
            for name, value in entry["inputs"].items()
        }
        changed[node_id] = node(entry["class_type"], **wires)
    changed[APPLY] = node(
        "LayerwiseOffloadApply",
        **{"model": [MODEL, 0], "clip": [CLIP, 0], "vae": [VAE, 0], "options": [OPTIONS, 0]},
        **{"placement": widgets["dit_placement"], "budget_gb": widgets.get("dit_budget_gb", 0.0)},
        **{"clip_placement": widgets["clip_placement"], "vae_placement": widgets["vae_placement"]},
    )
    changed[OPTIONS] = node(
        "LayerwiseOffloadOptions",
        mode=mode,
        text_encoder_budget_gb=widgets.get("clip_budget_gb", 0.0),
        vae_budget_gb=widgets.get("vae_budget_gb", 0.0),
    )
    return changed


@pytest.fixture(scope="session")
def references() -> dict:
    """Digests of the app's own outcome, by server: taken once."""
    return {}


def reference(server, references: dict) -> str:
    if server.url not in references:
        references[server.url] = outcome(server, build("flux", vae="vae_flux"))
        server.free()
    return references[server.url]


def outcome(server, prompt: dict) -> str:
    """Digest of picture and latent, after checking that the prompt came back as it was sent."""
    sent = json.dumps(prompt, sort_keys=True)
    result = server.run(prompt).check()
    kept = server.get(f"/history/{result.prompt_id}")[result.prompt_id]["prompt"][2]
    assert json.dumps(kept, sort_keys=True) == sent, "a widget was changed"
    arrays = server.images(result) + server.latents(result)
    pixels.assert_sane(arrays)
    return pixels.sha256(arrays)


def check(server, references: dict, seed: int):
    chosen = combination(seed)
    expected = reference(server, references)
    server.sim_configure(mb=APP_RESERVE_MB + chosen["mb"])
    assert outcome(server, prompt_for(chosen["form"], chosen["widgets"], chosen["mode"])) == expected, chosen
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
    for report in server.report()["components"]:
        name = {"text_encoder": "clip"}.get(report["component"], report["component"])
        asked = chosen["widgets"].get(f"{name}_placement", "auto")
        if asked != "auto":
            assert report["settings"]["placement"]["value"] == asked
            assert report["settings"]["placement"]["source"] == ("graph" if chosen["form"] == "graph" else "node")
        budget = chosen["widgets"].get(f"{name}_budget_gb")
        if budget:
            assert report["summary"]["device_bytes"] <= round(budget * 1e9)


@pytest.mark.parametrize("seed", range(44))
def test_the_pipeline_equals_the_app(sim, references, seed):
    check(sim, references, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_random_combinations_equal_the_app(sim, references, seed):
    check(sim, references, seed)


def test_the_workflow_in_the_picture_is_the_one_that_was_sent(sim):
    """What a user drags back into the app: widgets by position in the UI form, by name in the API form."""
    from PIL import Image

    prompt = prompt_for("all_in_one", {"dit_placement": "layerwise", "dit_budget_gb": 0.03}, "auto")
    widgets = list(prompt[MODEL]["inputs"].values())
    workflow = {"nodes": [{"id": 1, "type": "LayerwiseOffloadLoader", "widgets_values": widgets}], "version": 0.4}
    body = {"prompt": prompt, "client_id": "ui", "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    result = sim.wait(sim.post("/prompt", body)["prompt_id"]).check()
    (picture,) = sim.files(result, "images")
    text = Image.open(picture).text
    assert json.loads(text["workflow"]) == workflow
    assert json.loads(text["prompt"]) == prompt
