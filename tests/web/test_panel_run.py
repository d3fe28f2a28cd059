"""A user with the real server and the panel: what is to be seen before, while and after; nothing of theirs changes."""

import json

import pytest

from tests.support.devkit.versions import DEFAULT_APP, numbers
from tests.support.workflows import MODEL, all_in_one, build

pytestmark = pytest.mark.web

BUDGET_GB = 0.03
LINK = 3e8
DEFAULTS = {"LayerwiseOffload.Vae.Placement": "layerwise", "LayerwiseOffload.Dit.Placement": "resident"}


@pytest.mark.parametrize("renderer", ["vue", "canvas"])
def test_run_set_ask_save_reload(server, play, request, renderer):
    knows_narrow_vae = numbers(server.version) >= numbers(DEFAULT_APP)
    vae = "vae_flux" if knows_narrow_vae else None
    prompt = all_in_one(build("flux", vae=vae, seed=77, steps=6), mode="memory")
    server.free()
    slow(server)
    request.addfinalizer(lambda: slow(server, 0))
    played = play(
        *("panel_run.mjs", f"run-{renderer}"),
        **{"prompt": prompt, "loader": MODEL, "vueNodes": renderer == "vue", "defaults": DEFAULTS},
        **{"settings": dict.fromkeys(DEFAULTS, "auto")},
    )
    before_and_after(server, played)
    options_and_reasons(played)
    kept(played)
    assert played["errors"] == [] and played["external"] == [], played["errors"]


def slow(server, bytes_per_s: float = LINK):
    """Copies as slow as those of a large model, so that there is something to see."""
    if server.device == "sim":
        server.sim_configure(bandwidth=bytes_per_s)


def before_and_after(server, played: dict):
    assert played["nodeBefore"].strip() == "auto is resolved when it runs"
    for text in ("planned", "not run yet; a pass should take", "while dit runs, as planned", "as planned:"):
        assert text in played["idle"], played["idle"]
    assert "Budget" not in played["idle"], "a mark where no budget was set"
    for component in ("dit", "text_encoder", "vae"):
        assert component in played["idle"] and component in played["idleWhy"]
    assert played["idleTimeline"] and "+1 GB" in played["idleWhy"] and "memory mode" in played["idleWhy"]
    assert "This workflow would not run" in played["problem"] and "gone.safetensors" in played["problem"]
    assert "planned" not in played["problem"] and "Ready" not in played["problem"], "one error and nothing else"
    assert played["run"] == "success" and played["ranVisibly"], "the panel never showed the run"
    layers = [len(one["plan"]["layers"]) for one in server.report()["components"]]
    assert sorted(played["states"]) == sorted(layers)
    assert played["timeline"] and played["live"] >= 2
    assert not [text for text in played["numbers"] if "not measured" in text], played["numbers"]
    for component in ("dit", "text_encoder", "vae"):
        assert component in played["nodeAfter"]
    assert "auto → " in played["nodeAfter"] and "default policy" in played["nodeAfter"]
    file = server.base / "output" / played["saved"].removeprefix("Saved as ")
    assert json.loads(file.read_text())["traceEvents"]
    text, _, count = played["forgotten"].partition(": ")
    assert text == "Measured times forgotten" and int(count) >= 1, played["forgotten"]
    assert played["runHidden"] == "success" and played["liveHidden"] == 0, "it listens although it is hidden"


def options_and_reasons(played: dict):
    graph = {"components": {"dit": {"budget_gb": BUDGET_GB, "placement": "layerwise"}}}
    assert played["carried"] == played["carriedInFreshPage"] == {"schema": 1, "graph": graph}
    assert played["extra"] == {"schema": 1, **graph}
    assert played["runWithOptions"] == "success"
    assert played["dit"] == {"placement": ["layerwise", "graph"], "budget": [round(BUDGET_GB * 1e9), "graph"]}
    assert played["vae"]["placement"] == ["layerwise", "settings"]
    assert "graph options" in played["nodeWithOptions"] and "ComfyUI settings" in played["nodeWithOptions"]
    for text in ("graph options", "Placement", "Budget", "+1 GB", "-1 GB".replace("-", "−")):
        assert text in played["why"]


def kept(played: dict):
    first, *later = played["widgets"]
    for one in without_seeds(later, first):
        assert one == first, "a widget of the user's was changed"
    assert played["copy"]["text"].strip() == "auto is resolved when it runs"
    assert "auto → layerwise" in played["nodeReloaded"] and "graph options" in played["nodeReloaded"]
    assert played["nodeInFreshPage"] == played["nodeReloaded"]
    assert played["timelineInFreshPage"] and "of copies" in played["totalsInFreshPage"], "the last run is still there"
    inside = played["subgraph"]
    assert inside["status"] == "success" and json.loads(inside["carried"]) == played["carried"]
    assert "auto → layerwise" in inside["text"] and "graph options" in inside["text"], inside


def without_seeds(later: list[dict], first: dict) -> list[dict]:
    """The app itself draws a new seed after each run: the sampler's first widget."""
    samplers = [node_id for node_id, values in first.items() if values and "euler" in values]
    return [{**one, **{node_id: [first[node_id][0], *one[node_id][1:]] for node_id in samplers}} for one in later]
