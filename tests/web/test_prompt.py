"""What the panel asks the server about is what the app would run, whatever it takes out of a graph before."""

import pytest

from tests.support import tiny_models

pytestmark = pytest.mark.web

CONSTANT = "a constant"
"""Its node runs, so that the app's prompt has a wire; the panel says what will come through it."""


def test_the_panel_asks_about_what_the_app_would_run(play):
    tiny_models.ensure("flux_tiny")
    played = play("prompt.mjs", "prompt", model=tiny_models.file_name("flux_tiny"))
    assert len(played["seen"]) == 10
    for name, one in played["seen"].items():
        apps = {node_id: ours(node) for node_id, node in one["apps"].items() if is_read(node)}
        asked = {node_id: ours(node) for node_id, node in one["asked"].items() if is_read(node)}
        if name == CONSTANT:
            (wired,) = [node for node in apps.values() if isinstance(node.get("budget_gb"), list)]
            wired["budget_gb"] = 0.1
        assert asked == apps, name
    assert played["errors"] == [] and played["external"] == []


def is_read(node: dict) -> bool:
    return node["class_type"].startswith("LayerwiseOffload") or node["class_type"] == "UNETLoader"


def ours(node: dict) -> dict:
    return {name: value for name, value in node["inputs"].items() if name != "graph_options"}
