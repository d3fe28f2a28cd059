"""Faults in web/: each makes a test fail. The table is in docs/proofs.md."""

import shutil
import subprocess

import pytest

from tests.support.devkit import paths
from tests.support.web_faults import LOOKS, MODULES, REPORT, WebFault
from tests.web import test_report_node as report_node
from tests.web.test_panel_looks import judge

pytestmark = [pytest.mark.web, pytest.mark.long]

TESTS = ("modules.test.mjs", "fixture.mjs")


def seeded(fault: WebFault) -> str:
    source = (paths.ROOT / "web" / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.text) == 1, f"{fault.name}: {fault.file} has changed; seed it elsewhere"
    return source.replace(fault.text, fault.instead)


@pytest.mark.parametrize("fault", MODULES, ids=lambda fault: fault.name)
def test_the_modules_tests_notice(fault, tmp_path):
    shutil.copytree(paths.ROOT / "web", tmp_path / "web", ignore=shutil.ignore_patterns("docs"))
    (tmp_path / "web" / fault.file).write_text(seeded(fault), encoding="utf-8")
    (tmp_path / "tests" / "web").mkdir(parents=True)
    for name in TESTS:
        shutil.copy(paths.ROOT / "tests" / "web" / name, tmp_path / "tests" / "web")
    done = subprocess.run(
        ["node", "--test", str(tmp_path / "tests" / "web" / TESTS[0])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "SyntaxError" not in done.stdout, "that is no fault, that is no program"


@pytest.mark.parametrize("fault", LOOKS, ids=lambda fault: fault.name)
def test_the_looks_notice(play, fault):
    theme, locale = ("light", "zh") if "language" in fault.name else ("dark", "en")
    settings = {"Comfy.ColorPalette": theme, "Comfy.Locale": locale}
    faults = {fault.file: seeded(fault)}
    with pytest.raises(AssertionError):
        judge(play("panel_looks.mjs", f"fault-{fault.file}", width=1600, settings=settings, faults=faults), locale)


@pytest.mark.parametrize("fault", REPORT, ids=lambda fault: fault.name)
def test_the_report_node_notices(play, fault):
    with pytest.raises(AssertionError):
        played = play(
            *("report_node.mjs", f"fault-{fault.file}"),
            **{**report_node.task(), "vueNodes": True, "faults": {fault.file: seeded(fault)}},
        )
        report_node.judge(played)


def test_without_a_fault_nothing_is_noticed(play):
    same = {"timeline.js": (paths.ROOT / "web" / "timeline.js").read_text(encoding="utf-8")}
    settings = {"Comfy.ColorPalette": "dark", "Comfy.Locale": "en"}
    judge(play("panel_looks.mjs", "fault-none", width=1600, settings=settings, faults=same), "en")
