"""A user of two cards: where the second is found, and what is shown of the layers on it."""

import pytest

from tests.support import simdev
from tests.support.app_server import AppServer
from tests.support.devkit import app_tree
from tests.support.workflows import build

pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)"),
]


@pytest.fixture(scope="module")
def two_cards(frontend):
    root = app_tree.newest_frontend_root() if frontend == "newest" else None
    with AppServer("sim", devices=2, memory_mb=4096, frontend=root) as running:
        yield running


def test_layers_on_the_second_card(two_cards, play):
    prompt = build("flux", "layerwise", placement="layerwise", budget_gb=0.03)
    played = play("second_card.mjs", "second-card", url=two_cards.url, prompt=prompt, peer="npu:1")
    assert played["onNode"] == played["inForm"] == ["auto", "pinned", "pageable", "mapped", "npu:0", "npu:1"]
    assert played["run"] == "success"
    (dit,) = [report for report in two_cards.report()["components"] if report["component"] == "dit"]
    stored = f"Stored for another device {dit['plan']['peer_bytes'] / 1e6:.0f} MB"
    assert dit["plan"]["peer_bytes"] == dit["summary"]["peer_bytes"] > 0
    for bars in (played["planned"], played["after"]):
        (second,) = [text for title, text in bars.items() if title.startswith("npu:1")]
        (first,) = [text for title, text in bars.items() if title.startswith("npu:0")]
        assert stored in second and "Stored for another device 0 MB" in first, bars
    assert any(cell.startswith("dit") and cell.endswith(" · On npu:1") for cell in played["cells"]), played["cells"]
    assert f"{dit['summary']['peer_bytes'] / 1e6:.0f} MB of its layers lie on npu:1" in played["why"], played["why"]
    on_node = f"{dit['summary']['peer_bytes'] / 1e6:.0f} MB on npu:1"
    assert any(on_node in line for line in played["lines"]), played["lines"]
    assert "Copy speed" in played["numbers"] and "not measured yet" not in played["numbers"], played["numbers"]
    assert played["errors"] == [] and played["external"] == [], played["errors"]
