"""One pass: which visits copy their layer, what each copy waits for, and when copies and visits take place.

The rules are the engine's. One copy lane and one compute lane, each in order. Copies are issued in visit order. A copy
of a layer waits for the last read of every earlier visit whose layer overlaps its ring range (itself included); compute
runs in order, so it is enough to wait for the *latest* of those visits. A layer whose range was not overwritten since
its last copy is not copied again. A resident is copied once, at its first visit. A visit starts when the visit before
it has ended and its layer's bytes have arrived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

NO_WAIT = -(1 << 62)  # a copy that waits for no earlier visit

Order = Sequence[int | None]
"""One pass: for each visit, which visit its copy waits for (or NO_WAIT); None: it copies nothing. Visits are numbered
from the start of this pass; those of the pass before are negative."""


@dataclass(frozen=True, slots=True)
class PassTimes:
    """One simulated pass, in ns: per visit the start of its copy (None: no copy), and start and end of its compute;
    then the end of the last copy so far."""

    copy_starts: Sequence[int | None] = ()
    starts: Sequence[int] = ()
    ends: Sequence[int] = ()
    copies_end: int = 0

    @property
    def end(self) -> int:
        """When the last visit ends."""
        return self.ends[-1] if self.ends else 0


def order_passes(visits: Sequence[int], sizes: Sequence[int], offsets: Sequence[int | None]) -> tuple[Order, Order]:
    """(the first pass, every later pass). An offset of None marks a resident.

    The second pass repeats: whether a visit copies or hits, it is the last user of its layer's range, so the last users
    of all bytes are the same at the end of every pass.
    """
    pieces: list[tuple[int, int, int]] = []  # ring bytes in their order: end, start, and the layer whose bytes they are
    last_use: dict[int, int] = {}
    orders: list[list[int | None]] = []
    for base in (0, len(visits)):
        order: list[int | None] = []
        for visit, layer in enumerate(visits, base):
            offset, wait = offsets[layer], NO_WAIT
            if offset is None or not sizes[layer]:
                order.append(None if layer in last_use else NO_WAIT)
                last_use[layer] = visit
                continue
            end = offset + sizes[layer]
            own = (end, offset, layer)
            first = last = bisect_right(pieces, (offset, end))
            changed = [own]
            while last < len(pieces) and pieces[last][1] < end:
                stop, start, other = pieces[last]
                if last_use[other] - base > wait:
                    wait = last_use[other] - base
                if start < offset:
                    changed.insert(0, (offset, start, other))
                if end < stop:
                    changed.append((stop, end, other))
                last += 1
            order.append(None if pieces[first:last] == [own] else wait)
            pieces[first:last] = changed
            last_use[layer] = visit
        orders.append(order)
    return orders[0], orders[1]


def run_pass(
    order: Order, visits: Sequence[int], link_ns: Sequence[int], compute_ns: Sequence[int], before: PassTimes
) -> PassTimes:
    """The pass after `before`; link time of a copy and compute time of a visit are per layer."""
    copy_free, compute_free = before.copies_end, before.end
    copy_starts: list[int | None] = []
    starts: list[int] = []
    ends: list[int] = []
    for layer, wait in zip(visits, order):
        start = compute_free
        if wait is None:
            copy_starts.append(None)  # a hit: its last copy ended before an earlier visit of the same layer began
        else:
            if wait != NO_WAIT:
                # A copy waits only for earlier visits, so their ends are in `ends` or those of the pass before.
                freed = ends[wait] if wait >= 0 else before.ends[wait]
                if freed > copy_free:
                    copy_free = freed
            copy_starts.append(copy_free)
            copy_free += link_ns[layer]
            if copy_free > start:
                start = copy_free
        compute_free = start + compute_ns[layer]
        starts.append(start)
        ends.append(compute_free)
    return PassTimes(copy_starts, starts, ends, copy_free)
