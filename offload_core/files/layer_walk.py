"""Which modules of a model become layers, for the engine and the adviser alike.

The engine builds the tree of `Part`s from a module (`runtime/layers/discovery.py`), the adviser from the tensor names
in a file's header (`model_shape.py`). The walk starts at the root and descends through containers and through modules
that hold a list of blocks. Any other module it reaches is a layer if it is an element of a list or very large. Knows
nothing about tensors and devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..planning.ring_size import ordinary_size

MIN_LAYER_BYTES = 1 << 20
"""Smallest layer that is streamed: below it the latency of a copy per visit outweighs the memory saved."""

MIN_SINGLE_LAYER_BYTES = 64 << 20
"""Smallest layer outside any list of blocks: some models have one huge modulation or projection there."""

HOST_GATHER_BYTES = MIN_SINGLE_LAYER_BYTES
"""Embedding tables from this size on stay on the host, as a prompt reads a few hundred rows only; smaller ones are
loose. As a layer, CLIP-L's 76 MB table would be five times its largest block and determine the ring's size."""

SPLIT_LAYER_BYTES = 256 << 20
SPLIT_SHARE = 16
"""A block over 256 MB and over 1/16 of the model is split if it contains blocks: the largest layer determines the
ring's size."""

OUTSIZED = 2
"""A layer of more than this many times the ordinary size (`ring_size.py`) is split into its children if possible: it
alone would determine the ring's size. At most two layers of a model can be that large."""

MIN_LIST_SHARE = 10
"""A list is a list of blocks if it has at least 1/10 of the bytes of the module that contains it."""

MIN_TENSOR_BYTES = 1 << 20
SMALL_TENSOR_SHARE = 32

Held = TypeVar("Held")


def small_tensor_bytes(layer_bytes: int) -> int:
    """Tensors of a layer with fewer bytes than this stay on the device: norms, biases, small tables.

    They are a few percent of a model's bytes; each of them is one parameter less to swap on each visit.
    """
    return min(MIN_TENSOR_BYTES, layer_bytes // SMALL_TENSOR_SHARE)


@dataclass(slots=True, eq=False)
class Part(Generic[Held]):
    """A module in the tree of the walk.

    held       the caller's object for the module
    nbytes     parameter bytes, its children's included
    contains   a container: it only calls its children, or is never called itself; the walk descends through it
    is_list    its children are elements of a list, even if there is only one
    children   by name, in order
    """

    held: Held
    nbytes: int = 0
    contains: bool = False
    is_list: bool = False
    children: dict[str, Part[Held]] = field(default_factory=dict)

    def with_bytes(self) -> list[tuple[str, Part[Held]]]:
        """(name, child) of the children that have parameters, each child once, under its first name."""
        first: dict[int, tuple[str, Part[Held]]] = {}
        for name, child in self.children.items():
            if child.nbytes:
                first.setdefault(id(child), (name, child))
        return list(first.values())

    def calls_its_children(self) -> bool:
        """Whether two or more children have all of its bytes, so that it has no parameters of its own."""
        children = [child for _, child in self.with_bytes()]
        return len(children) >= 2 and sum(child.nbytes for child in children) >= self.nbytes

    def below(self) -> Iterator[Part[Held]]:
        """All parts below this, each once."""
        seen = {id(self)}
        pending = list(self.children.values())
        while pending:
            part = pending.pop()
            if id(part) not in seen:
                seen.add(id(part))
                yield part
                pending += part.children.values()


def units(root: Part[Held]) -> Iterator[tuple[str, Part[Held]]]:
    """(name, part) of each layer, in order. A part with several parents comes once for each of them."""
    large = max(SPLIT_LAYER_BYTES, root.nbytes // SPLIT_SHARE)
    layers = list(_below(root, "", large, root.is_list))
    ordinary = ordinary_size(part.nbytes for part in {id(part): part for _, part in layers}.values())
    outsized = max(MIN_SINGLE_LAYER_BYTES, OUTSIZED * ordinary) if ordinary else root.nbytes
    for name, part in layers:
        if part.nbytes > outsized and part.calls_its_children():
            yield from _below(part, name, large, True)
        else:
            yield name, part


def _below(part: Part[Held], name: str, large: int, in_list: bool) -> Iterator[tuple[str, Part[Held]]]:
    """(name, part) of the layers below `part`, whose name is `name`.

    large    bytes above which an element of a list is split if it contains blocks
    in_list  the children of `part` are elements of a list, which are layers at any size
    """
    for child_name, child in part.with_bytes():
        path = f"{name}.{child_name}" if name else child_name
        if child.contains:
            # A wrapper around a single module does not turn that module into an element of a list.
            elements = in_list or child.is_list or len(child.with_bytes()) > 1
            yield from _below(child, path, large, elements)
        elif holds_blocks(child) and not (in_list and child.nbytes <= large):
            yield from _below(child, path, large, False)
        elif in_list or child.nbytes >= MIN_SINGLE_LAYER_BYTES:
            yield path, child


def holds_blocks(part: Part[Held]) -> bool:
    """Whether `part` contains a list of blocks: a container below it, with at least 1/`MIN_LIST_SHARE` of its bytes and
    two or more children that have children themselves."""
    for inner in part.below():
        if inner.contains and inner.nbytes * MIN_LIST_SHARE >= part.nbytes:
            composite = [child for _, child in inner.with_bytes() if child.with_bytes()]
            if len(composite) >= 2:
                return True
    return False
