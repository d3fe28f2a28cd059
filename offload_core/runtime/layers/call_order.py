"""Guesses the order in which a model calls its modules before it has run, from the source code of its methods.

Modules are registered in the order of `__init__`, which is often not that of `forward`: refiners, modulations and side
blocks are registered last and called first, and a decoder's stages are walked backwards. So the children of a module
are sorted by where its methods first name them. What the code does not tell (names made at run time, blocks that
alternate) stays in the order of registration. A wrong guess only costs demand loads in the first pass.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator

from torch import nn

from .wrapped import LISTS, called_children, unwrapped

_ENTRIES = ("preprocess_text_embeds", "forward", "encode", "decode")
"""Methods in which a module's call begins. Text goes through a diffusion model's connector before the first step; an
autoencoder encodes before it decodes."""

_EVALUATED: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Call: ("args", "keywords", "func"),
    ast.Assign: ("value", "targets"),
    ast.For: ("iter", "body", "orelse"),
}
"""The fields of a node in the order in which they are evaluated, where that is not their order in the source."""

_MAX_METHODS = 64
"""Methods read per class."""


def in_call_order(root: nn.Module) -> Iterator[nn.Module]:
    """All modules of `root`, each once, parents before children, in the guessed order of their calls."""
    yield from _below(unwrapped(root), False, set(), {})


def _below(
    module: nn.Module, backwards: bool, seen: set[nn.Module], read: dict[type[nn.Module], _Reader]
) -> Iterator[nn.Module]:
    """`backwards`: the elements of this list in reverse. `read`: readers of classes already read."""
    if module in seen:
        return
    seen.add(module)
    yield module
    children = [(name, unwrapped(child)) for name, child in called_children(module)]
    reversed_lists: set[str] = set()
    if isinstance(module, LISTS):
        children = children[::-1] if backwards else children
    elif children:
        reader = read.get(type(module)) or read.setdefault(type(module), _Reader(type(module)))
        children.sort(key=lambda entry: reader.place_of(entry[0]))
        lists = {name for name, child in children if isinstance(child, LISTS)}
        reversed_lists = lists & reader.first_after_reversed([name for name, _ in children])
    for name, child in children:
        yield from _below(child, name in reversed_lists, seen, read)


class _Reader:
    """Reads the methods of a class in the order in which they name each other."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self._kind = kind
        self._attributes: dict[str, int] = {}
        """Attributes that are not methods, with their position in the order of first mention."""
        self._reversed_at: list[int] = []
        """Positions in that order at which `reversed` is named."""
        self._methods: set[str] = set()
        for entry in _ENTRIES:
            method = inspect.getattr_static(kind, entry, None)
            if method is not inspect.getattr_static(nn.Module, entry, None):
                self._name(entry)

    def place_of(self, attribute: str) -> int:
        """Position of an attribute's first mention; after all others if there is none."""
        return self._attributes.get(attribute, len(self._attributes))

    def first_after_reversed(self, attributes: Iterable[str]) -> set[str]:
        """Those of the attributes, given in order of mention, that come first after a `reversed`."""
        places = [(self.place_of(name), name) for name in attributes if name in self._attributes]
        return {next((name for place, name in places if place >= at), "") for at in self._reversed_at}

    def _name(self, name: str) -> None:
        """Note an attribute, or read it if it is a method."""
        method = inspect.getattr_static(self._kind, name, None)
        method = getattr(method, "__func__", method)  # of a class or static method
        if not isinstance(method, types.FunctionType):
            self._attributes.setdefault(name, len(self._attributes))
        elif name not in self._methods and len(self._methods) < _MAX_METHODS:
            self._methods.add(name)
            # The source may be missing, or newer than the code: packs are updated while the app runs.
            with contextlib.suppress(Exception):
                self._read(ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method)))))

    def _read(self, node: ast.AST) -> None:
        for name in _EVALUATED.get(type(node), node._fields):
            field = getattr(node, name, None)
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    self._read(child)
        if isinstance(node, ast.Attribute):
            self._name(node.attr)
        elif isinstance(node, ast.Name) and node.id == "reversed":
            self._reversed_at.append(len(self._attributes))
