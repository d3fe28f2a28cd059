"""What is saved stays valid: a workflow has widgets and outputs of our nodes by position, a prompt has inputs by name.

`tests/golden/nodes.json` is what the app shows of the nodes now, which `tests/app/test_nodes.py` compares;
`tests/golden/saved.json` is what has been saved: nothing in it is taken away or moved, and what is new comes after it.
"""

import json

import pytest

from tests.support.devkit import paths

GOLDEN = paths.ROOT / "tests" / "golden"
NODES = json.loads((GOLDEN / "nodes.json").read_text())
SAVED = json.loads((GOLDEN / "saved.json").read_text())
WIDGETS = ("COMBO", "FLOAT", "STRING")
"""The types of inputs that are widgets."""
TEMPLATES = sorted((paths.ROOT / "example_workflows").glob("*.json"))

SEEN_BY_A_NEWCOMER = ["model_name", "clip_name1", "clip_type", "vae_name", "mode"]
SEEN_BY_A_NEWCOMER += ["clip_name2", "clip_name3", "clip_name4", "clip_vision_name", "workflow_budget_gb"]
"""Of the loader of a whole pipeline: files, mode and one budget."""


def widgets_of(node_id: str) -> list[str]:
    """The widgets of a node in the order in which a workflow has their values."""
    node = NODES[node_id]
    names = [*node["order"].get("required", []), *node["order"].get("optional", [])]
    return [name for name in names if node["inputs"][name][1] in WIDGETS]


def test_no_node_that_was_saved_is_gone():
    assert set(SAVED) <= set(NODES)


@pytest.mark.parametrize("node_id", SAVED)
def test_widgets_and_outputs_that_were_saved_are_where_they_were(node_id):
    for now, saved in ((widgets_of(node_id), "widgets"), (NODES[node_id]["outputs"], "outputs")):
        assert now[: len(SAVED[node_id][saved])] == SAVED[node_id][saved]


@pytest.mark.parametrize("node_id", SAVED)
def test_inputs_that_are_new_need_no_value(node_id):
    node = NODES[node_id]
    assert set(SAVED[node_id]["sockets"]) <= set(node["inputs"])
    for name in set(node["inputs"]) - {*SAVED[node_id]["widgets"], *SAVED[node_id]["sockets"]}:
        group, kind, options = node["inputs"][name]
        assert group == "optional" and ("default" in options or kind not in WIDGETS), name


def test_a_newcomer_sees_files_mode_and_one_budget():
    inputs = NODES["LayerwiseOffloadLoader"]["inputs"]
    seen = [name for name in widgets_of("LayerwiseOffloadLoader") if not inputs[name][2].get("advanced")]
    assert seen == SEEN_BY_A_NEWCOMER


@pytest.mark.parametrize("template", TEMPLATES, ids=[path.stem.split(",")[0] for path in TEMPLATES])
def test_a_template_has_values_that_its_widgets_take(template):
    ours = [node for node in json.loads(template.read_text())["nodes"] if node["type"] in NODES]
    assert ours
    for node in ours:
        names = widgets_of(node["type"])
        values = node.get("widgets_values", [])
        assert len(values) <= len(names)
        for name, value in zip(names, values):
            _, kind, options = NODES[node["type"]]["inputs"][name]
            if kind == "FLOAT":
                assert options["min"] <= value <= options["max"], name
            else:
                assert isinstance(value, str) and value in options.get("options", [value]), name
