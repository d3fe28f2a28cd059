"""Which visits must copy, and which earlier visit each copy has to wait for: the ring's bookkeeping without any clock.

The rules are the engine's. Copies are issued in visit order. A copy of a layer waits for the last read of every
earlier visit whose layer overlaps its ring range (itself included); compute runs in order, so the *latest* of those
visits alone decides. A layer whose range nobody overwrote since its last copy is still there and is not copied again.
A resident is copied once, at its first visit. Knows nothing about bytes per second or about who chose the offsets.
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
        self._holders: list[int] = [-1]  # the layer whose bytes lie there, as far as this segment goes
        self._present: set[int] = set()

    def holds(self, layer: int) -> bool:
        """Whether every byte of the layer is in the ring."""
        return layer in self._present

    def use(self, layer: int, start: int, end: int, visit: int) -> int:
        """Give [start, end) to `layer` at `visit`; the latest earlier visit that used any of these bytes, or UNUSED.

        Also right for a hit: the range then stays the layer's, with a later reader.
        """
        ends, readers, holders = self._ends, self._readers, self._holders
        first = bisect_right(ends, start)
        low = ends[first - 1] if first else 0
        last, latest = first, UNUSED
        while True:
            latest = max(latest, readers[last])
            if holders[last] != layer:
                self._present.discard(holders[last])
            if ends[last] >= end:
                break
            last += 1
        new_ends, new_readers, new_holders = [end], [visit], [layer]
        if low < start:
            new_ends.insert(0, start)
            new_readers.insert(0, readers[first])
            new_holders.insert(0, holders[first])
        if ends[last] > end:
            new_ends.append(ends[last])
            new_readers.append(readers[last])
            new_holders.append(holders[last])
        ends[first : last + 1] = new_ends
        readers[first : last + 1] = new_readers
        holders[first : last + 1] = new_holders
        self._present.add(layer)
        return latest


@dataclass(frozen=True, slots=True)
class PassOrder:
    """One pass: for each visit, whether it copies, and which visit its copy waits for.

    Visits are numbered from the start of this pass; those of the pass before are negative.
    """

    copies: tuple[bool, ...]
    waits_for: tuple[int, ...]


def order_passes(
    visits: Sequence[int], sizes: Sequence[int], offsets: Sequence[int | None], ring_bytes: int
) -> tuple[PassOrder, PassOrder]:
    """The first pass and every later one. An offset of None marks a resident.

    Two passes tell it all: whether a visit copies or hits, it is the last user of its layer's range, so who used which
    byte last is the same at the end of every pass, and the second pass repeats for ever.
    """
    ring = RingTracker(ring_bytes)
    armed: set[int] = set()
    orders: list[PassOrder] = []
    for base in (0, len(visits)):
        copies: list[bool] = []
        waits: list[int] = []
        for visit, layer in enumerate(visits, base):
            offset = offsets[layer]
            if offset is None or not sizes[layer]:
                copies.append(layer not in armed)
                waits.append(NO_WAIT)
                armed.add(layer)
                continue
            copy = not ring.holds(layer)
            wait = ring.use(layer, offset, offset + sizes[layer], visit)
            copies.append(copy)
            waits.append(wait - base if copy and wait != UNUSED else NO_WAIT)
        orders.append(PassOrder(tuple(copies), tuple(waits)))
    return orders[0], orders[1]
