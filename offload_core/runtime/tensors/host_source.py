"""The sources of a layer's bytes that are not page-locked: host memory, or the file.

A source fills any range of the layer's flat buffer, on any thread. Ranges start and end at multiples of 512 bytes (as
slots, pieces and layers do, see `layout.py`), so that no element is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Protocol

import torch

from ..files.weight_file import READ_BYTES, FileSlice
from .layout import TensorSlot

LOADERS = 4
"""Threads that fill masters in parallel. Most of their time is the kernel's, which allocates and fills pages."""

PIECE_BYTES = READ_BYTES
"""Bytes that a thread reads at once. Pieces are given out in the file's order, for disks with one head."""


class Abandoned(Exception):  # noqa: N818 - not an error: the bytes are no longer needed
    """The read had not begun when its pass failed."""


class ByteSource(Protocol):
    """A layer's bytes, `nbytes` in all."""

    nbytes: int

    def read(self, destination: torch.Tensor, start: int) -> None:
        """Fill `destination`, flat host bytes, with the layer's bytes from `start` on. Raises OffloadError."""


class MemorySource:
    """A buffer of pageable host memory."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.nbytes = buffer.numel()

    def read(self, destination: torch.Tensor, start: int) -> None:
        with torch.inference_mode(False), torch.no_grad():
            destination.copy_(self.buffer[start : start + destination.numel()])


def loaders() -> ThreadPoolExecutor:
    """Threads for `read_whole`, until the block ends."""
    return ThreadPoolExecutor(LOADERS, "layerwise-offload-load")


def read_whole(source: ByteSource, destination: torch.Tensor, threads: Executor | None) -> None:
    """Fill `destination` with all of a layer's bytes. Raises OffloadError, after all threads have stopped writing."""
    starts = range(0, destination.numel(), PIECE_BYTES)
    if threads is None or len(starts) < 2:
        source.read(destination, 0)
        return
    pieces = [threads.submit(source.read, destination[start : start + PIECE_BYTES], start) for start in starts]
    wait(pieces)
    for piece in pieces:
        piece.result()


class KeptPart(MemorySource):
    """A tensor in no file of a layer that lies in one, such as the scale of a quantised weight."""

    file = None

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.view(-1).view(torch.uint8))
        self.mapped, self.dtype = tensor, tensor.dtype

    def read(self, destination: torch.Tensor, start: int, dtype: torch.dtype | None = None) -> None:
        super().read(destination, start)


class FileSource:
    """Tensors in their file, converted where the model needs another type than the file has. The conversion is the one
    of the app's own loader, element by element: the bits are the same."""

    def __init__(
        self,
        slots: Sequence[TensorSlot],
        parts: Sequence[FileSlice | KeptPart],
        nbytes: int,
        find: Callable[[], torch.Tensor | None] = lambda: None,
    ) -> None:
        """`find` returns a buffer of the same bytes, if one is in memory at the moment."""
        self.nbytes = nbytes
        self._find = find
        self.slots, self.parts = slots, parts
        self.files = tuple({id(part.file): part.file for part in parts if part.file is not None}.values())

    def read(self, destination: torch.Tensor, start: int) -> None:
        in_memory = self._find()
        if in_memory is not None:
            MemorySource(in_memory).read(destination, start)
        else:
            end = start + destination.numel()
            for slot, part in zip(self.slots, self.parts):
                first, last = max(start, slot.offset), min(end, slot.offset + slot.nbytes)
                if first < last:
                    part.read(destination[first - start : last - start], first - slot.offset, slot.dtype)
        self.check()  # after the read, so that a change during it is found too

    def check(self) -> None:
        """Raise FileReadError if a file has changed since it was opened."""
        for file in self.files:
            file.check()
