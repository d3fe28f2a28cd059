"""Which visits copy their layer, and which earlier visit each copy waits for: the contents of the ring, without times.

The rules are the engine's. Copies are issued in visit order. A copy of a layer waits for the last read of every
earlier visit whose layer overlaps its ring range (itself included); compute runs in order, so it is enough to wait for
the *latest* of those visits. A layer whose range was not overwritten since its last copy is not copied again. A
resident is copied once, at its first visit. Knows nothing about bytes per second or about how offsets were chosen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NO_WAIT", "UNUSED", "PassOrder", "RingTracker", "order_passes"]

UNUSED = -1  # the reader of bytes that no visit has used yet
NO_WAIT = -(1 << 62)  # a copy that waits for no earlier visit


class RingTracker:
    """The ring's address range as segments, each with the last visit (a running number) that used its bytes."""

    def __init__(self, ring_bytes: int) -> None:
        self._ends: list[int] = [ring_bytes]  # segment i covers [ends[i-1], ends[i])
        self._readers: list[int] = [UNUSED]
        self._layers: list[int] = [-1]  # the layer whose bytes are in this segment; -1: none
        self._present: set[int] = set()

    def holds(self, layer: int) -> bool:
        """Whether every byte of the layer is in the ring."""
        return layer in self._present

    def use(self, layer: int, start: int, end: int, visit: int) -> int:
        """Records that `layer` uses [start, end) at `visit`, whether it is copied there or was there already.

        Returns the latest earlier visit that used any of these bytes, or UNUSED.
        """
        ends, readers, layers = self._ends, self._readers, self._layers
        first = bisect_right(ends, start)
        low = ends[first - 1] if first else 0
        last, latest = first, UNUSED
        while True:
            latest = max(latest, readers[last])
            if layers[last] != layer:
                self._present.discard(layers[last])
            if ends[last] >= end:
                break
            last += 1
        new_ends, new_readers, new_layers = [end], [visit], [layer]
        if low < start:
            new_ends.insert(0, start)
            new_readers.insert(0, readers[first])
            new_layers.insert(0, layers[first])
        if ends[last] > end:
            new_ends.append(ends[last])
            new_readers.append(readers[last])
            new_layers.append(layers[last])
        ends[first : last + 1] = new_ends
        readers[first : last + 1] = new_readers
        layers[first : last + 1] = new_layers
        self._present.add(layer)
        return latest


@dataclass(frozen=True, slots=True)
class PassOrder:
    """One pass: for each visit, whether it copies its layer, and which visit the copy waits for (or NO_WAIT).

    Visits are numbered from the start of this pass; those of the pass before are negative.
    """

    copies: tuple[bool, ...]
    waits_for: tuple[int, ...]


def order_passes(
    visits: Sequence[int], sizes: Sequence[int], offsets: Sequence[int | None], ring_bytes: int
) -> tuple[PassOrder, PassOrder]:
    """(the first pass, every later pass). An offset of None marks a resident.

    The second pass repeats: whether a visit copies or hits, it is the last user of its layer's range, so the last users
    of all bytes are the same at the end of every pass.
    """
    ring = RingTracker(ring_bytes)
    copied: set[int] = set()  # residents and empty layers
    orders: list[PassOrder] = []
    for base in (0, len(visits)):
        copies: list[bool] = []
        waits: list[int] = []
        for visit, layer in enumerate(visits, base):
            offset = offsets[layer]
            if offset is None or not sizes[layer]:
                copies.append(layer not in copied)
                waits.append(NO_WAIT)
                copied.add(layer)
                continue
            copy = not ring.holds(layer)
            wait = ring.use(layer, offset, offset + sizes[layer], visit)
            copies.append(copy)
            waits.append(wait - base if copy and wait != UNUSED else NO_WAIT)
        orders.append(PassOrder(tuple(copies), tuple(waits)))
    return orders[0], orders[1]
