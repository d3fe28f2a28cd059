"""docs/troubleshooting.md has each warning and each error that people can see, in the words of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from offload_core.sentences import TEMPLATES
from tests.support.devkit import paths

PAGE = (paths.ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| (?!it says|what you see)", line)
]

REASONS = {
    # parts of other sentences
    *("set_by", "set_by_for", "set_by_for_all", "asked_for", "stronger", "both", "selected", "setting"),
    # why a component is placed as it is
    *(
        "given_less",
        "given_enough",
        "manual_mode",
        "no_group",
        "beyond_host",
        "all_on_cpu",
        "memory_mode",
        "memory_mode_not_selected",
    ),
    *("free_unknown", "free_unknown_not_selected", "cannot_stream", "layers_cannot_stream", "memory_sum"),
    *("resident_fits", "does_not_fit", "not_selected", "room_for_some", "in_memory", "seen_later", "no_device_memory"),
    *("no_patcher", "only_dynamic", "moved_its_own_way"),
    # why the other settings are what they are
    *("budget_left", "budget_ring", "planner_decides_ring", "tier_by_layer", "pins_shared", "precision_of_app"),
    *("free_on_other_device", "no_other_device", "budget_too_small"),
    *("lora_when_applied", "nothing_to_decide", "no_workflow_budget", "no_workflow_host"),
    *("offered", "part_of_workflow", "offered_all", "offered_less_room", "memory_mode_ring", "ran_out_with_more"),
}
"""Sentences that say why something is so, and no problem. `source_` and `do_` are parts of sentences too."""
ANSWERS_TO_PROGRAMS = {
    "offload_core/runtime/engine/attach.py": "for programs that use the pack as a library",
    "bridge/server/routes.py": "answers of the HTTP routes",
}
FOLDERS = ("bridge", "nodes", "offload_core/runtime", "offload_core/settings", "offload_core/planning")
ERROR = re.compile(r"\basked\b.*?(\bfound\b|; send\b)|^…; found\b|\bwas asked\b.*\bgive at least\b")
"""The form of our errors. What is wrong with a file's header stands in one of them, after "found"."""
CLASSES = ("OffloadError", "SettingsError", "BudgetError", "StateError", "FileReadError")


def text_of(node: ast.AST) -> str | None:
    """The text of a literal, with … in place of values; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages_of(source: str) -> list[str]:
    """Texts in the form of our errors; docstrings left aside."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = [text_of(node) for node in ast.walk(tree) if id(node) not in docstrings | parts]
    return [text for text in texts if text is not None and ERROR.search(text)]


def raised(source: str) -> list[str]:
    """The literal texts of the errors of `CLASSES` that are made in a source."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in CLASSES]
    return [text for call in errors if (text := text_of(call.args[0])) is not None]


def sources() -> list[Path]:
    files = [path for folder in FOLDERS for path in sorted((paths.ROOT / folder).rglob("*.py"))]
    return [*files, paths.ROOT / "offload_core" / "errors.py"]


MESSAGES = [
    (name, text)
    for path in sources()
    if (name := path.relative_to(paths.ROOT).as_posix()) not in ANSWERS_TO_PROGRAMS
    for text in messages_of(path.read_text(encoding="utf-8"))
]
SHOWN = {code: text for cells in ROWS for text, code in re.findall(r"^\*(.*)\* \(`(\w+)`\)$", cells[0])}
FRAGMENTS = [text for cells in ROWS if cells[0].startswith("`") for text in re.findall(r"`([^`]+)`", cells[0])]


def test_every_row_says_why_and_what_to_do():
    assert len(ROWS) > 60
    for cells in ROWS:
        assert len(cells) == 3 and all(cells), cells
    assert len(SHOWN) + sum(cells[0].startswith("`") for cells in ROWS) >= len(ROWS) - 5


def test_every_sentence_is_on_the_page_or_a_reason():
    parts = {code for code in TEMPLATES if code.startswith(("source_", "do_"))}
    assert sorted(REASONS - set(TEMPLATES)) == []
    assert set(SHOWN) & (REASONS | parts) == set()
    assert set(SHOWN) | REASONS | parts == set(TEMPLATES)


@pytest.mark.parametrize("code", SHOWN)
def test_the_page_has_the_words_of_the_table(code: str):
    assert SHOWN[code] == TEMPLATES[code]


@pytest.mark.parametrize(("file", "text"), MESSAGES, ids=[f"{file} {text[:40]}" for file, text in MESSAGES])
def test_every_error_is_on_the_page(file: str, text: str):
    assert any(fragment in text for fragment in FRAGMENTS), f"{file}: {text}"


def test_every_error_has_the_form_by_which_it_is_found():
    texts = [text for path in sources() for text in raised(path.read_text(encoding="utf-8"))]
    assert len(texts) > 40
    assert [text for text in texts if not ERROR.search(text)] == []


def test_no_error_on_the_page_is_unknown():
    assert len(FRAGMENTS) > 40
    assert [fragment for fragment in FRAGMENTS if not any(fragment in text for _, text in MESSAGES)] == []


def test_what_is_left_out_is_there():
    for file in ANSWERS_TO_PROGRAMS:
        assert messages_of((paths.ROOT / file).read_text(encoding="utf-8")), file
