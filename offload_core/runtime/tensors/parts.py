"""Takes a tensor apart into plain tensors, whose bytes can be moved, and builds it from such tensors again.

An ordinary tensor is its own only part. A wrapper subclass is taken apart and rebuilt by its own protocol
(`__tensor_flatten__`), to any depth; a GGUF tensor is bytes with a quantisation type and a shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...errors import OffloadError
from ..files.weight_file import dtype_of, take_out_of_file

GGUF_MARKS = ("tensor_type", "tensor_shape", "patches")
"""Attributes by which tensors of ComfyUI-GGUF and its descendants are recognised, without importing any of them."""


class UnmovableTensor(OffloadError, ValueError):
    """The tensor cannot be moved as bytes. The text says what it is and why not."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is ordinary and dense: not wrapped, not lazy, so that its bytes are all of it."""
    return type(tensor) in (nn.Parameter, torch.Tensor) and _is_dense(tensor)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_conj() or tensor.is_neg())


def plain(leaf: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor over the same bytes, with the shape, type and strides of what is stored."""
    if type(leaf) in (nn.Parameter, torch.Tensor):
        return leaf
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.as_subclass(leaf, torch.Tensor)


# Recipes: how to build a tensor from its leaves. They are equal for tensors that differ in nothing but their bytes.


@dataclass
class _Plain:
    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        return next(leaves)


@dataclass
class _Marked:
    """A subclass whose own storage holds the bytes, and its attributes."""

    kind: type[torch.Tensor]
    form: tuple[Any, ...]
    """Quantisation type and shape."""
    marks: dict[str, Any] = field(compare=False)

    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        built = torch.Tensor.as_subclass(next(leaves), self.kind)
        vars(built).update(self.marks, patches=list(self.marks["patches"]))
        return built


@dataclass
class _Wrapped:
    """A subclass that holds other tensors."""

    kind: type[torch.Tensor]
    names: tuple[str, ...]
    context: Any
    inner: tuple[_Recipe, ...]
    size: torch.Size = field(compare=False)
    stride: tuple[int, ...] = field(compare=False)

    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        inner = {name: recipe.build(leaves) for name, recipe in zip(self.names, self.inner)}
        kind: Any = self.kind
        built: torch.Tensor = kind.__tensor_unflatten__(inner, self.context, self.size, self.stride)
        return built


_Recipe = _Plain | _Marked | _Wrapped


@dataclass(frozen=True, slots=True)
class Parts:
    """A tensor taken apart. `leaves` hold its bytes: giving a leaf other data gives it to the tensor."""

    leaves: tuple[torch.Tensor, ...]
    recipe: _Recipe

    def rebuild(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same kind of tensor over other leaves, in the order of `self.leaves`."""
        return self.recipe.build(iter(leaves))

    def as_parameter(self, leaves: Sequence[torch.Tensor]) -> nn.Parameter:
        """The same as a parameter. A wrapper is marked as one, as torch does: `nn.Parameter` would detach it, and some
        wrappers copy parts of themselves then."""
        built: Any = self.rebuild(leaves)
        if type(built) is torch.Tensor:
            return nn.Parameter(built, requires_grad=False)
        built._is_param = True
        return built  # type: ignore[no-any-return]

    def set_marks(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set attributes of what is built from now on. Returns the values before. Raises UnmovableTensor."""
        if not isinstance(self.recipe, _Marked) or not self.recipe.marks.keys() >= values.keys():
            raise UnmovableTensor(f"a tensor that carries no {', '.join(values)}")
        before = {name: self.recipe.marks[name] for name in values}
        self.recipe.marks.update(values)
        return before

    def like(self, other: Parts) -> bool:
        """Whether the two tensors differ in nothing but the bytes, shapes and strides of their leaves."""
        try:
            return self.recipe == other.recipe
        except (TypeError, ValueError, RuntimeError):  # not comparable: tensors in the context of a type, say
            return False


def parts_of(tensor: torch.Tensor) -> Parts:
    """Take `tensor` apart. Raises UnmovableTensor."""
    if is_plain(tensor):
        return Parts((tensor,), _Plain())
    leaves: list[torch.Tensor] = []
    recipe = _take_apart(tensor, leaves)
    parts = Parts(tuple(leaves), recipe)
    _check_rebuilds(tensor, parts)
    return parts


def leaves_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the bytes of `tensor`; none if it cannot be moved as bytes."""
    try:
        return parts_of(tensor).leaves
    except UnmovableTensor:
        return ()


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of what is stored, in the type it has in memory; if it cannot be taken apart, those of its shape and
    type."""
    if is_plain(tensor):
        return tensor.numel() * dtype_of(tensor).itemsize
    leaves = [plain(leaf) for leaf in leaves_of(tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves or [tensor])


def bring_into_memory(tensor: torch.Tensor) -> bool:
    """Copy what of `tensor` lies in a file into memory. Returns whether anything does. Raises FileReadError."""
    taken = [take_out_of_file(leaf) for leaf in leaves_of(tensor)]
    return any(taken)


def _take_apart(tensor: torch.Tensor, leaves: list[torch.Tensor]) -> _Recipe:
    kind = type(tensor)
    if is_plain(tensor):
        leaves.append(tensor)
        return _Plain()
    if kind in (nn.Parameter, torch.Tensor):
        what = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        lazy = not tensor.is_meta and tensor.layout == torch.strided
        raise UnmovableTensor(f"a lazily conjugated {what} tensor" if lazy else f"a {what} tensor")
    if callable(getattr(kind, "__tensor_flatten__", None)) and callable(getattr(kind, "__tensor_unflatten__", None)):
        return _flatten(tensor, leaves)
    if all(hasattr(tensor, mark) for mark in GGUF_MARKS) and _is_dense(tensor):
        leaves.append(tensor)
        form = tuple(getattr(tensor, mark) for mark in GGUF_MARKS[:2])
        return _Marked(kind, form, {name: value for name, value in vars(tensor).items() if name != "_is_param"})
    raise UnmovableTensor(f"a {kind.__name__} tensor, a type that says nothing of the parts it is made of")


def _flatten(tensor: Any, leaves: list[torch.Tensor]) -> _Recipe:
    kind = type(tensor)
    names, context = tensor.__tensor_flatten__()
    inner = []
    for name in names:
        part = getattr(tensor, name)
        if not isinstance(part, torch.Tensor) or getattr(tensor, name) is not part:
            raise UnmovableTensor(f"a {kind.__name__} tensor, whose part {name} is made anew each time it is asked for")
        inner.append(_take_apart(part, leaves))
    return _Wrapped(kind, tuple(names), context, tuple(inner), tensor.size(), tensor.stride())


def _check_rebuilds(tensor: torch.Tensor, parts: Parts) -> None:
    """Raise UnmovableTensor unless the type rebuilds the same kind of tensor from its own parts."""
    name = type(tensor).__name__
    try:
        with torch.no_grad():
            twin = parts.rebuild([plain(leaf) for leaf in parts.leaves])
            same = type(twin) is type(tensor) and twin.shape == tensor.shape and twin.dtype == tensor.dtype
    except Exception as error:
        raise UnmovableTensor(f"a {name} tensor, which cannot be put together again: {error}") from error
    if not same:
        raise UnmovableTensor(f"a {name} tensor, which is another one when put together again")
