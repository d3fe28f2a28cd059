"""The example workflows: each opens in the app and says what tests/support/templates.py says, and the template browser
shows all of them. That they run: tests/app/test_templates.py.

On purpose changed? Delete the .json and .jpg, run this test once, and look at both.
"""

import json

import pytest
from PIL import Image

from tests.support.templates import NAMES, TEMPLATES, Template

pytestmark = pytest.mark.web

THUMBNAIL_SIDE = 640
THUMBNAIL_MAX_BYTES = 100_000
VIEWPORT = {"width": 3200, "height": 1800}


def _save_thumbnail(template: Template, made: dict):
    """A square, as the template browser shows them: the height of the graph, from our first node to the right."""
    picture = Image.open(made["screenshot"]).convert("RGB")
    ours = min(place[0] for node_id, place in template.places.items() if "Layerwise" in _class(template, node_id))
    left = made["margin"] / 2 + (ours - template.note_place[0]) * made["scale"]
    square = picture.crop((round(left), 0, round(left) + picture.height, picture.height))
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    square.resize(size, Image.Resampling.LANCZOS).save(template.thumbnail, quality=85, optimize=True)


def _class(template: Template, node_id: str) -> str:
    return template.prompt[node_id]["class_type"]


def open_or_make(play, template: Template) -> dict:
    """Opens the shipped file, with its models there; made from what it should say where there is none."""
    name = f"template-{NAMES[TEMPLATES.index(template)]}"
    task = {"files": list(template.small), "viewport": VIEWPORT, "vueNodes": False}
    if template.path.is_file():
        return play("template.mjs", name, workflow=json.loads(template.path.read_text()), **task)
    words = {"prompt": template.prompt, "places": template.places, "note": template.note}
    made = play("template.mjs", name, **words, notePlace=template.note_place, **task)
    template.path.parent.mkdir(exist_ok=True)
    template.path.write_text(json.dumps(made["workflow"], indent=1) + "\n")
    _save_thumbnail(template, made)
    pytest.fail(f"there was no {template.path.name}; it has been written: look at it and check it in")


def as_named_here(inputs: dict, found: dict) -> dict:
    """The inputs under the names of this app: one that depends on another's choice has both names, as `format.codec` of
    SaveVideo from 0.33 on."""
    nested = {name.rpartition(".")[2]: name for name in found if "." in name}
    return {nested.get(name, name): value for name, value in inputs.items()}


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_template_opens_and_says_what_it_should(server, play, template):
    opened = open_or_make(play, template)
    info = server.object_info()
    for node_id, expected in template.prompt.items():
        found = opened["apiForm"][node_id]
        assert found["class_type"] == expected["class_type"]
        options = info[expected["class_type"]]["input"]
        defaults = {name: spec for group in ("required", "optional") for name, spec in options.get(group, {}).items()}
        wanted = as_named_here(expected["inputs"], found["inputs"])
        others = {name: value for name, value in found["inputs"].items() if name not in wanted}
        assert {**others, **wanted} == found["inputs"]
        assert {name: defaults[name][1]["default"] for name in others} == others, "an unset widget changed"
    assert len(opened["apiForm"]) == len(template.prompt)
    for node in opened["nodes"]:
        assert not node["missing"], f"{node['type']} is marked as broken"
        if node["type"] in info:  # an old file would show old slots
            assert node["outputs"] == info[node["type"]]["output_name"] or not node["type"].startswith("Layerwise")
    assert opened["errors"] == [] and opened["external"] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_thumbnail(template):
    assert template.thumbnail.stat().st_size <= THUMBNAIL_MAX_BYTES
    assert Image.open(template.thumbnail).size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def test_the_template_browser_shows_them(play):
    shown = play(
        "template_browser.mjs", "template-browser", query="layerwise offload", open=TEMPLATES[0].name, vueNodes=False
    )
    assert sorted(shown["titles"]) == sorted(template.name for template in TEMPLATES)
    assert shown["pictures"] == [THUMBNAIL_SIDE] * len(TEMPLATES)
    assert shown["opened"] == len(TEMPLATES[0].prompt) + 1, (
        "the graph that a click on the first one opened, with its note"
    )
    assert shown["errors"] == [] and shown["external"] == []
