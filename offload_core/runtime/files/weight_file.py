"""Weights that stay in their file: the file, the place of each tensor in it, and positional reads into buffers.

Bytes are read, not used through a mapping: if a mapped file is truncated, touching it ends the process, whereas a read
raises an error that names it. Around every read the file must be the one that was opened, so that a weight is what was
loaded or an error. Any number of threads may read at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import OffloadError
from .direct_read import DirectFile
from .written_pages import were_written

READ_BYTES = 8 << 20
"""Bytes of one read: large enough to keep a disk busy, small enough that the next one is requested in time."""


class FileReadError(OffloadError):
    """Weights could not be read, or have changed since they were loaded. Names the file and the offset."""


class FileIdentity(NamedTuple):
    """What distinguishes contents of a file without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class WeightFile:
    """A file, opened once and read by position. It is closed with the last tensor that lies in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FileReadError if it cannot be opened."""
        self.path = Path(path)
        self.drop_behind = False
        """Drop pages from the page cache after reading them: the file is read cyclically and larger than memory."""
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the weights do
        except OSError as error:
            raise FileReadError(f"asked to read {self.path}; found {_words(error)}; make the file readable") from error
        self.identity = FileIdentity.of(os.fstat(self._file.fileno()))
        self._direct: DirectFile | None = None
        self._lock = threading.Lock()
        self.bytes_read = 0

    def read_cyclically(self, larger_than_memory: bool) -> None:
        """Set `drop_behind`."""
        self.drop_behind = larger_than_memory

    def check(self, offset: int = 0) -> None:
        """Raise FileReadError unless the file is, by name and content, the one that was opened."""
        try:
            now = FileIdentity.of(os.stat(self.path))
        except FileNotFoundError as error:
            raise self._error("it was deleted since it was loaded", offset) from error
        except OSError as error:
            raise self._error(_words(error), offset) from error
        was = self.identity
        if now[:2] != was[:2]:
            raise self._error("another file in its place since it was loaded", offset)
        if now.size != was.size:
            what = "truncated" if now.size < was.size else "grown"
            raise self._error(f"it was {what} from {was.size} to {now.size} bytes since it was loaded", offset)
        if now != was:
            raise self._error("its content was changed since it was loaded", offset)

    def read_into(self, address: int, nbytes: int, offset: int) -> None:
        """Fill `nbytes` of memory at `address` from `offset` of the file. All of it, or FileReadError."""
        if not nbytes:
            return
        view = memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B")
        done = self._read_directly(view, offset) if self.drop_behind else 0
        while done < nbytes:
            try:
                end = done + READ_BYTES - (offset + done) % READ_BYTES
                got = self._read(view[done:end], offset + done)
            except OSError as error:
                raise self._error(_words(error), offset + done) from error
            if got <= 0:
                self.check(offset + done)
                raise self._error(f"the file ends {nbytes - done} bytes too early", offset + done)
            if self.drop_behind:
                self._drop(offset + done, got)
            done += got
        with self._lock:
            self.bytes_read += nbytes

    def _read_directly(self, view: memoryview, offset: int) -> int:
        """Read around the page cache as far as possible; returns the number of bytes."""
        try:
            with self._lock:
                if self._direct is None:
                    self._direct = DirectFile(self.path)
                    status = self._direct.status()
                    if status is not None and FileIdentity.of(status) != self.identity:
                        self._direct.close()  # another file: `check` reports it
            return self._direct.read(view, offset)
        except OSError as error:
            raise self._error(_words(error), offset) from error

    def _read(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:  # the file has one position, which the threads share
            self._file.seek(offset)
            return self._file.readinto(view) or 0

    def _drop(self, offset: int, nbytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _error(self, finding: str, offset: int) -> FileReadError:
        return FileReadError(
            f"asked to read weights at byte {offset} of {self.path}; found {finding}; put the file back as it was, or "
            "load the model again"
        )


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Where one tensor lies in a file, and in which type. `mapped`: a tensor over the mapped bytes."""

    file: WeightFile
    offset: int
    nbytes: int
    dtype: torch.dtype
    mapped: torch.Tensor

    def read(self, destination: torch.Tensor, start: int, dtype: torch.dtype | None = None) -> None:
        """Fill a flat byte tensor of host memory with the tensor's bytes from `start` on. `dtype`: convert elements to
        this type, as a loader would; `start` and the length are bytes of that type."""
        if dtype is None or dtype == self.dtype:
            self.file.read_into(destination.data_ptr(), destination.numel(), self.offset + start)
            return
        width, stored = dtype.itemsize, self.dtype.itemsize
        piece = READ_BYTES // 4
        with torch.inference_mode(False), torch.no_grad():
            bounce = torch.empty(min(piece, destination.numel() // width) * stored, dtype=torch.uint8)
            for done in range(0, destination.numel(), piece * width):
                target = as_type(destination[done : done + piece * width], dtype)
                raw = bounce[: target.numel() * stored]
                self.read(raw, (start + done) // width * stored)
                target.copy_(raw.view(self.dtype))

    def in_memory(self, dtype: torch.dtype) -> torch.Tensor:
        """A copy of the tensor in memory, as `dtype`. Raises FileReadError. It is read: pages of the mapping would
        count as the process's memory as long as it stands."""
        if not self.mapped.is_contiguous():
            return self.mapped.to(dtype, copy=True)
        value = torch.empty_strided(self.mapped.shape, self.mapped.stride(), dtype=dtype)
        if value.numel():
            self.read(value.view(-1).view(torch.uint8), 0, dtype)
        self.file.check(self.offset)
        return value

    def was_written(self) -> bool:
        """Whether the mapped tensor may differ from the file, since something wrote to its pages, shared with
        neighbours. Where the system does not tell, both are read and compared. Raises FileReadError."""
        if not self.mapped.is_contiguous():
            return True
        written = were_written(self.mapped.data_ptr(), self.nbytes)
        if written is not None:
            return written
        self.file.check(self.offset)
        shown = self.mapped.detach().view(-1).view(torch.uint8)
        for start in range(0, self.nbytes, READ_BYTES):
            piece = torch.empty(min(READ_BYTES, self.nbytes - start), dtype=torch.uint8)
            self.read(piece, start)
            if not torch.equal(piece, shown[start : start + piece.numel()]):
                return True
        return False

    def __deepcopy__(self, memo: dict[int, object]) -> FileSlice:
        """The copied tensor keeps the note, but has another address: `slice_of` returns None for it."""
        return self


_ATTRIBUTE = "layerwise_offload_file_slice"


def lies_in_file(parameter: torch.Tensor, file_slice: FileSlice, dtype: torch.dtype | None = None) -> None:
    """Note on the parameter where its bytes lie. `dtype`: the type it is to have on the device. The parameter shows the
    file's values, in the file's type, until it is given other data."""
    setattr(parameter, _ATTRIBUTE, (file_slice, dtype or file_slice.dtype))


def forget_file(parameter: torch.Tensor) -> None:
    """Remove the note: the parameter has a value of its own."""
    if hasattr(parameter, _ATTRIBUTE):
        delattr(parameter, _ATTRIBUTE)


def slice_of(parameter: torch.Tensor) -> FileSlice | None:
    """Where the bytes of `parameter` lie in a file; None if they do not, or if it was given other data."""
    note = getattr(parameter, _ATTRIBUTE, None)
    if note is None or note[0].mapped.data_ptr() != parameter.data_ptr():
        return None
    return note[0]  # type: ignore[no-any-return]


def dtype_of(parameter: torch.Tensor) -> torch.dtype:
    """The type of a parameter in memory: for one that lies in a file, the type it is converted to."""
    return parameter.dtype if slice_of(parameter) is None else getattr(parameter, _ATTRIBUTE)[1]  # type: ignore[no-any-return]


def take_out_of_file(parameter: torch.Tensor) -> bool:
    """Copy a parameter that lies in a file into memory, in the type it is to have. False: it lies in none."""
    part = slice_of(parameter)
    if part is None:
        return False
    # Parameters made in inference mode take no data made outside of it.
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.data = part.in_memory(dtype_of(parameter))
    forget_file(parameter)
    return True


def keep_what_was_written(parameter: torch.Tensor) -> None:
    """Copy a parameter's mapped bytes into memory if they may differ from the file's. Raises FileReadError: pages of a
    file that has shrunk must not be touched."""
    part = slice_of(parameter)
    if part is not None and part.was_written():
        part.file.check(part.offset)
        with torch.inference_mode(parameter.is_inference()), torch.no_grad():
            parameter.data = part.mapped.to(dtype_of(parameter), copy=True)
        forget_file(parameter)


def as_type(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Flat host bytes as elements of `dtype`, in a storage of their own, whatever the alignment of theirs."""
    if not flat.numel():
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_ubyte * flat.numel()).from_address(flat.data_ptr())
    memory.owner = flat  # type: ignore[attr-defined]  # the new storage keeps `memory` alive, which keeps `flat`
    return torch.frombuffer(memory, dtype=dtype)


def _words(error: OSError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"
