"""Which modules of a model are moved as one: the one judgement of the engine and of the adviser.

The engine makes the tree of `Part`s from a module (`runtime/discovery.py`), the adviser from the names in a file's
header (`model_shape.py`). Here is what both then do with it. The walk starts at the root and goes down through what
only *contains* and through what contains a list of blocks. What it reaches besides is a layer, if it is an element of a
list or very large. Knows nothing about tensors and devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .ring_size import ordinary_size

MIN_LAYER_BYTES = 1 << 20
"""A smaller layer costs more in latency per visit than its bytes are worth in memory."""

MIN_SINGLE_LAYER_BYTES = 64 << 20
"""A module outside any list of blocks is streamed only from this size on: some models keep one huge modulation or
projection there."""

HOST_GATHER_BYTES = MIN_SINGLE_LAYER_BYTES
"""An embedding table of this size stays on the host; a prompt touches a few hundred of its rows. Smaller ones are
loose. Streamed, CLIP-L's 76 MB would be five times its largest block, and size the ring."""

SPLIT_LAYER_BYTES = 256 << 20
SPLIT_SHARE = 16
"""A block over 256 MB and over 1/16 of the model is split if it holds blocks itself: the ring is sized by the
largest layer."""

OUTSIZED = 2
"""A layer of more than this many times the ordinary size (`ring_size.py`) is cut into its children where it can be: it
alone would size the ring. There are two of them at most."""

MIN_LIST_SHARE = 10
"""A list counts as a list of blocks from 1/10 of the bytes of the module that holds it."""

MIN_TENSOR_BYTES = 1 << 20
SMALL_TENSOR_SHARE = 32

Held = TypeVar("Held")


def small_tensor_bytes(layer_bytes: int) -> int:
    """Tensors of a layer that are smaller than this stay on the device: norms, biases, tables.

    Together they are a few percent of a model, and each one left out is a parameter less to swap on each visit.
    """
    return min(MIN_TENSOR_BYTES, layer_bytes // SMALL_TENSOR_SHARE)


@dataclass(slots=True, eq=False)
class Part(Generic[Held]):
    """A module as the walk sees it.

    held       what it stands for
    nbytes     parameter bytes, its children's included
    contains   it only calls its children, or is never called itself: the walk goes through it
    is_list    its children are elements of a list, also if there is only one
    children   by name, in order
    """

    held: Held
    nbytes: int = 0
    contains: bool = False
    is_list: bool = False
    children: dict[str, Part[Held]] = field(default_factory=dict)

    def with_bytes(self) -> list[tuple[str, Part[Held]]]:
        """The children that have parameters, each once, under its first name."""
        first: dict[int, tuple[str, Part[Held]]] = {}
        for name, child in self.children.items():
            if child.nbytes:
                first.setdefault(id(child), (name, child))
        return list(first.values())

    def calls_its_children(self) -> bool:
        """Whether all of its bytes are in two or more children: it has no parameter of its own to work with."""
        children = [child for _, child in self.with_bytes()]
        return len(children) >= 2 and sum(child.nbytes for child in children) >= self.nbytes

    def below(self) -> Iterator[Part[Held]]:
        """All parts below this, each once."""
        seen = {id(self)}
        waiting = list(self.children.values())
        while waiting:
            part = waiting.pop()
            if id(part) not in seen:
                seen.add(id(part))
                yield part
                waiting += part.children.values()


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes from which on a walk decides otherwise; see the constants of their names."""

    single_bytes: int = MIN_SINGLE_LAYER_BYTES
    split_bytes: int = SPLIT_LAYER_BYTES


def units(root: Part[Held], limits: Limits) -> Iterator[tuple[str, Part[Held]]]:
    """The parts to move as one, with their names, in order. A part that hangs in several places comes several times."""
    large = max(limits.split_bytes, root.nbytes // SPLIT_SHARE)
    whole = list(_below(root, "", large, limits.single_bytes, root.is_list))
    ordinary = ordinary_size(part.nbytes for part in {id(part): part for _, part in whole}.values())
    outsized = max(limits.single_bytes, OUTSIZED * ordinary) if ordinary else root.nbytes
    for name, part in whole:
        if part.nbytes > outsized and part.calls_its_children():
            yield from _below(part, name, large, limits.single_bytes, True)
        else:
            yield name, part


def _below(
    part: Part[Held], name: str, large: int, single_bytes: int, in_list: bool
) -> Iterator[tuple[str, Part[Held]]]:
    """`in_list`: the children of `part` are elements of a list, and candidates at any size."""
    for child_name, child in part.with_bytes():
        path = f"{name}.{child_name}" if name else child_name
        if child.contains:
            # What only wraps one module makes no element of it.
            elements = in_list or child.is_list or len(child.with_bytes()) > 1
            yield from _below(child, path, large, single_bytes, elements)
        elif holds_blocks(child) and not (in_list and child.nbytes <= large):
            yield from _below(child, path, large, single_bytes, False)
        elif in_list or child.nbytes >= single_bytes:
            yield path, child


def holds_blocks(part: Part[Held]) -> bool:
    """Whether a container of two or more composite children somewhere below has a fair share of the bytes of `part`."""
    for inner in part.below():
        if inner.contains and inner.nbytes * MIN_LIST_SHARE >= part.nbytes:
            composite = [child for _, child in inner.with_bytes() if child.with_bytes()]
            if len(composite) >= 2:
                return True
    return False
