"""Rules of which layers stay resident that a plan must not be slower than: those of simpler engines.

A rule is a function of the problem and of the device bytes that there are for residents. The search judges what each of
`RULES` returns beside its own choice, and takes the fastest (`Search.steady`). To add a rule, write it here or in a
file of its own and name it in `RULES`; `tests/core/test_planner.py` then holds every plan against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from .evaluate import Problem

Rule = Callable[[Problem, int], frozenset[int]]
"""(problem, room_bytes) -> layers to keep resident besides `problem.keep`, of `problem.reserved` bytes each, which fit
`room_bytes` together."""


def first_layers(problem: Problem, room_bytes: int) -> frozenset[int]:
    """The leading layers in visit order that fit together, as most engines choose."""
    return _leading(problem, problem.visited(), room_bytes)


def last_layers(problem: Problem, room_bytes: int) -> frozenset[int]:
    """The trailing layers in visit order that fit together."""
    return _leading(problem, problem.visited()[::-1], room_bytes)


def spread_layers(problem: Problem, room_bytes: int) -> frozenset[int]:
    """As many layers as fit together, at the midpoints of as many equal parts of the visit order."""
    order = problem.visited()
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(problem.reserved[layer] for layer in _spaced(order, middle)) <= room_bytes:
            low = middle
        else:
            high = middle - 1
    return frozenset(_spaced(order, low))


RULES: tuple[Rule, ...] = (first_layers, last_layers, spread_layers)


def _leading(problem: Problem, order: Sequence[int], room_bytes: int) -> frozenset[int]:
    totals = accumulate(problem.reserved[layer] for layer in order)
    return frozenset(layer for layer, total in zip(order, totals) if total <= room_bytes)


def _spaced(order: Sequence[int], count: int) -> list[int]:
    return [order[(2 * step + 1) * len(order) // (2 * count)] for step in range(count)]
