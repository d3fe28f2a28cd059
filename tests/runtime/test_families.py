"""The family walk: every model that the app knows, found in full size, and run small, whole and streamed.

`tests/support/families` has the families. They are built in a process of their own, because the app keeps global state.
"""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from bench.full_size import default_tree
from tests.support import simdev
from tests.support.devkit import apps, paths
from tests.support.devkit.versions import DEFAULT_APP
from tests.support.families import page, rules
from tests.support.families.full_size import Figures
from tests.support.families.table import FAMILIES, WITHOUT_A_FAMILY

QUICK = (
    *("SDXL", "SD35_medium", "FluxKontext", "ZImage", "QwenImage", "WAN21_Vace", "CosmosT2V_7B", "LTXAV", "HiDream"),
    *("te_klein_qwen3_8b", "te_wan_umt5", "vae_sd3_flux", "control_flux_union", "vision_clip_h"),
)
"""Run small in every run; the others belong to long runs."""
SMALL = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.long)
    for name, family in FAMILIES.items()
    if not family.no_tiny
]
IS_DEFAULT = apps.under_test().version == DEFAULT_APP
of_the_default_app = pytest.mark.skipif(not IS_DEFAULT, reason=f"the table is of ComfyUI {DEFAULT_APP}")


def run(*words):
    """The lines that the walk printed."""
    tree = default_tree()
    if not (tree / "comfy").is_dir():
        pytest.skip(f"no ComfyUI tree at {tree} (`python3 dev.py setup` fetches it)")
    command = [sys.executable, "-m", "tests.support.families", *words, "--tree", str(tree)]
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    assert done.returncode == 0 or any("error" in row for row in rows), done.stderr[-3000:]
    return rows


def of(rows, name):
    """The row of a family; another version of the app may lack it or build it in another way."""
    row = rows[name]
    if "error" in row and not IS_DEFAULT:
        pytest.skip(f"{name} in ComfyUI {apps.under_test().version}: {row['error']}")
    assert "error" not in row, "\n".join((row["error"], *row["where"]))
    return row


@pytest.fixture(scope="module")
def full():
    return {row["name"]: row for row in run("full")}


@pytest.fixture(scope="module")
def small(request, full):
    """The small forms of the families that this run of pytest asks for."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (`python3 dev.py setup` builds it)")
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_streamed_is_whole"]
    names = [item.callspec.params["name"] for item in items if not item.get_closest_marker("skip")]
    sizes = {name: full[name]["total_bytes"] for name in names if "error" not in full[name]}
    return {row["name"]: row for row in run("tiny", *names, "--full-bytes", json.dumps(sizes))}


def figures(row):
    return Figures(**{field.name: row[field.name] for field in fields(Figures)})


def test_every_class_of_the_app_has_a_family():
    (classes,) = run("classes")
    known = {family.app_class for family in FAMILIES.values()}
    new = sorted(set(classes) - known - set(WITHOUT_A_FAMILY))
    said = (
        f"ComfyUI {apps.under_test().version} has models without a family: {', '.join(new)}. Describe each in a module "
        "of tests/support/families (the nearest relative shows how), or say in WITHOUT_A_FAMILY of its table.py why it "
        "needs none; then `python -m tests.support.families --write`"
    )
    if new and not IS_DEFAULT:
        pytest.skip(said)
    assert not new, said


@of_the_default_app
def test_every_class_of_the_table_is_the_apps():
    (classes,) = run("classes")
    named = {family.app_class for family in FAMILIES.values() if family.app_class} | set(WITHOUT_A_FAMILY)
    assert sorted(named - set(classes)) == []


def test_the_table_is_as_large_as_the_app():
    assert len(FAMILIES) >= 220


@pytest.mark.parametrize("name", FAMILIES)
def test_full_size(full, name):
    assert rules.complaints(figures(of(full, name))) == []


@of_the_default_app
def test_exceptions_are_still_needed(full):
    exceptions = (rules.NO_LAYERS, rules.LOW_SHARE, rules.USED_OUTSIDE, rules.USED_OUTSIDE_IN_SMALL_FORM)
    assert set().union(*exceptions) <= set(FAMILIES)
    assert [said for name in FAMILIES for said in rules.needless_exceptions(figures(of(full, name)))] == []


def test_the_rules_can_be_broken(full):
    sound = figures(of(full, "CosmosT2V_7B"))
    whole = replace(sound, layers=1, largest_bytes=sound.total_bytes, least_bytes=sound.total_bytes)
    assert rules.complaints(sound) == []
    assert "needs 14.47 GB" in rules.complaints(whole)[0]
    assert "in layers and tables" in rules.complaints(replace(sound, layer_bytes=sound.total_bytes // 2))[0]
    assert "no layers" in rules.complaints(replace(sound, layers=0))[0]
    assert "nothing calls a list" in rules.complaints(replace(sound, not_called=["decoder.blocks"]))[0]


@of_the_default_app
def test_the_page_says_what_is_found(full):
    """`python -m tests.support.families --write` makes it anew."""
    assert page.PAGE.read_text(encoding="utf-8") == page.page(
        (figures(of(full, name)) for name in FAMILIES), DEFAULT_APP
    )


@pytest.mark.parametrize("name", SMALL)
def test_streamed_is_whole(small, name):
    """The same bits in three passes at two budgets, no race, and nothing late once the order of the layers is known."""
    row = of(small, name)
    assert row["alive"], "outputs that are not finite, or of one value, prove nothing"
    assert set(row["runs"]) == {"ring of three", "least"}
    for label, streamed in row["runs"].items():
        assert streamed["equal"] == [True, True, True], (label, streamed["differing"])
        assert streamed["races"] == 0, label
        if name not in rules.USED_OUTSIDE and name not in rules.USED_OUTSIDE_IN_SMALL_FORM:
            assert not streamed["outside_touches"], label
        # Where encode and decode take turns, the second turn has yet to learn which comes next.
        late = streamed["demand_loads"][1 if FAMILIES[name].one_road else 2 :]
        assert not any(late), label
    if row["layers"] > 1:
        assert row["runs"]["least"]["streamed_layers"] > 0


def test_a_wrong_bit_is_seen():
    if not simdev.available():
        pytest.skip("no simulated accelerator (`python3 dev.py setup` builds it)")
    (row,) = run("tiny", "FluxKontext", "--wrong-byte")
    assert all(streamed["equal"] == [False, False, False] for streamed in row["runs"].values())
