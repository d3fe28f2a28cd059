"""The layout of tensors end to end in a flat byte buffer, wrapped ones as the plain tensors that they are made of.

Each is aligned and keeps its strides, so that one copy of bytes moves them all, and a view at the same offset of any
other byte buffer is the same tensor there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..files.weight_file import as_type, dtype_of
from .parts import parts_of, plain

Held = TypeVar("Held")

TENSOR_ALIGNMENT = 256
"""Bytes. Vectorised and tensor-core kernels need 16 to 128; fp8 kernels have failed at 32. Costs nothing per layer."""

ALLOCATION_BYTES = 512
"""Bytes of which device allocators hand out multiples: an exact budget has to count whole ones."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in its layer's buffer."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor as a view into `buffer`, a flat byte tensor of the whole layer."""
        typed = buffer[self.offset : self.offset + self.nbytes].view(self.dtype)
        return torch.as_strided(typed, self.shape, self.stride, typed.storage_offset())

    def host_view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The same for a host buffer, with a storage of its own over the tensor's bytes. Torch cannot save tensors of
        one storage if their types differ, and counts the whole storage for each."""
        own_bytes = as_type(buffer[self.offset : self.offset + self.nbytes], torch.uint8)
        return torch.as_strided(own_bytes.view(self.dtype), self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The slots of a layer, one per plain tensor, and the size of the buffer that holds them."""

    slots: tuple[TensorSlot, ...]
    nbytes: int


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first to its last element, gaps between strides included."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def copy_span(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Copy everything from the first to the last element, for tensors of the same shape, type and strides. It is copied
    as flat memory, because tensors with overlapping elements (expanded ones) cannot be written to."""
    length = span_bytes(source) // source.element_size()
    flat = [torch.as_strided(tensor, (length,), (1,), tensor.storage_offset()) for tensor in (destination, source)]
    flat[0].copy_(flat[1])


def layout_of(tensors: Sequence[torch.Tensor]) -> LayerLayout:
    """The layout of the tensors end to end. Gaps inside a tensor's strides are kept."""
    slots, end = [], 0
    for tensor in tensors:
        nbytes = span_bytes(tensor)
        slots.append(TensorSlot(end, nbytes, tensor.dtype, tensor.shape, tensor.stride()))
        end = -(-(end + nbytes) // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
    return LayerLayout(tuple(slots), -(-end // ALLOCATION_BYTES) * ALLOCATION_BYTES)


def overlapping(ranges: Iterable[tuple[int, int, Held]]) -> Iterator[tuple[Held, Held]]:
    """The pairs of objects whose ranges, given as (start, end, object), have bytes in common."""
    alive: list[tuple[int, Held]] = []
    for start, end, held in sorted(ranges, key=lambda entry: entry[0]):
        alive = [(other_end, other) for other_end, other in alive if other_end > start]
        yield from ((other, held) for _, other in alive)
        alive.append((end, held))


class Flattened:
    """Tensors taken apart into distinct plain tensors, and the layout of these."""

    __slots__ = ("layout", "leaves", "parts", "places")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raises UnmovableTensor if one of them cannot be moved as bytes."""
        self.parts = [parts_of(tensor) for tensor in tensors]
        positions: dict[int, int] = {}
        self.leaves: list[torch.Tensor] = []
        for parts in self.parts:
            for leaf in parts.leaves:
                if id(leaf) not in positions:
                    positions[id(leaf)] = len(self.leaves)
                    self.leaves.append(leaf)
        self.places = [tuple(positions[id(leaf)] for leaf in parts.leaves) for parts in self.parts]
        """For each tensor, the indices of its parts' slots."""
        self.layout = layout_of([_in_memory(leaf) for leaf in self.leaves])

    def views(self, buffer: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each tensor, its parts as views into `buffer`."""
        views = [slot.view(buffer) for slot in self.layout.slots]
        return [[views[place] for place in places] for places in self.places]


def _in_memory(leaf: torch.Tensor) -> torch.Tensor:
    """`leaf`, or a meta tensor in its place if it lies in a file in another type than it will have in memory."""
    dtype = dtype_of(leaf)
    if dtype == leaf.dtype:
        return plain(leaf)
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=dtype, device="meta")
