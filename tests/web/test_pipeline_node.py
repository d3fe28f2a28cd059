"""The loader of a whole pipeline, with options and a report behind it, as a user sees them."""

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.support import pixels
from tests.support.workflows import MODEL, SAMPLER, SAVE_IMAGE, all_in_one, build, node

pytestmark = pytest.mark.web

SEEN = {"model_name", "clip_name1", "clip_type", "vae_name", "mode", "workflow_budget_gb", "clip_vision_name"}
ADVANCED = {"dit_placement", "clip_placement", "vae_placement", "clip_vision_placement"}
ADVANCED |= {"dit_budget_gb", "clip_budget_gb", "vae_budget_gb", "clip_vision_budget_gb", "vae_precision", "lora_mode"}


@pytest.mark.parametrize("renderer", ["vue", "canvas"])
def test_pipeline_loader_options_and_report(server, play, renderer):
    expected = server.images(server.run(build("flux", seed=77)).check())
    server.free()
    prompt = all_in_one(build("flux", seed=77))
    prompt["40"] = node("LayerwiseOffloadReport", value=[SAMPLER, 0])
    prompt["41"] = node("PreviewImage", images=["40", 3])
    played = play("loader.mjs", f"pipeline-{renderer}", prompt=prompt, vueNodes=renderer == "vue")

    assert played["run"]["status"] == "success", played["run"]
    saved = played["run"]["outputs"][played["ids"][SAVE_IMAGE]]["images"][0]
    path = server.base / saved["type"] / saved["subfolder"] / saved["filename"]
    pixels.assert_identical(expected, [numpy.asarray(Image.open(path).convert("RGB"))])
    drawn = played["run"]["outputs"][played["ids"]["41"]]["images"][0]
    picture = Image.open(server.base / drawn["type"] / drawn["subfolder"] / drawn["filename"])
    assert picture.width == 1024
    picture.save(Path(played["screenshot"]).with_name(f"report-image-{renderer}.png"))
    report = "".join(played["run"]["outputs"][played["ids"]["40"]]["text"])
    assert "dit" in report and "device memory" in report
    assert played["shown"].count("dit on ") == report.count("dit on ") == 1, "the report is not on its node, or twice"
    assert played["afterReload"] == played["beforeReload"], "saving and loading changed the workflow"
    loader = played["ids"][MODEL]
    if renderer == "vue":
        lines = set(played["elements"][loader].split())
        assert lines >= SEEN and not ADVANCED & lines
    else:  # the app's canvas draws the advanced inputs of every node
        assert set(played["seen"][loader]) >= SEEN
    assert played["errors"] == [] and played["external"] == []
