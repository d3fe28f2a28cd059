"""Direct I/O: reads around the page cache, for files larger than it.

It is faster where cores are busy: the page cache needs the reader to run for each window of its read-ahead, and a
reader that waits for a core leaves the disk idle. Here several requests are always in flight. Direct I/O needs place,
length and address in multiples of a block, while weights lie anywhere in their file. So helper threads read whole
blocks into a few bounce buffers, from which the bytes are copied. Only threads inside a `direct_reads` block read this
way; what is not read is left to an ordinary read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

PIECE_BYTES = 4 << 20
"""Size of a request and of a bounce buffer: keeps a disk busy for a millisecond or more."""

HELPERS = 2
"""Requests in flight at once. A third buffer is being copied from."""

BOUNCES = HELPERS + 1

BLOCK_BYTES = 4096
"""Places and lengths are multiples of this; no disk has larger blocks."""

LEAST_BYTES = 1 << 20
"""Smaller reads are left to an ordinary read."""

_HUGE_BYTES = 2 << 20
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_own = threading.local()


class DirectFile:
    """A file opened for direct I/O; it reads nothing where the file system does not support that."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: BinaryIO | None = None
        self.bytes_read = 0
        flag = getattr(os, "O_DIRECT", 0)
        if flag and hasattr(os, "preadv"):
            with contextlib.suppress(OSError):
                file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
                self._file = file

    def status(self) -> os.stat_result | None:
        """The status of the opened file; None if it could not be opened."""
        return None if self._file is None else os.fstat(self._file.fileno())

    def read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from byte `offset` of the file on; returns how many bytes were read, which may be too few. Raises
        OSError for failures of the disk, not for what the file system does not support."""
        reader: _Reader | None = getattr(_own, "reader", None)
        file = self._file
        if reader is None or file is None or len(view) < LEAST_BYTES:
            return 0
        try:
            done = reader.read(file.fileno(), view, offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._file = None  # closed after the last read of another thread
            return 0
        self.bytes_read += done
        return done

    def close(self) -> None:
        """Close the file; later reads return 0."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _Reader:
    """Buffers and helpers of one thread, made at its first direct read."""

    def __init__(self) -> None:
        self._bounces: list[memoryview] = []
        self._helpers: ThreadPoolExecutor | None = None

    def read(self, descriptor: int, view: memoryview, offset: int) -> int:
        if self._helpers is None:
            self._bounces = _huge_buffers(BOUNCES, PIECE_BYTES)
            self._helpers = ThreadPoolExecutor(HELPERS, "layerwise-offload-direct")
        pieces = list(_pieces(offset, offset + len(view)))
        target = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
        coming: deque[Future[int]] = deque()
        done = begun = 0
        try:
            for number, (low, _) in enumerate(pieces):
                while begun < min(number + BOUNCES, len(pieces)):
                    first, last = pieces[begun]
                    bounce = self._bounces[begun % BOUNCES][: last - first]
                    coming.append(self._helpers.submit(os.preadv, descriptor, [bounce], first))
                    begun += 1
                start = offset + done - low
                wanted = min(PIECE_BYTES, pieces[number][1] - low, offset + len(view) - low)
                got = min(coming.popleft().result(), wanted)
                if got > start:
                    _copy(target + done, self._bounces[number % BOUNCES], start, got - start)
                    done += got - start
                if got < wanted:
                    break
        finally:
            for future in coming:
                future.exception()  # wait: it must not write into buffers of the next read
        return done

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
        self._bounces, self._helpers = [], None


def _huge_buffers(count: int, nbytes: int) -> list[memoryview]:
    """Buffers, on huge pages if possible: the kernel looks up each page of a request, which with small ones takes
    longer than the copy."""
    memory = mmap.mmap(-1, count * nbytes + _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    start = -ctypes.addressof(ctypes.c_ubyte.from_buffer(view)) % _HUGE_BYTES
    return [view[start + number * nbytes : start + (number + 1) * nbytes] for number in range(count)]


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The blocks that cover a range, as pieces (start, end) that end at multiples of a piece."""
    low, high = start - start % BLOCK_BYTES, end + -end % BLOCK_BYTES
    while low < high:
        last = min(low - low % PIECE_BYTES + PIECE_BYTES, high)
        yield low, last
        low = last


def _copy(address: int, source: memoryview, start: int, nbytes: int) -> None:
    """Copy without holding the interpreter's lock, as a memoryview would."""
    ctypes.memmove(address, ctypes.addressof(ctypes.c_ubyte.from_buffer(source, start)), nbytes)


@contextlib.contextmanager
def direct_reads() -> Iterator[None]:
    """Inside the block this thread reads directly where `WeightFile.drop_behind` is set."""
    _own.reader = reader = _Reader()
    try:
        yield
    finally:
        del _own.reader
        reader.close()
