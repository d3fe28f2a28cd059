"""The Report node shows its text, once, for as long as its workflow is open, and the text is saved nowhere."""

import pytest

from tests.support.workflows import node

pytestmark = pytest.mark.web

REPORT = "2"
HINT = "The report is shown here after a run."


@pytest.mark.parametrize("renderer", ["vue", "canvas"])
def test_the_text_is_there_after_a_run_and_saved_nowhere(play, renderer):
    judge(play("report_node.mjs", f"report-{renderer}", **task(), vueNodes=renderer == "vue"))


def task() -> dict:
    prompt = {"1": node("PrimitiveInt", value=3), REPORT: node("LayerwiseOffloadReport", value=["1", 0])}
    return {"prompt": prompt, "report": REPORT}


def judge(played: dict):
    assert played["run"]["status"] == "success", played["run"]
    said = " ".join(played["said"].split())
    assert said, "the report says nothing"
    assert played["before"].strip() == HINT
    assert " ".join(played["after"].split()) == said
    assert played["sizeAfter"] == played["sizeBefore"], "running it changed the size of the node"
    count, visible, box = played["visible"]
    assert (count, visible) == (1, True) and box["width"] > 200 and box["height"] > 100, played["visible"]
    assert played["long"] == {"box": box, "scrolled": 120, "moved": False}, "a long report is no reason to grow"
    for shown in (played["said"].splitlines()[0], "a line"):
        assert shown not in played["saved"], "it is in the saved workflow or in the prompt"
    assert played["otherTabAndBack"] == played["last"] and "a line" in played["last"]
    assert played["reloaded"].strip() == HINT, "a loaded workflow has not run"
    inside = played["subgraph"]
    assert inside["status"] == "success" and inside["before"].strip() == HINT
    assert inside["said"] and " ".join(inside["text"].split()) == " ".join(inside["said"].split())
    assert played["errors"] == [] and played["external"] == [], played["errors"]
