"""A user builds a workflow with our loader in the browser, runs it, saves it and opens it again. In both renderers."""

import numpy
import pytest
from PIL import Image

from tests.support import pixels, workflows

pytestmark = pytest.mark.web

# The frontend rounds a number to the decimals of its widget's step, 0.1 GB; the model has 0.167 GB.
FAMILY = "flux_mid"
SETTINGS = {"placement": "layerwise", "budget_gb": 0.1, "ring_gb": 0.0}


@pytest.fixture(scope="module")
def expected(server):
    """The picture that the app's own loader makes."""
    return server.images(server.run(workflows.build(FAMILY, loader="app", seed=77)).check())


@pytest.mark.parametrize("renderer", ["canvas", "vue"])
@pytest.mark.parametrize("loader", ["layerwise", "apply"])
def test_build_run_save_reload(server, play, expected, renderer, loader):
    server.free()
    prompt = workflows.build(FAMILY, loader=loader, seed=77, **SETTINGS)
    played = play("loader.mjs", f"{loader}-{renderer}", prompt=prompt, vueNodes=renderer == "vue")

    assert played["run"]["status"] == "success", played["run"]
    saved = played["run"]["outputs"][played["ids"][workflows.SAVE_IMAGE]]["images"][0]
    path = server.base / saved["type"] / saved["subfolder"] / saved["filename"]
    pixels.assert_identical(expected, [numpy.asarray(Image.open(path).convert("RGB"))])

    ours = played["built"][played["ids"][workflows.MODEL if loader == "layerwise" else workflows.APPLY]]["inputs"]
    assert {name: ours[name] for name in SETTINGS} == SETTINGS
    assert played["afterReload"] == played["beforeReload"], "saving and loading changed the workflow"
    assert (played["vueElements"] > 0) == (renderer == "vue")
    assert played["errors"] == [] and played["external"] == []
