"""What an allocation takes of a device: allocators take memory from the driver in whole segments.

Torch's, for CUDA: what is over 1 MiB comes in multiples of 2 MiB (`roundup` of segments in its caching allocator);
smaller blocks share segments. A plan counts what is taken, so that a budget holds for what a driver shows.
"""

from __future__ import annotations

__all__ = ["SEGMENT_BYTES", "reserved_bytes"]

SEGMENT_BYTES = 2 << 20
"""Of devices whose memory an allocator of torch's hands out."""

_SHARED_BYTES = 1 << 20
"""Up to here blocks share a segment."""


def reserved_bytes(nbytes: int, segment_bytes: int) -> int:
    """Device bytes that one allocation of `nbytes` takes. `segment_bytes` 1: memory is taken to the byte."""
    if nbytes <= _SHARED_BYTES or segment_bytes == 1:
        return nbytes
    return -(-nbytes // segment_bytes) * segment_bytes
