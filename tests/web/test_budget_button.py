"""The button under "a budget is too small": it sets what is enough where the budget was said, and the plan appears."""

import pytest

from tests.support import tiny_models
from tests.support.workflows import MODEL, OPTIONS, all_in_one, build, node

pytestmark = pytest.mark.web

SMALL_GB = 0.01
CONSTANT = "95"
HOPELESS = {"component": "dit", "source": None, "widgets": [], "smallest_bytes": 10**12, "smallest_gb": None}


def loader(**widgets) -> dict:
    """The budget is said also where it is 0: the app may show what the node of this id had in the graph before."""
    return all_in_one(build("flux", vae="vae_flux", steps=1), mode="memory", **{"dit_budget_gb": 0.0, **widgets})


def by_options() -> dict:
    prompt = loader(options=[OPTIONS, 0])
    prompt[OPTIONS] = node("LayerwiseOffloadOptions", dit_budget_gb=SMALL_GB)
    return prompt


def by_constant() -> dict:
    prompt = loader(dit_budget_gb=[CONSTANT, 0])
    prompt[CONSTANT] = node("PrimitiveFloat", value=0.0)
    return prompt


@pytest.mark.parametrize("renderer", ["vue", "canvas"])
def test_the_button_sets_what_is_enough_and_the_plan_appears(server, play, renderer):
    tiny_models.ensure("vae_flux")
    server.free()
    small = loader(dit_budget_gb=SMALL_GB)
    assert MODEL == "1"
    told = server.post("/layerwise_offload/expect", {"prompt": small})
    enough = told["budget"]["smallest_gb"]
    assert enough > SMALL_GB
    hopeless = {"schema": 1, "error": "hopeless", "budget": {**HOPELESS, "asked_bytes": 1}}
    played = play(
        *("budget_button.mjs", f"budget-{renderer}"),
        **{"loader": small, "options": by_options(), "constant": by_constant(), "plain": loader(), "small": SMALL_GB},
        **{"vueNodes": renderer == "vue", "hopeless": hopeless},
    )
    text = f"Set {enough:.2f} GB"
    assert played["failed"]["status"] == "error" and "give at least" in str(played["failed"]["detail"])
    assert played["empty"]["text"] == text and "This workflow would not run" in played["empty"]["panel"]
    for name in ("loader", "beside", "options", "constant", "inside", "graph", "settings"):
        assert (played[name]["text"], played[name]["left"]) == (text, 0), name
        assert "This workflow would not run" in played[name]["panel"], name
    for name in ("loader", "options", "constant"):
        assert played[name]["value"] == enough, name
    assert "dit_budget_gb of Layerwise Offload Loader" in played["loader"]["title"]
    assert "Layerwise Offload Options" in played["options"]["title"]
    assert played["loader"]["modified"] and played["loader"]["undone"] == SMALL_GB
    assert played["ran"]["status"] == "success"
    assert played["inside"]["value"] == [enough] and played["inside"]["sent"] == enough
    assert played["graph"]["options"]["components"] == {
        "dit": {"placement": "layerwise", "budget_gb": enough},
        "vae": {"placement": "whole"},
    }
    assert float(played["graph"]["form"]) == enough
    assert played["settings"]["options"]["components"] == {"dit": {"budget_gb": enough}}
    assert played["settings"]["kept"] == SMALL_GB, "it is about every workflow"
    assert "stronger" in played["settings"]["title"]
    assert played["hopeless"] == 0
    assert played["errors"] == [] and played["external"] == [], played["errors"]
