"""The rules of the pack's code that ruff does not have find what they are for."""

import re
import textwrap

import pytest

from tests.support.devkit import foreign_writes as rule
from tests.support.devkit import paths
from tests.support.devkit.long_functions import long_functions


def found_in(source: str) -> list[str]:
    return [f"{owner}.{attribute}" for _, owner, attribute in rule.foreign_writes(textwrap.dedent(source))]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("other.x = 1", ["other.x"]),
        ("other.x += 1", ["other.x"]),
        ("other.x: int = 1", ["other.x"]),
        ("self.part.x = 1", ["self.part.x"]),
        ("del other.x", ["other.x"]),
        ("self.x, (other.y, *other.z) = 1, 2, 3", ["other.y", "other.z"]),
        ("other.x = self.y = 1", ["other.x"]),
        ("for other.x in (1, 2): pass", ["other.x"]),
        ("with open(other) as other.x: pass", ["other.x"]),
        ("several[0].x = 1", ["several[0].x"]),
        ("setattr(other, name, 1)", ["other.*"]),
        ("object.__setattr__(other, 'x', 1)", ["other.*"]),
        ("delattr(other, 'x')", ["other.*"]),
        ("vars(other)['x'] = 1", ["other.*"]),
        ("del other.__dict__['x']", ["other.*"]),
        ("vars(other).update(x=1)", ["other.*"]),
        ("made = find(); made.x = 1", ["made.x"]),
        ("made = Thing(); made.part.x = 1", ["made.part.x"]),
        ("made = Thing(); made = find(); made.x = 1", ["made.x"]),
        ("self.x = other.x", []),
        ("self.x[other.y] = 1", []),
        ("other.x[0] = 1", []),
        ("vars(self).update(x=1)", []),
        ("object.__setattr__(self, 'x', 1)", []),
        ("made = Thing(); made.x = 1", []),
        ("made = _module._Thing(); made.x = 1", []),
        ("made = Thing.__new__(Thing); made.x, made.y = 1, 2", []),
        ("made = copy.copy(other); made.x = 1", []),
        ("made = super().clone(); del made.x", []),
    ],
)
def test_a_write_to_an_attribute_of_another_object_is_found(line, expected):
    assert found_in(f"def function(self, other, several, name):\n    {line}") == expected


def test_what_one_function_has_made_is_not_anothers():
    source = """
        made = Thing()
        def first():
            made = Thing()
            def inner():
                made.x = 1
        def second(made):
            made.y = 1
        made.z = 1
    """
    assert found_in(source) == ["made.y", "made.z"]


def test_each_write_is_listed_and_each_listed_one_is_there(monkeypatch):
    monkeypatch.setattr(rule, "ON_PURPOSE", (("a.py", "other", "forward", "why"), ("a.py", "other", "past", "why")))
    write, meant = (1, "other", "x"), (2, "other", "forward")
    said = list(rule.problems({"a.py": [write, meant], "b.py": [meant, write], "c.py": []}))
    assert [line.partition(":")[0] for line in said] == ["a.py", "b.py", "a.py"]
    assert said[0].endswith(" a.py:1: other.x") and "b.py:2: other.forward" in said[1]
    assert "nothing writes other.past any more" in said[2]
    assert list(rule.problems({"a.py": [meant, (3, "other", "past")]})) == []


def test_a_long_function_is_found_and_a_docstring_does_not_count():
    lines = "\n".join(["    pass"] * 61)
    documented = f'def short():\n    """{"x" + chr(10) * 90}"""\n' + "\n".join(["    pass"] * 60)
    assert [name for _, name, _ in long_functions(f"def long():\n    pass\n{lines}\n{documented}\n")] == ["long"]


def test_each_name_that_passes_as_used_is_still_in_the_code():
    settings = (paths.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r'"(\w+)"', re.search(r"ignore_names = \[(.*?)\n\]", settings, re.DOTALL)[1])
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("offload_core", "bridge", "nodes")
        for path in (paths.ROOT / folder).rglob("*.py")
    )
    assert listed and [name for name in listed if not re.search(rf"\b{name}\b", code)] == []
