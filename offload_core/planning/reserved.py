"""Device bytes of an allocation: allocators reserve memory from the driver in whole segments.

Torch's caching allocator for CUDA: allocations over 1 MiB are rounded up to multiples of 2 MiB; smaller ones share
segments. Plans count reserved bytes, so that a budget holds for the figure that the driver reports.
"""

from __future__ import annotations

SEGMENT_BYTES = 2 << 20
"""The segment size of torch's caching allocator."""

_SHARED_BYTES = 1 << 20
"""Allocations up to this size share a segment."""


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is at least `value`."""
    return -(-value // alignment) * alignment


def reserved_bytes(nbytes: int, segment_bytes: int) -> int:
    """Device bytes that an allocation of `nbytes` reserves. `segment_bytes` 1: exactly `nbytes`."""
    return nbytes if nbytes <= _SHARED_BYTES else align_up(nbytes, segment_bytes)
