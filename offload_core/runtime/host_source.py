"""Where the bytes of a layer come from when they are not page-locked: memory, or the file itself.

A source fills any range of the layer's flat buffer, on any thread. A range starts and ends at multiples of 512 bytes
(slots and pieces are such multiples, and so are layers, see `layout.py`), so that no element is cut in two. A source of
memory that the device cannot be given as it is, or of a file, is read through page-locked slots (`staging.py`), or
straight into the ring where that is host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Protocol

import torch

from .weight_file import READ_BYTES, FileSlice

LOADERS = 4
"""Threads that fill masters side by side. Most of that time is the kernel's, which finds memory and copies into it."""

PIECE_BYTES = READ_BYTES
"""What one of them reads at a time. They are given pieces in the file's order, which a disk with one head needs."""


class Abandoned(Exception):  # noqa: N818 - not an error: nobody wants the bytes any more
    """A read that had not begun when the pass it was for was given up."""


class Slot(Protocol):
    """Where a tensor lies in its layer's buffer, as in `host_store.TensorSlot`."""

    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...


class ByteSource(Protocol):
    """A layer's bytes, `nbytes` in all."""

    nbytes: int

    def read(self, destination: torch.Tensor, start: int) -> None:
        """Fill `destination`, flat bytes on the host, with the layer's from `start` on. Raises OffloadError."""


class MemorySource:
    """A buffer of ordinary host memory."""

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
    """Fill `destination` with all of a layer's bytes. Raises OffloadError; nothing writes to it any more then."""
    starts = range(0, destination.numel(), PIECE_BYTES)
    if threads is None or len(starts) < 2:
        source.read(destination, 0)
        return
    pieces = [threads.submit(source.read, destination[start : start + PIECE_BYTES], start) for start in starts]
    wait(pieces)
    for piece in pieces:
        piece.result()


class KeptPart:
    """A tensor of a layer in a file that is itself in no file, such as the scale of a quantised weight."""

    file = None

    def __init__(self, tensor: torch.Tensor) -> None:
        self.mapped = tensor
        self.dtype = tensor.dtype
        self.nbytes = tensor.numel() * tensor.element_size()

    def read(self, destination: torch.Tensor, start: int, dtype: torch.dtype | None = None) -> None:
        with torch.inference_mode(False), torch.no_grad():
            flat = self.mapped.view(-1).view(torch.uint8)
            destination.copy_(flat[start : start + destination.numel()])


class FileSource:
    """Tensors in their file. What the model wants in another type than the file has is converted on the way.

    As the app's own loader would have done it once, element by element; rounding and all, the bits are the same.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        parts: Sequence[FileSlice | KeptPart],
        nbytes: int,
        find: Callable[[], torch.Tensor | None] = lambda: None,
    ) -> None:
        """`find`: the same bytes in memory, if somebody has them there at the moment."""
        self.nbytes = nbytes
        self._find = find
        self._tensors = [(slot, part) for slot, part in zip(slots, parts) if slot.nbytes]
        self.files = tuple({id(part.file): part.file for part in parts if part.file is not None}.values())

    def read(self, destination: torch.Tensor, start: int) -> None:
        in_memory = self._find()
        if in_memory is not None:
            MemorySource(in_memory).read(destination, start)
        else:
            self._read_file(destination, start)
        for file in self.files:  # afterwards: what was changed while it was read is found as well
            file.check()

    def _read_file(self, destination: torch.Tensor, start: int) -> None:
        end = start + destination.numel()
        for slot, part in self._tensors:
            first, last = max(start, slot.offset), min(end, slot.offset + slot.nbytes)
            if first < last:
                part.read(destination[first - start : last - start], first - slot.offset, slot.dtype)
