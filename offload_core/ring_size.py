"""How large a ring is where nothing else decides: with no budget, or of several rings that are as fast as each other.

A ring serves layers that follow one another. One that is visited once a pass, or never, and dwarfs the others (an
output projection, the projection of an encoder's result) must fit into it, but needs no room for three of its size.
Knows nothing about plans, budgets or layers but their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["USUAL_RING_LAYERS", "ordinary_size", "usual_ring"]

USUAL_RING_LAYERS = 3
"""Two layers would do if all times were equal and steady; the third absorbs jitter."""


def ordinary_size(sizes: Iterable[int]) -> int:
    """The size in bytes that `USUAL_RING_LAYERS` layers have at least: the third largest. 0 if there are fewer."""
    largest_first = sorted(sizes, reverse=True)
    return largest_first[USUAL_RING_LAYERS - 1] if len(largest_first) >= USUAL_RING_LAYERS else 0


def usual_ring(sizes: Iterable[int]) -> int:
    """Bytes of a ring for streamed layers of these sizes: the largest fits, and so do any three of ordinary size.

    With fewer than three layers it holds them all.
    """
    sizes = tuple(sizes)
    if len(sizes) < USUAL_RING_LAYERS:
        return sum(sizes)
    return max(*sizes, USUAL_RING_LAYERS * ordinary_size(sizes))
