"""What follows what, as it was seen: a forecast for each context, which is replaced when wrong twice in a row.

So one unusual event, as the first pass of a run or a cancelled prompt, changes no forecast. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
"""A context."""

V = TypeVar("V", bound=Hashable)
"""What follows it."""


class Forecasts(Generic[C, V]):
    """The forecasts, those first whose contexts were seen longest ago."""

    def __init__(self) -> None:
        self._known: dict[C, tuple[V, bool]] = {}
        """context -> what is expected to follow, and whether it came last time."""

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[C, V]]:
        return ((context, value) for context, (value, _) in self._known.items())

    def expected(self, context: C) -> V | None:
        """What is expected to follow `context`; None if nothing is known."""
        forecast = self._known.get(context)
        return None if forecast is None else forecast[0]

    def learn(self, context: C, came: V) -> None:
        """`came` has followed `context`."""
        value, held = self._known.pop(context, (came, False))
        if value == came or not held:
            self._known[context] = (came, True)
        else:
            self._known[context] = (value, False)

    def suppose(self, context: C, value: V) -> None:
        """Expect `value` after `context` if nothing is known; the first event that differs replaces it."""
        self._known.setdefault(context, (value, False))

    def keep(self, wanted: Callable[[C, V], bool]) -> None:
        """Forget the forecasts for which `wanted(context, value)` is false."""
        self._known = {context: forecast for context, forecast in self._known.items() if wanted(context, forecast[0])}

    def keep_newest(self, count: int) -> None:
        """Forget all but the `count` contexts seen last."""
        while len(self._known) > count:
            del self._known[next(iter(self._known))]
