"""Panel and nodes say what is true now, whatever they have said before."""

import json

import pytest

from tests.support import tiny_models
from tests.support.workflows import MODEL, all_in_one, build

pytestmark = pytest.mark.web

OPTIONS = {"schema": 1, "graph": {"components": {"dit": {"placement": "whole"}}}}


def test_nothing_that_was_said_before_stays_when_it_is_no_longer_so(server, play):
    tiny_models.ensure("clip_vision_tiny", "vae_flux")
    server.free()
    vision = tiny_models.file_name("clip_vision_tiny")
    prompt = all_in_one(build("flux", vae="vae_flux"), clip_vision_name=vision)
    files = {"model": prompt[MODEL]["inputs"]["model_name"], "encoder": prompt[MODEL]["inputs"]["clip_name1"]}
    played = play(
        *("panel_states.mjs", "panel-states"),
        **{"prompt": prompt, "loader": MODEL, "options": json.dumps(OPTIONS), **files},
    )

    assert "dit_2" in played["first"] and "image_encoder" in played["first"]
    assert played["renamed"].split()[0] == "dit" and "dit_2" not in played["renamed"], "it is called otherwise now"
    assert "image_encoder" not in played["renamed"], "it has been taken out"
    assert played["anothers"] == played["renamed"], "a file of another workflow's node"
    assert played["renamed"].strip() in played["cached"], "what this run has said stays"
    assert "text_encoder" in played["cached"], "what the app had in its cache is there too"
    assert played["status"] == "", "the server has answered since"
    assert "ComfyUI settings" in played["byDefault"], "another default, another plan"
    assert "This workflow would not run" in played["refused"] and "gone.safetensors" in played["refused"]

    assert played["form"] == "whole" and json.loads(played["carried"]) == OPTIONS, "what came with the workflow"
    assert "left to ComfyUI: set by the graph's options" in played["why"]
    assert json.loads(played["changed"])["graph"]["components"] == {"dit": {"placement": "resident"}}
    assert played["cleared"] == ["", True, "auto"], "set to auto, it does not speak again"
    assert played["errors"] == [] and played["external"] == [], played["errors"]
