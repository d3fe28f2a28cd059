"""The default size of a ring: used without a budget, and to choose among rings of equal speed.

A ring holds layers that are visited in succession. A layer much larger than the others (an output projection, the
projection of an encoder's result) must fit into it, but it needs no room for three of that size.
"""

from __future__ import annotations

from collections.abc import Iterable

USUAL_RING_LAYERS = 3
"""Layers in a ring of the usual size. Two would be enough if all times were equal; the third absorbs jitter."""


def ordinary_size(sizes: Iterable[int]) -> int:
    """The third largest size, in bytes (see `USUAL_RING_LAYERS`). 0 if there are fewer."""
    largest_first = sorted(sizes, reverse=True)
    return largest_first[USUAL_RING_LAYERS - 1] if len(largest_first) >= USUAL_RING_LAYERS else 0


def usual_ring(sizes: Iterable[int]) -> int:
    """Bytes of a ring for streamed layers of these sizes: room for the largest layer, and for three of ordinary size.

    With fewer than three layers, room for all of them.
    """
    sizes = tuple(sizes)
    if len(sizes) < USUAL_RING_LAYERS:
        return sum(sizes)
    return max(*sizes, USUAL_RING_LAYERS * ordinary_size(sizes))
