"""Whether part of a privately mapped file was written to, according to the system's page map.

A write into a private mapping gives the process a page of its own in place of the file's. Linux tells for each page
which it is (`/proc/self/pagemap`, documented in the kernel's `admin-guide/mm/pagemap.rst`). Other systems do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from typing import BinaryIO

_ENTRY_BYTES = 8
"""Bytes of an entry of the page map, little-endian."""

_PRESENT, _SWAPPED, _OF_THE_FILE = 4, 2, 1
"""The three highest bits of an entry."""

_OWN = frozenset(byte for byte in range(256) if byte >> 5 & (_PRESENT | _SWAPPED) and not byte >> 5 & _OF_THE_FILE)
"""Highest bytes of the entries of the process's own pages."""

_CHUNK_PAGES = 1 << 17
"""Entries read at once: 1 MB of them, for 512 MB of memory."""


def were_written(address: int, nbytes: int) -> bool | None:
    """Whether a page with one of the `nbytes` from `address` on was written to. None: the system does not tell. Pages
    are judged as a whole: a write to a neighbour on the same page counts."""
    if nbytes <= 0:
        return False
    pages = _page_map()
    return None if pages is None else _any_written(pages, address, nbytes)


def _any_written(pages: BinaryIO, address: int, nbytes: int) -> bool:
    first, end = address // mmap.PAGESIZE, -(-(address + nbytes) // mmap.PAGESIZE)
    for start in range(first, end, _CHUNK_PAGES):
        count = min(_CHUNK_PAGES, end - start)
        raw = os.pread(pages.fileno(), count * _ENTRY_BYTES, start * _ENTRY_BYTES)
        if len(raw) != count * _ENTRY_BYTES:
            raise OSError(f"the page map ends {count * _ENTRY_BYTES - len(raw)} bytes too early")
        if not _OWN.isdisjoint(raw[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]):
            return True
    return False


@functools.cache
def _page_map() -> BinaryIO | None:
    """The page map; None unless there is one that distinguishes written pages."""
    with contextlib.suppress(OSError, ValueError):
        if sys.byteorder == "little":
            pages = open("/proc/self/pagemap", "rb", buffering=0)  # noqa: SIM115 - closed with its last reference
            if _tells_them_apart(pages):
                return pages
    return None


def _tells_them_apart(pages: BinaryIO) -> bool:
    with open(__file__, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    byte = ctypes.c_ubyte.from_buffer(mapping)
    address, value = ctypes.addressof(byte), byte.value
    before = _any_written(pages, address, 1)
    byte.value = value
    return not before and _any_written(pages, address, 1)
