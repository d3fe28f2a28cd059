"""A lint rule that ruff does not have: no object writes an attribute of another object.

A function may write attributes of `self` and `cls`, and of objects that it has made: of names that it binds only to
calls that make an object. So the state of an object changes in one file. Checked are assignments, deletions, `setattr`
and its like, and writes to `vars(x)` and `x.__dict__`; method calls that change an object are not.

`foreign_writes_listed.py` lists the deliberate writes, each with its reason.
`python -m tests.support.devkit.foreign_writes` runs it, as `dev.py lint` does.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .foreign_writes_listed import ON_PURPOSE

FOLDERS = ("offload_core", "bridge", "nodes")
LISTS = "tests/support/devkit/foreign_writes_listed.py"

MAKERS = ("__new__", "copy", "deepcopy", "clone", "replace")
"""Calls of functions with these names, or with a capitalised name, make an object."""

OWN = ("self", "cls")
_WRITES = "writes to attributes of other objects"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _last_name(function: ast.expr) -> str:
    return getattr(function, "attr", "") or getattr(function, "id", "")


def _makes(value: ast.expr | None) -> bool:
    if not isinstance(value, ast.Call):
        return False
    name = _last_name(value.func)
    return name in (*MAKERS, "cls") or name.lstrip("_")[:1].isupper() or ast.unparse(value.func) == "type(self)"


def _made_in(function: ast.AST) -> set[str]:
    """Names that `function` binds only to objects that it has made."""
    bound = [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    bound += [node.arg for node in ast.walk(function) if isinstance(node, ast.arg)]
    made = []
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _makes(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made += [target.id for target in targets if isinstance(target, ast.Name)]
    return {name for name in made if made.count(name) == bound.count(name)}


def _owner(node: ast.AST) -> tuple[ast.expr, str] | None:
    """(object, attribute) that `node` writes; None if it writes no attribute."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return node.value, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return _of_dictionary(node.value)
    if isinstance(node, ast.Call):
        if _last_name(node.func) in ("setattr", "delattr", "__setattr__", "__delattr__") and node.args:
            return node.args[0], "*"
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("update", "pop", "clear", "setdefault"):
            return _of_dictionary(node.func.value)
    return None


def _of_dictionary(value: ast.expr) -> tuple[ast.expr, str] | None:
    """(x, "*") for `vars(x)` and `x.__dict__`, else None."""
    if isinstance(value, ast.Attribute) and value.attr == "__dict__":
        return value.value, "*"
    if isinstance(value, ast.Call) and _last_name(value.func) == "vars" and value.args:
        return value.args[0], "*"
    return None


def foreign_writes(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, owner, attribute) of each write to an attribute of another object."""

    def look(node: ast.AST, own: set[str]) -> Iterator[tuple[int, str, str]]:
        for child in ast.iter_child_nodes(node):
            within = own | _made_in(child) if isinstance(child, _FUNCTIONS) else own
            found = _owner(child)
            if found is not None and not (isinstance(found[0], ast.Name) and found[0].id in within):
                yield child.lineno, ast.unparse(found[0]), found[1]
            yield from look(child, within)

    yield from look(ast.parse(source), set(OWN))


def _is_meant(entry: tuple[str, str, str, str], file: str, owner: str, attribute: str) -> bool:
    return all(meant in ("*", here) for meant, here in zip(entry, (file, owner, attribute)))


def problems(found: Mapping[str, Iterable[tuple[int, str, str]]]) -> Iterator[str]:
    """Error lines: unlisted writes, and listed ones that no longer exist. `found`: writes by file."""
    unused = set(ON_PURPOSE)
    for file, writes in found.items():
        rest = []
        for line, owner, attribute in writes:
            entries = {entry for entry in ON_PURPOSE if _is_meant(entry, file, owner, attribute)}
            unused -= entries
            if not entries:
                rest.append(f"    {file}:{line}: {owner}.{attribute}")
        if rest:
            yield "\n".join([f"{file}: {_WRITES}; give the object a method that does it, and call that:", *rest])
    for file, owner, attribute, _ in sorted(unused):
        yield f"{file}: nothing writes {owner}.{attribute} any more; take it out of ON_PURPOSE in {LISTS}"


def pack_files() -> dict[str, str]:
    """The source of each file that users run, by its path below the checkout."""
    root = Path(__file__).parents[3]
    paths = [root / "__init__.py", *(path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def main() -> int:
    said = list(problems({file: foreign_writes(source) for file, source in pack_files().items()}))
    print("\n".join(said) or f"No {_WRITES} but those in {LISTS}.")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
