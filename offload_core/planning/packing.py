"""Offsets of streamed layers in the ring, the same in every pass.

Fixed offsets let the engine build every view once, and cost little: a copy waits for the last earlier layer that
overlaps it, and good offsets make that an early one. The planner tries two methods, which know nothing about times:
distances between visits are measured in streamed bytes. `visits` are those of the streamed layers, none of which may be
larger than the ring.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from .reserved import align_up


def pack_cyclic(visits: Sequence[int], sizes: Sequence[int], ring_bytes: int, alignment: int) -> dict[int, int]:
    """The offset of each layer: in visit order each after the one before, from 0 again where it does not fit."""
    offsets: dict[int, int] = {}
    cursor = 0
    for layer in dict.fromkeys(visits):
        if cursor + sizes[layer] > ring_bytes:
            cursor = 0
        offsets[layer] = cursor
        cursor = align_up(cursor + sizes[layer], alignment)
    return offsets


def pack_far_apart(visits: Sequence[int], sizes: Sequence[int], ring_bytes: int, alignment: int) -> dict[int, int]:
    """The offset of each layer, far in time from the layers before and after it in the same ring bytes.

    Cyclic packing looks back only. If the number of layers is no multiple of those that the ring holds, the last layer
    of a pass may then overlap the first layer of the next pass, whose copy cannot be hidden. Here the score of an
    offset is the smaller of its distances, in streamed bytes, to the layer before in this pass and to the layer after
    in the next one; of equal scores the offset of cyclic packing is taken, else the lowest.
    """
    total = sum(sizes[layer] for layer in visits)
    spans = [_Span(0, ring_bytes, total, -total)]
    offsets: dict[int, int] = {}
    now = cursor = 0
    for layer in visits:
        size = sizes[layer]
        if layer not in offsets:
            starts = {align_up(span.start, alignment) for span in spans}
            starts |= {cursor, (ring_bytes - size) // alignment * alignment}
            possible = sorted(start for start in starts if start + size <= ring_bytes)
            offsets[layer] = _farthest(possible, spans, size, now, total, cursor)
            cursor = align_up(offsets[layer] + size, alignment)
        _occupy(spans, offsets[layer], offsets[layer] + size, now, now + size)
        now += size
    return offsets


class _Span(NamedTuple):
    """A range of ring bytes used by the same layers. `first` is the position in the pass (in streamed bytes) at which
    the first of them starts, `last` that at which the latest one ends. Unused bytes have a first use after the pass
    and a last one before it, so that no distance to them is less than a pass."""

    start: int
    end: int
    first: int
    last: int


def _farthest(starts: Sequence[int], spans: Sequence[_Span], size: int, now: int, total: int, cursor: int) -> int:
    """Of `starts`, which ascend, the offset with the best score of `pack_far_apart`."""
    first_span = 0
    best, best_key = 0, (-1, False)
    for offset in starts:
        while spans[first_span].end <= offset:
            first_span += 1
        distance = total
        for index in range(first_span, len(spans)):
            span = spans[index]
            if span.start >= offset + size or distance < best_key[0]:
                break
            distance = min(distance, now - span.last, span.first + total - now - size)
        key = (distance, offset == cursor)
        if key > best_key:  # the lowest of equal scores is kept
            best, best_key = offset, key
    return best


def _occupy(spans: list[_Span], start: int, end: int, began: int, ended: int) -> None:
    """A layer uses [start, end) from position `began` to `ended` of the pass. Neighbours of equal use are joined."""
    first = max(0, bisect_right(spans, start, key=attrgetter("end")) - 1)
    beyond = bisect_left(spans, end, key=attrgetter("start")) + 1
    changed: list[_Span] = []
    for span in spans[first:beyond]:  # with a neighbour on each side
        pieces = [span]
        if start < span.end and span.start < end:
            used = _Span(max(span.start, start), min(span.end, end), min(span.first, began), ended)
            left = _Span(span.start, used.start, span.first, span.last)
            pieces = [left, used, _Span(used.end, span.end, span.first, span.last)]
        for piece in pieces:
            if changed and (piece.first, piece.last) == (changed[-1].first, changed[-1].last):
                changed[-1] = _Span(changed[-1].start, piece.end, piece.first, piece.last)
            elif piece.start < piece.end:
                changed.append(piece)
    spans[first:beyond] = changed
