"""The tree of modules that a file's tensor names imply, with lists and containers guessed.

A header has neither classes nor forward methods. A module is taken for a list if the names of all its children are
numbers. It is also taken for one if each child contains two or more modules and the children are either named by one
word with numbers (`block0`, `block1`) or equal in structure: that detects a dictionary of blocks whatever its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .layer_walk import Part
from .safetensors_header import TensorInfo

NamePart = Part[list[TensorInfo]]
"""A module; `held` is the list of its own tensors."""

_STAGES = ("up", "down")
_NUMBERED = re.compile(r"(\D*)(\d+)", re.ASCII)


def tree_of(tensors: Iterable[TensorInfo]) -> NamePart:
    """The root of the tree of modules that contain `tensors`; the root has no name."""
    root: NamePart = Part([])
    for tensor in tensors:
        part = root
        part.nbytes += tensor.bytes
        for word in tensor.name.split(".")[:-1]:
            part = part.children.setdefault(word, Part([]))
            part.nbytes += tensor.bytes
        part.held.append(tensor)
    _mark_containers(root, "", None)
    return root


def tensors_below(part: NamePart) -> list[TensorInfo]:
    """All tensors of a module, its children's included."""
    return [*part.held, *(tensor for child in part.children.values() for tensor in tensors_below(child))]


def _mark_containers(part: NamePart, name: str, parent: NamePart | None) -> None:
    """Sets `contains` and `is_list` of `part`, whose name in `parent` is `name`, and of all parts below it."""
    part.is_list = not part.held and _is_list(part)
    part.contains = (part.is_list and _is_module_list(part, parent)) or name == "mid"
    for child_name, child in part.children.items():
        _mark_containers(child, child_name, part)
        if name in _STAGES and part.is_list and child.children and not child.held:
            # An autoencoder's stage: a list of blocks and a resampling module.
            child.contains = True


def _is_list(part: NamePart) -> bool:
    numbered = [_NUMBERED.fullmatch(name) for name in part.children]
    words = {match[1] if match else None for match in numbered}
    if words == {""}:
        return True
    if len(part.children) < 2 or any(len(list(child.below())) < 2 for child in part.children.values()):
        return False  # leaves, wrapped or not: `conv1` and `conv2` are no list
    return (len(words) == 1 and None not in words) or _have_one_structure(part)


def _is_module_list(part: NamePart, parent: NamePart | None) -> bool:
    """Whether a list is a list of modules, and not a sequence of leaves that is called as one module.

    A list of leaves in a list is a list of modules if its numbers have no gap, as a UNet's `input_blocks.4` with 4.0
    and 4.1. A missing number is an activation, which has no tensors: the list is then a projection.
    """
    if any(child.children for child in part.children.values()):
        return True
    if parent is not None and parent.is_list:
        return set(part.children) == {str(number) for number in range(len(part.children))}
    return len(part.children) > 2 and _have_one_structure(part)


def _have_one_structure(part: NamePart) -> bool:
    """Whether all children are equal in structure."""
    return len({_structure(child) for child in part.children.values()}) == 1


def _structure(part: NamePart) -> tuple[object, ...]:
    """The names and shapes of all tensors at and below `part`, as a value that can be compared."""
    own = sorted((tensor.name.rpartition(".")[2], tuple(tensor.shape)) for tensor in part.held)
    inner = sorted((name, _structure(child)) for name, child in part.children.items())
    return (*own, *inner)
