"""Every sentence stands in one table: what is said uses it, what it has is said, and the panel has the same words."""

from __future__ import annotations

import ast
import json
import string

import pytest

from offload_core.notices import Notice, notices_json
from offload_core.sentences import TEMPLATES, reason_json, sentence
from tests.support.devkit import paths

ENGLISH = json.loads((paths.ROOT / "web" / "words" / "en.json").read_text(encoding="utf-8"))
FILES = [path for folder in ("offload_core", "bridge", "nodes") for path in sorted((paths.ROOT / folder).rglob("*.py"))]


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def calls(tree: ast.Module) -> list[tuple[int, set[str], set[str | None]]]:
    """Each call of `sentence`: its line, the codes that it may have, the names of its values."""
    constants = {}
    for part in tree.body:
        target = part.target if isinstance(part, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and isinstance(part.value, ast.Constant):
            constants[target.id] = part.value.value
    rows = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "sentence":
            (code,) = call.args
            written = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
            codes = {constants[c.id] if isinstance(c, ast.Name) else c.value for c in written}
            rows.append((call.lineno, codes, {keyword.arg for keyword in call.keywords}))
    return rows


SAID = [
    (f"{path.relative_to(paths.ROOT)}:{line}", code, names)
    for path in FILES
    for line, codes, names in calls(ast.parse(path.read_text(encoding="utf-8")))
    for code in sorted(codes)
]


@pytest.mark.parametrize(("where", "code", "names"), SAID, ids=[f"{where} {code}" for where, code, _ in SAID])
def test_what_is_said_has_a_template_and_all_its_values(where: str, code: str, names: set[str | None]) -> None:
    assert code in TEMPLATES, where
    assert placeholders(TEMPLATES[code]) == names, where


def test_every_template_is_said() -> None:
    assert set(TEMPLATES) - {code for _, code, _ in SAID} == set()


def test_the_panel_has_the_same_sentences_in_the_same_words() -> None:
    shown = {key.removeprefix("why."): text for key, text in ENGLISH.items() if key.startswith("why.")}
    assert shown == dict(TEMPLATES)
    assert list(shown) == list(TEMPLATES)


def test_a_sentence_is_its_code_and_its_values() -> None:
    inner = sentence("does_not_fit", size="9.80 GB", sum="too much")
    outer = sentence("room_for_some", reason=inner, resident=3, layers=10)
    assert outer.text == (
        "its 9.80 GB do not fit beside the rest: too much; ComfyUI has room for 3 of its 10 layers, the others are "
        "streamed"
    )
    values = {"reason": {"code": "does_not_fit", "values": {"size": "9.80 GB", "sum": "too much"}}}
    assert outer.to_json() == {"code": "room_for_some", "values": {**values, "resident": "3", "layers": "10"}}
    assert reason_json(outer) == {"reason": outer.text, "why": outer.to_json()}
    assert reason_json(None) == {"reason": "", "why": None}
    assert len({outer, sentence("room_for_some", reason=inner, resident="3", layers=10)}) == 1, "equal ones are one"


def test_braces_in_a_value_are_text() -> None:
    assert sentence("written_under_patch", name="{size}").text.startswith("{size} was written to")


def test_a_notice_says_what_and_what_to_do() -> None:
    what = sentence("loaded_twice")
    notice, plain = Notice("dit", what, do=sentence("do_load_once")), Notice("", what)
    assert notice.line == f"{what.text}; {TEMPLATES['do_load_once']}" and plain.line == notice.text == what.text
    shown = notices_json([notice, plain])
    assert shown["warnings"] == [notice.line, plain.line]
    assert shown["notices"] == [
        {"component": "dit", "code": "loaded_twice", "values": {}, "do": {"code": "do_load_once", "values": {}}},
        {"component": "", "code": "loaded_twice", "values": {}, "do": None},
    ]
