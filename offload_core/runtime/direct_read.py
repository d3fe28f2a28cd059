"""Reads around the page cache (direct I/O), for a file that does not fit there: no pages to find, to fill and to drop.

Worth it where somebody computes on the same cores: the page cache asks a reader to be there whenever a window of its
read-ahead has come, and a reader that waits for its turn on a busy core leaves the disk idle. Here a few requests are
always under way. Systems want place, length and address in multiples of a block, and weights lie anywhere in their
file. So whole blocks are read, by helper threads into a few bounce buffers, and copied from there.

Only threads that say so (`direct_reads`) read this way; buffers and helpers end with their block. Knows nothing about
weights, and decides nothing: what it does not read, for whatever reason, is left to an ordinary read.
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
"""One request, and one bounce buffer: a disk is busy with it for a millisecond or more."""

HELPERS = 2
"""Requests under way at one time. A third buffer is being copied from."""

BOUNCES = HELPERS + 1

BLOCK_BYTES = 4096
"""Places and lengths are multiples of this: no disk has larger blocks."""

LEAST_BYTES = 1 << 20
"""Less than this is left to an ordinary read."""

_HUGE_BYTES = 2 << 20
_REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_own = threading.local()


class DirectFile:
    """A second opening of a file, around the page cache; it reads nothing where the file system has no such thing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: BinaryIO | None = None
        self.bytes_read = 0
        flag = getattr(os, "O_DIRECT", 0)
        if flag and hasattr(os, "preadv"):
            with contextlib.suppress(OSError):
                file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
                self._file = file

    def status(self) -> os.stat_result | None:
        """Of the file that was opened; None: there is none."""
        return None if self._file is None else os.fstat(self._file.fileno())

    def read(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` of the file on, as far as it goes; how many bytes. The rest is for others.

        Raises OSError for what is wrong with the disk, not for what the file system does not do.
        """
        reader: _Reader | None = getattr(_own, "reader", None)
        file = self._file
        if reader is None or file is None or len(view) < LEAST_BYTES:
            return 0
        try:
            done = reader.read(file.fileno(), view, offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self._file = None  # closed when nobody reads from it any more
            return 0
        self.bytes_read += done
        return done

    def close(self) -> None:
        """Read nothing from now on."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _Reader:
    """What one thread needs to read directly. Made when it first does."""

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
                future.exception()  # it must not write into the buffers of whoever reads next
        return done

    def close(self) -> None:
        if self._helpers is not None:
            self._helpers.shutdown()
        self._bounces, self._helpers = [], None


def _huge_buffers(count: int, nbytes: int) -> list[memoryview]:
    """On huge pages where the system has some: the kernel looks up every page of a request, and with small ones that
    takes longer than the copy out of the buffer."""
    memory = mmap.mmap(-1, count * nbytes + _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    start = -ctypes.addressof(ctypes.c_ubyte.from_buffer(view)) % _HUGE_BYTES
    return [view[start + number * nbytes : start + (number + 1) * nbytes] for number in range(count)]


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Whole blocks that cover a range, in pieces that end at multiples of a piece."""
    low, high = start - start % BLOCK_BYTES, end + -end % BLOCK_BYTES
    while low < high:
        last = min(low - low % PIECE_BYTES + PIECE_BYTES, high)
        yield low, last
        low = last


def _copy(address: int, source: memoryview, start: int, nbytes: int) -> None:
    """Beside other threads: a memoryview would copy with the interpreter locked."""
    ctypes.memmove(address, ctypes.addressof(ctypes.c_ubyte.from_buffer(source, start)), nbytes)


@contextlib.contextmanager
def direct_reads() -> Iterator[None]:
    """This thread reads directly where a file wants it, until the block ends."""
    _own.reader = reader = _Reader()
    try:
        yield
    finally:
        del _own.reader
        reader.close()
