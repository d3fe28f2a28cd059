"""What a tensor is made of: plain tensors, whose bytes can be moved, and how these are put together again.

An ordinary tensor is its own only part. A wrapper subclass is taken apart and put together by its own protocol
(`__tensor_flatten__`, `__tensor_unflatten__`), to any depth. A GGUF tensor, told by its attributes and not by its
class, is bytes that carry a quantisation type and a shape. Whatever else there is cannot be moved as bytes, and the
error says why. Knows nothing about layers, buffers or devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import OffloadError
from .weight_file import dtype_of, keep_what_was_written, take_out_of_file

GGUF_MARKS = ("tensor_type", "tensor_shape", "patches")
"""What ComfyUI-GGUF and its descendants hang on a tensor subclass. Told by these, so that none of them is needed."""


class UnmovableTensor(OffloadError, ValueError):
    """The tensor cannot be moved as bytes. The text says what it is and why not."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether moving the bytes of `tensor` moves the tensor: an ordinary dense one, nothing wrapped, nothing lazy."""
    return type(tensor) in (nn.Parameter, torch.Tensor) and _is_dense(tensor)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_conj() or tensor.is_neg())


def plain(leaf: torch.Tensor) -> torch.Tensor:
    """An ordinary tensor over the same bytes: the shape, type and strides of what is really stored."""
    if type(leaf) in (nn.Parameter, torch.Tensor):
        return leaf
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.as_subclass(leaf, torch.Tensor)


class _Recipe:
    """How a tensor is put together from its leaves; equal for tensors that differ in nothing but their bytes."""

    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def like(self, other: _Recipe) -> bool:
        raise NotImplementedError


class _AsItIs(_Recipe):
    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        return next(leaves)

    def like(self, other: _Recipe) -> bool:
        return type(other) is _AsItIs


@dataclass
class _Marked(_Recipe):
    """A subclass whose own storage holds the bytes, with a few attributes beside it."""

    kind: type[torch.Tensor]
    marks: dict[str, Any]

    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        built = torch.Tensor.as_subclass(next(leaves), self.kind)
        vars(built).update(self.marks, patches=list(self.marks["patches"]))
        return built

    def like(self, other: _Recipe) -> bool:
        return (
            isinstance(other, _Marked)
            and other.kind is self.kind
            and all(other.marks[name] == self.marks[name] for name in GGUF_MARKS[:2])
        )


@dataclass
class _Wrapped(_Recipe):
    """A subclass that holds other tensors."""

    kind: type[torch.Tensor]
    names: tuple[str, ...]
    context: Any
    inner: tuple[_Recipe, ...]
    size: torch.Size
    stride: tuple[int, ...]

    def build(self, leaves: Iterator[torch.Tensor]) -> torch.Tensor:
        inner = {name: recipe.build(leaves) for name, recipe in zip(self.names, self.inner)}
        kind: Any = self.kind
        built: torch.Tensor = kind.__tensor_unflatten__(inner, self.context, self.size, self.stride)
        return built

    def like(self, other: _Recipe) -> bool:
        if not isinstance(other, _Wrapped) or other.kind is not self.kind or other.names != self.names:
            return False
        try:
            same = bool(self.context == other.context)
        except (TypeError, ValueError, RuntimeError):  # tensors in it, say: there is no telling
            return False
        return same and all(mine.like(theirs) for mine, theirs in zip(self.inner, other.inner))


@dataclass(frozen=True, slots=True)
class Parts:
    """A tensor taken apart. `leaves` hold its bytes: giving one of them other data gives it to the tensor."""

    leaves: tuple[torch.Tensor, ...]
    recipe: _Recipe

    def rebuild(self, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same kind of tensor over other leaves, in the order of `self.leaves`."""
        return self.recipe.build(iter(leaves))

    def as_parameter(self, leaves: Sequence[torch.Tensor]) -> nn.Parameter:
        """The same as something that a module takes for a parameter.

        A wrapper is marked, as torch marks it, and not handed to `nn.Parameter`: that would detach it, which a wrapper
        may take as an occasion to copy some of its parts.
        """
        built: Any = self.rebuild(leaves)
        if type(built) is torch.Tensor:
            return nn.Parameter(built, requires_grad=False)
        built._is_param = True
        return built  # type: ignore[no-any-return]

    def set_marks(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hang other values of its attributes onto what is built from now on. Returns the values before.

        Raises UnmovableTensor for a tensor that has no such attributes.
        """
        if not isinstance(self.recipe, _Marked) or not self.recipe.marks.keys() >= values.keys():
            raise UnmovableTensor(f"a tensor that carries no {', '.join(values)}")
        before = {name: self.recipe.marks[name] for name in values}
        self.recipe.marks.update(values)
        return before

    def like(self, other: Parts) -> bool:
        """Whether the two tensors differ in nothing but the bytes, shapes and strides of their leaves."""
        return self.recipe.like(other.recipe)


def parts_of(tensor: torch.Tensor) -> Parts:
    """Take `tensor` apart. Raises UnmovableTensor."""
    if is_plain(tensor):
        return Parts((tensor,), _AsItIs())
    leaves: list[torch.Tensor] = []
    recipe = _take_apart(tensor, leaves)
    parts = Parts(tuple(leaves), recipe)
    _check_rebuilds(tensor, parts)
    return parts


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of what is really stored, in the type it has in memory; of a type that cannot be taken apart, what its
    shape and type amount to."""
    if is_plain(tensor):
        return tensor.numel() * dtype_of(tensor).itemsize
    try:
        leaves = [plain(leaf) for leaf in parts_of(tensor).leaves]
    except UnmovableTensor:
        return tensor.numel() * tensor.element_size()
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def bring_into_memory(tensor: torch.Tensor) -> bool:
    """Give whatever of `tensor` lies in a file memory of its own. False: nothing does. Raises FileReadError."""
    try:
        leaves = parts_of(tensor).leaves
    except UnmovableTensor:
        return False
    taken = [take_out_of_file(leaf) for leaf in leaves]
    return any(taken)


def bring_written_into_memory(tensor: torch.Tensor) -> None:
    """Give whatever of `tensor` lies in a file, and was written to where it is mapped, memory of its own."""
    with contextlib.suppress(UnmovableTensor):
        for leaf in parts_of(tensor).leaves:
            keep_what_was_written(leaf)


def _take_apart(tensor: torch.Tensor, leaves: list[torch.Tensor]) -> _Recipe:
    kind = type(tensor)
    if is_plain(tensor):
        leaves.append(tensor)
        return _AsItIs()
    if kind in (nn.Parameter, torch.Tensor):
        what = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        raise UnmovableTensor(f"a {what} tensor" if _is_strange(tensor) else f"a lazily conjugated {what} tensor")
    if callable(getattr(kind, "__tensor_flatten__", None)) and callable(getattr(kind, "__tensor_unflatten__", None)):
        return _flatten(tensor, leaves)
    if all(hasattr(tensor, mark) for mark in GGUF_MARKS) and _is_dense(tensor):
        leaves.append(tensor)
        return _Marked(kind, {name: value for name, value in vars(tensor).items() if name != "_is_param"})
    raise UnmovableTensor(f"a {kind.__name__} tensor, a type that says nothing of the parts it is made of")


def _is_strange(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or tensor.layout != torch.strided


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
    """The type keeps its promise: what it puts together from its own parts is what it was."""
    name = type(tensor).__name__
    try:
        with torch.no_grad():
            twin = parts.rebuild([plain(leaf) for leaf in parts.leaves])
            same = type(twin) is type(tensor) and twin.shape == tensor.shape and twin.dtype == tensor.dtype
    except Exception as error:
        raise UnmovableTensor(f"a {name} tensor, which cannot be put together again: {error}") from error
    if not same:
        raise UnmovableTensor(f"a {name} tensor, which is another one when put together again")
