"""How tensors lie end to end in a flat byte buffer: their places, and what they look like there.

Each is aligned and keeps its strides, so that one copy of bytes moves them all and a view at the same offset of any
other byte buffer is the same tensor there. Wrapped ones are laid down as the plain tensors they are made of
(`parts.py`). Knows nothing about who owns a buffer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .parts import parts_of, plain
from .weight_file import dtype_of

TENSOR_ALIGNMENT = 256
"""Bytes. Vectorised and tensor-core kernels want 16 to 128; fp8 kernels have failed at 32. Costs nothing per layer."""

ALLOCATION_BYTES = 512
"""Device allocators hand out multiples of this: a budget that is kept to the byte has to count what is taken."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in its layer's buffer."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor, as a view into `buffer`, a flat byte tensor that holds the whole layer."""
        return self._view(buffer[self.offset : self.offset + self.nbytes])

    def host_view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The same for a host buffer, with a storage of its own over the tensor's bytes.

        Tensors of one storage cannot be saved by torch if their types differ, and each counts for all of it.
        """
        if not self.nbytes:
            return self._view(torch.empty(0, dtype=torch.uint8))
        memory = (ctypes.c_ubyte * self.nbytes).from_address(buffer.data_ptr() + self.offset)
        memory.owner = buffer  # type: ignore[attr-defined]  # the new storage keeps `memory` alive, and that the bytes
        return self._view(torch.frombuffer(memory, dtype=torch.uint8))

    def _view(self, own_bytes: torch.Tensor) -> torch.Tensor:
        typed = own_bytes.view(self.dtype)
        return torch.as_strided(typed, self.shape, self.stride, typed.storage_offset())


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The slots of a layer, one for each plain tensor, and the bytes of the buffer that holds them."""

    slots: tuple[TensorSlot, ...]
    nbytes: int


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first to its last element; more than its elements where the strides leave gaps."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def copy_span(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Copy what lies between the first and the last element of two tensors of the same shape, type and strides.

    As flat memory, because tensors whose elements lie on top of each other (expanded ones) cannot be written to.
    """
    length = span_bytes(source) // source.element_size()
    flat = [torch.as_strided(tensor, (length,), (1,), tensor.storage_offset()) for tensor in (destination, source)]
    flat[0].copy_(flat[1])


def layout_of(tensors: Sequence[torch.Tensor]) -> LayerLayout:
    """Lay the tensors end to end. Holes inside a tensor's strides are kept as they are."""
    slots, end = [], 0
    for tensor in tensors:
        nbytes = span_bytes(tensor)
        slots.append(TensorSlot(end, nbytes, tensor.dtype, tensor.shape, tensor.stride()))
        end = _aligned(end + nbytes)
    return LayerLayout(tuple(slots), -(-end // ALLOCATION_BYTES) * ALLOCATION_BYTES)


class Flattened:
    """Tensors as the plain ones they are made of, each of those once, and where these lie when laid end to end."""

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
        """For each tensor, which slots its parts lie in."""
        self.layout = layout_of([_in_memory(leaf) for leaf in self.leaves])

    def views(self, buffer: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each tensor, its parts as views into `buffer`."""
        views = [slot.view(buffer) for slot in self.layout.slots]
        return [[views[place] for place in places] for places in self.places]


def _in_memory(leaf: torch.Tensor) -> torch.Tensor:
    """`leaf`, or a stand-in of its shape for one that lies in a file in another type than it is to have."""
    dtype = dtype_of(leaf)
    return (
        plain(leaf)
        if dtype == leaf.dtype
        else torch.empty_strided(leaf.shape, leaf.stride(), dtype=dtype, device="meta")
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
