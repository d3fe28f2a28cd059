"""Fixed places in the ring: where each streamed layer's copy goes, in every pass.

Fixed addresses let the engine build every view once, and cost little: a copy waits for the last earlier layer that
overlaps it, and good places keep that layer far back. Two ways to place are tried by the planner. Knows nothing about
times: distances are measured in streamed bytes, the currency of look-ahead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["align_up", "pack_cyclic", "pack_far_apart"]


def align_up(value: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


def pack_cyclic(
    visits: Sequence[int], sizes: Sequence[int], streamed: Collection[int], ring_bytes: int, alignment: int
) -> dict[int, int]:
    """Cyclic packing in visit order: each layer behind the one before, back to the start when it does not fit.

    Every streamed layer must be no larger than the ring. Layers that no visit names get offset 0: they only ever come
    in when something touches them out of turn.
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
    """Each layer where its neighbours in time are farthest: behind it in this pass, and before it in the next.

    Cyclic packing looks back only. With a number of layers that the ring does not divide, the last layer of a pass may
    then land on the first layer of the next, and that copy hides behind nothing. Here a place is scored by the smaller
    of the two distances, in streamed bytes; on equal scores it is where cyclic packing would go, else the lowest.
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
    """Ring bytes with one history: when the first layer of the pass came here, and when the latest one did."""

    __slots__ = ("end", "first", "last", "start")

    def __init__(self, start: int, end: int, first: int | None, last: int | None) -> None:
        self.start, self.end, self.first, self.last = start, end, first, last


def _best_offset(
    spans: list[_Span], size: int, ring_bytes: int, alignment: int, now: int, total: int, cursor: int
) -> int:
    """Where the nearest neighbour in time is farthest. Tries the start of every span, and what the cursor points at."""
    starts = {align_up(span.start, alignment) for span in spans}
    starts.add(cursor)
    starts.add((ring_bytes - size) // alignment * alignment)
    first_span = 0
    best, best_key = 0, (-1, False)
    for offset in sorted(starts):  # ascending, so that the lowest of equals wins
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
    """The spans after a layer used [start, end): cut at its edges, the part inside remembering it."""
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
    result = spans[:1]
    for span in spans[1:]:
        if (span.first, span.last) == (result[-1].first, result[-1].last):
            result[-1] = _Span(result[-1].start, span.end, span.first, span.last)
        else:
            result.append(span)
    return result
