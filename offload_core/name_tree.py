"""The tree of modules that a file's tensor names make, with guesses for what names do not say.

A header has neither classes nor forwards. A module is taken for a list if the names of all its children are numbers.
It is also taken for one if all of them hold several modules, and are either called by one word with numbers (`block0`,
`block1`) or alike in structure: so a dictionary of blocks is told, whatever its keys are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .layer_walk import Part
from .safetensors_header import TensorInfo

__all__ = ["NamePart", "tensors_below", "tree_of"]

NamePart = Part[list[TensorInfo]]
"""A module by its name, and the tensors that are its own."""

_STAGES = ("up", "down")
_NUMBERED = re.compile(r"(\D*)(\d+)", re.ASCII)


def tree_of(tensors: Iterable[TensorInfo]) -> NamePart:
    """The tree of the modules that `tensors` are in, below a root without a name."""
    root: NamePart = Part([])
    for tensor in tensors:
        part = root
        part.nbytes += tensor.bytes
        for word in tensor.name.split(".")[:-1]:
            part = part.children.setdefault(word, Part([]))
            part.nbytes += tensor.bytes
        part.held.append(tensor)
    _tell_containers(root, "", None)
    return root


def tensors_below(part: NamePart) -> list[TensorInfo]:
    """All tensors of a module, its children's included."""
    return [*part.held, *(tensor for child in part.children.values() for tensor in tensors_below(child))]


def _tell_containers(part: NamePart, name: str, parent: NamePart | None) -> None:
    """Fill in `contains` and `is_list` of `part`, whose name in `parent` is `name`, and of all below it."""
    part.is_list = not part.held and _is_list(part)
    part.contains = (part.is_list and _is_gone_through(part, parent)) or name == "mid"
    for child_name, child in part.children.items():
        _tell_containers(child, child_name, part)
        if name in _STAGES and part.is_list and child.children and not child.held:
            # An autoencoder's stage: a list of blocks and what changes the size.
            child.contains = True


def _is_list(part: NamePart) -> bool:
    numbered = [_NUMBERED.fullmatch(name) for name in part.children]
    words = {match[1] if match else None for match in numbered}
    if words == {""}:
        return True
    if len(part.children) < 2 or any(len(list(child.below())) < 2 for child in part.children.values()):
        return False  # a leaf, or one in a wrapper: `conv1` and `conv2` are no list
    return (len(words) == 1 and None not in words) or _have_one_structure(part)


def _is_gone_through(part: NamePart, parent: NamePart | None) -> bool:
    """Whether a list is a list of modules, or a sequential of leaves, which is called as one.

    An element of a list that is a list itself without gaps is not called: a UNet's `input_blocks.4` is that of 4.0 and
    4.1. Where a number is missing there is an activation: a projection.
    """
    if any(child.children for child in part.children.values()):
        return True
    if parent is not None and parent.is_list:
        return sorted(part.children, key=_as_number) == [str(number) for number in range(len(part.children))]
    return len(part.children) > 2 and _have_one_structure(part)


def _as_number(name: str) -> int:
    return int(name) if name.isdigit() else -1


def _have_one_structure(part: NamePart) -> bool:
    """Whether all children have tensors and modules of the same names and shapes below them."""
    return len({_structure(child) for child in part.children.values()}) == 1


def _structure(part: NamePart) -> tuple[object, ...]:
    own = sorted((tensor.name.rpartition(".")[2], tuple(tensor.shape)) for tensor in part.held)
    inner = sorted((name, _structure(child)) for name, child in part.children.items())
    return (*own, *inner)
