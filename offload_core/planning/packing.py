"""Offsets of streamed layers in the ring, the same in every pass.

Fixed offsets let the engine build every view once, and cost little: a copy waits for the last earlier layer that
overlaps it, and good offsets make that an early one. The planner tries two methods. Knows nothing about times:
distances between visits are measured in streamed bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["align_up", "pack_cyclic", "pack_far_apart"]


def align_up(value: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that is at least `value`."""
    return -(-value // alignment) * alignment


def pack_cyclic(
    visits: Sequence[int], sizes: Sequence[int], streamed: Collection[int], ring_bytes: int, alignment: int
) -> dict[int, int]:
    """The offset of each streamed layer: in visit order each after the one before, from 0 again where it does not fit.

    No streamed layer may be larger than the ring. Layers without a visit get offset 0: they are copied only when they
    are used outside the recorded order.
    """
    offsets: dict[int, int] = {}
    cursor = 0
    for layer in visits:
        if layer in streamed and layer not in offsets:
            if cursor + sizes[layer] > ring_bytes:
                cursor = 0
            offsets[layer] = cursor
            cursor = align_up(cursor + sizes[layer], alignment)
    for layer in streamed:
        offsets.setdefault(layer, 0)
    return offsets


def pack_far_apart(
    visits: Sequence[int], sizes: Sequence[int], streamed: Collection[int], ring_bytes: int, alignment: int
) -> dict[int, int]:
    """The offset of each streamed layer, far in time from the layers before and after it in the same ring bytes.

    Cyclic packing looks back only. If the number of layers is no multiple of those that the ring holds, the last layer
    of a pass may then overlap the first layer of the next pass, whose copy cannot be hidden. Here the score of an
    offset is the smaller of its distances, in streamed bytes, to the layer before in this pass and to the layer after
    in the next one; of equal scores the offset of cyclic packing is taken, else the lowest.
    """
    spans: list[_Span] = [_Span(0, ring_bytes, None, None)]
    total = sum(sizes[layer] for layer in visits if layer in streamed)
    offsets: dict[int, int] = {}
    now = cursor = 0
    for layer in visits:
        if layer not in streamed:
            continue
        size = sizes[layer]
        if layer not in offsets:
            offsets[layer] = _best_offset(spans, size, ring_bytes, alignment, now, total, cursor)
            cursor = align_up(offsets[layer] + size, alignment)
        spans = _occupy(spans, offsets[layer], offsets[layer] + size, now, now + size)
        now += size
    for layer in streamed:
        offsets.setdefault(layer, 0)
    return offsets


class _Span:
    """A range of ring bytes used by the same layers. `first` is the position in the pass (in streamed bytes) at which
    the first of them starts, `last` that at which the latest one ends."""

    __slots__ = ("end", "first", "last", "start")

    def __init__(self, start: int, end: int, first: int | None, last: int | None) -> None:
        self.start, self.end, self.first, self.last = start, end, first, last


def _best_offset(
    spans: list[_Span], size: int, ring_bytes: int, alignment: int, now: int, total: int, cursor: int
) -> int:
    """The offset with the best score of `pack_far_apart` among the start of every span, `cursor` and the ring's end."""
    starts = {align_up(span.start, alignment) for span in spans}
    starts.add(cursor)
    starts.add((ring_bytes - size) // alignment * alignment)
    first_span = 0
    best, best_key = 0, (-1, False)
    for offset in sorted(starts):  # ascending, so that the lowest of equal scores is kept
        end = offset + size
        if end > ring_bytes:
            break
        while spans[first_span].end <= offset:
            first_span += 1
        distance = total
        for index in range(first_span, len(spans)):
            span = spans[index]
            if span.start >= end:
                break
            if span.first is not None and span.last is not None:
                distance = min(distance, now - span.last, span.first + total - now - size)
                if distance < best_key[0]:
                    break
        key = (distance, offset == cursor)
        if key > best_key:
            best, best_key = offset, key
    return best


def _occupy(spans: list[_Span], start: int, end: int, began: int, ended: int) -> list[_Span]:
    """The spans after a layer has used [start, end) from position `began` to `ended` of the pass."""
    result: list[_Span] = []
    for span in spans:
        if span.end <= start or span.start >= end:
            result.append(span)
            continue
        if span.start < start:
            result.append(_Span(span.start, start, span.first, span.last))
        first = began if span.first is None else span.first
        result.append(_Span(max(span.start, start), min(span.end, end), first, ended))
        if span.end > end:
            result.append(_Span(end, span.end, span.first, span.last))
    return _merged(result)


def _merged(spans: list[_Span]) -> list[_Span]:
    """The spans with adjacent ones of equal `first` and `last` joined."""
    result = spans[:1]
    for span in spans[1:]:
        if (span.first, span.last) == (result[-1].first, result[-1].last):
            result[-1] = _Span(result[-1].start, span.end, span.first, span.last)
        else:
            result.append(span)
    return result
