"""A guess of the order in which a model calls its modules, before it has run: by the code of its own methods.

Modules are registered in the order of `__init__`, which is often not that of `forward`: refiners, modulations and side
blocks are registered last and called first, and a decoder's stages are walked backwards. So the children of a module
are put in the order in which its methods name them. Code is read, and nothing is called. Whatever it does not tell
(names that are made up as it runs, blocks that take turns) stays in the order of registration; a guess that is wrong
costs demand loads in the first pass, and nothing else.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator

from torch import nn

from .wrapped import called_children, unwrapped

_ENTRIES = ("preprocess_text_embeds", "forward", "encode", "decode")
"""Methods in which a module's call begins. Text goes through a diffusion model's connector before its first step, and
an autoencoder is encoded with before it is decoded with."""

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

_MAX_METHODS = 64
"""Of one class, that are read."""


def in_call_order(root: nn.Module) -> Iterator[nn.Module]:
    """All modules of `root`, each once, itself first, a parent before its children, in the order of the guess."""
    yield from _below(unwrapped(root), False, set(), {})


def _below(
    module: nn.Module, backwards: bool, seen: set[nn.Module], read: dict[type[nn.Module], _Reader]
) -> Iterator[nn.Module]:
    """`backwards`: the elements of this list come last first. `read`: the classes that were read already."""
    if module in seen:
        return
    seen.add(module)
    yield module
    children = [(name, unwrapped(child)) for name, child in called_children(module)]
    from_the_end: set[str] = set()
    if isinstance(module, _LISTS):
        children = children[::-1] if backwards else children
    elif children:
        reader = read.get(type(module)) or read.setdefault(type(module), _Reader(type(module)))
        children.sort(key=lambda entry: reader.place_of(entry[0]))
        lists = {name for name, child in children if isinstance(child, _LISTS)}
        from_the_end = lists & reader.first_after_reversed([name for name, _ in children])
    for name, child in children:
        yield from _below(child, name in from_the_end, seen, read)


class _Reader(ast.NodeVisitor):
    """Reads the methods of a class in the order in which they name each other."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self._kind = kind
        self._attributes: dict[str, int] = {}
        """The attributes that are no methods, and where each is named first."""
        self._reversed_at: list[int] = []
        """Where `reversed` is named, among the attributes."""
        self._methods: set[str] = set()
        for entry in _ENTRIES:
            method = inspect.getattr_static(kind, entry, None)
            if method is not inspect.getattr_static(nn.Module, entry, None):
                self._name(entry)

    def place_of(self, attribute: str) -> int:
        """Where an attribute is named; behind all others if it is not named."""
        return self._attributes.get(attribute, len(self._attributes))

    def first_after_reversed(self, attributes: Iterable[str]) -> set[str]:
        """Those of the attributes, which are given in their order, that are the next after a `reversed`."""
        places = [(self.place_of(name), name) for name in attributes if name in self._attributes]
        return {next((name for place, name in places if place >= at), "") for at in self._reversed_at}

    def _name(self, name: str) -> None:
        """An attribute is named: if it is a method, that is read."""
        method = inspect.getattr_static(self._kind, name, None)
        method = getattr(method, "__func__", method)  # of a class or static method
        if not isinstance(method, types.FunctionType):
            self._attributes.setdefault(name, len(self._attributes))
        elif name not in self._methods and len(self._methods) < _MAX_METHODS:
            self._methods.add(name)
            # There may be no source, or another one by now: packs are updated under a running app.
            with contextlib.suppress(Exception):
                self.visit(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method)))))

    def visit_Call(self, node: ast.Call) -> None:  # noqa: N802 - the name that ast asks for
        """What is called is called when its arguments are there."""
        for child in (*node.args, *node.keywords, node.func):
            self.visit(child)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        self.visit(node.value)
        self._name(node.attr)

    def visit_Name(self, node: ast.Name) -> None:  # noqa: N802
        if node.id == "reversed":
            self._reversed_at.append(len(self._attributes))

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        for child in (node.value, *node.targets):
            self.visit(child)

    def visit_For(self, node: ast.For) -> None:  # noqa: N802
        for child in (node.iter, *node.body, *node.orelse):
            self.visit(child)
