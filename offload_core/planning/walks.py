"""The walks that a component's passes have made: which of them fits the visits so far, and which comes next.

A model may walk its layers in several ways: each block twice while a prefix is put into a key/value cache and once
afterwards, without the blocks that a step cache or skip-layer guidance leaves out, by another conditioning. The last
few different walks are kept. Nothing here is called while visits come as expected: `explaining` at an unexpected visit,
`add` and `after` once a pass. Knows nothing of copies; every answer is a guess, and may be wrong. A layer is anything
that can be hashed. Standard library only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from .forecasts import Forecasts

L = TypeVar("L", bound=Hashable)
"""A layer."""

KEPT = 6
"""Walks that are kept. The least recently made goes first."""


class Walk(Generic[L]):
    """The layers that one pass visits, in order. Walks are compared by identity."""

    __slots__ = ("derived_from", "entry", "passes", "seen", "visits")

    def __init__(self, visits: Sequence[L], derived_from: Walk[L] | None = None) -> None:
        self.visits = list(visits)
        self.derived_from = derived_from
        """The walk that this one was derived from; None: it was recorded, or planned."""
        self.seen = False
        """Whether a pass has made it; False for the plan's guess and for other predictions."""
        self.entry: Hashable = None
        """The entry of its last pass; None if that had none."""
        self.passes = 0
        """Number of passes that have made it since `count_again`."""

    def made(self, entry: Hashable) -> None:
        """A pass through `entry` has made it."""
        self.seen, self.entry = True, entry
        self.passes += 1

    def count_again(self) -> None:
        self.passes = 0

    def begins_with(self, trace: list[L]) -> bool:
        """Whether its first visits are `trace`."""
        count = len(trace)
        return self.visits[count - 1 : count] == trace[-1:] and self.visits[:count] == trace


class Walks(Generic[L]):
    """The known walks of one component, of which there is always at least one."""

    def __init__(self, layers: Sequence[L]) -> None:
        self._kept = [Walk(layers)]
        """Most recent first."""
        self._before: Walk[L] | None = None
        self.last = self._kept[0]
        """The walk of the last pass; `_before` is that of the pass before it."""
        self._forecasts: Forecasts[tuple[Walk[L] | None, Walk[L]], Walk[L]] = Forecasts()
        """(walk of a pass, walk of the next) -> walk expected after them. A run's first pass does not change it."""

    @property
    def seen(self) -> bool:
        """Whether a pass has been recorded."""
        return self.last.seen

    def guess(self, order: Sequence[L]) -> None:
        """Set the plan's guess. Ignored once a pass was recorded."""
        if order and not self.seen:
            self._kept = [Walk(order)]
            self.last = self._kept[0]

    # ------------------------------------------------------------------ what comes next

    def expected(self) -> Walk[L]:
        """The most probable walk of the next pass."""
        return self.after(self._before, self.last)

    def through(self, entry: Hashable) -> Walk[L] | None:
        """The last walk of a pass through `entry`; else the plan's guess, if it is still kept; else None."""
        known = [walk for walk in self._kept if walk.seen and walk.entry == entry]
        return next(iter(known), None) or next((walk for walk in self._kept if not walk.seen), None)

    def after(self, before: Walk[L] | None, last: Walk[L]) -> Walk[L]:
        """The most probable walk after a pass `last` that followed a pass `before`.

        That is the walk that followed these two before; else the only one that has followed `last`; else `last` again,
        or `before` if `last` has fewer visits. If there was none before, and `last` was made by layers called by
        themselves, the plan's guess stands for `before`.
        """
        forecast = self._forecasts.expected((before, last))
        if forecast is not None:
            return forecast
        followers = {walk for context, walk in self._forecasts if context[1] is last}
        if len(followers) == 1:
            return followers.pop()
        if before is None and last.entry is None:
            before = next((walk for walk in self._kept if not walk.seen), None)
        shortened = before is not None and len(last.visits) < len(before.visits)
        return before if shortened and before is not None else last

    def add(self, trace: list[L], entry: Hashable = None, before: int = 0) -> None:
        """Record a pass through `entry` with the visits `trace`, at least one. Keeps the list, not a copy of it.

        `before`: how many of them came before the entry was called, as text goes through a connector once before the
        steps. The next pass is expected to be one without them.
        """
        walk = self._kept[0]
        if walk.visits != trace:
            walk = self._bring_forward(trace)
        if self.seen:
            self._forecasts.learn((self._before, self.last), walk)
            self._before = self.last
        self.last = walk
        walk.made(entry)
        if 0 < before < len(trace):
            self._expect_without(walk, before)
        while len(self._kept) > KEPT:
            self._forget(self._kept.pop())

    def _bring_forward(self, trace: list[L]) -> Walk[L]:
        kept = self._kept
        walk = next((known for known in kept if known.visits == trace), None)
        if walk is None:
            walk = Walk(trace)
        else:
            kept.remove(walk)
        kept.insert(0, walk)
        return walk

    def _expect_without(self, walk: Walk[L], before: int) -> None:
        """Expect the walk without its first `before` visits after it, and again after that, unless more is known."""
        rest = walk.visits[before:]
        follower = next((known for known in self._kept if known.visits == rest), None)
        if follower is None:
            follower = Walk(rest)
            self._kept.insert(1, follower)
        for context in ((self._before, walk), (walk, follower)):
            self._forecasts.suppose(context, follower)

    def _forget(self, walk: Walk[L]) -> None:
        self._forecasts.keep(lambda context, follower: walk not in context and walk is not follower)

    # ------------------------------------------------------------------ where we are

    def explaining(self, trace: list[L], current: Walk[L]) -> Walk[L] | None:
        """A walk that begins with the visits of this pass, or None. `current` is preferred; then one in which the last
        layer recurs at once, since keeping its bytes costs nothing if it does not; then the most recent."""
        count = len(trace)
        if current.begins_with(trace):
            return current
        explaining = [walk for walk in self._kept if walk.begins_with(trace)]
        for walk in explaining:
            if walk.visits[count : count + 1] == trace[-1:]:
                return walk
        return explaining[0] if explaining else self._stretched(trace)

    def _stretched(self, trace: list[L]) -> Walk[L] | None:
        """A walk derived from a known one by repeating each visit as often as the first one of this pass was. The first
        pass of a model that fills a cache is like that. Later ones are known from `add`."""
        first, times = trace[0], len(trace)
        if times < 2 or any(layer is not first for layer in trace):
            return None
        for walk in self._kept:
            if walk.visits[0] is first and walk.visits[1:2] != [first]:
                return Walk([layer for layer in walk.visits for _ in range(times)], derived_from=walk)
        return None

    def is_whole(self, trace: list[L]) -> bool:
        """Whether these visits are a whole pass: one recorded through an entry, or the plan's guess."""
        return any(walk.visits == trace for walk in self._kept if walk.entry is not None or not walk.seen)

    # ------------------------------------------------------------------ what to plan by

    def typical(self) -> Walk[L]:
        """The walk to plan by: the one made most often; of several, the one with most layers, then the most recent.

        So the first pass that skips layers does not replace the walk that has them all. Layers called by themselves say
        little about passes: until one began through an entry, the plan's guess stands, unless one of theirs was made so
        often that it has as many visits.
        """
        begun = [walk for walk in self._kept if walk.seen and walk.entry is not None]
        if begun:
            return max(begun, key=lambda walk: (walk.passes, len(set(walk.visits))))
        return max(self._kept, key=lambda walk: len(walk.visits) * (walk.passes if walk.seen else 1))

    def count_again(self) -> None:
        """Reset the counts of passes: they say nothing about the passes to come."""
        for walk in self._kept:
            walk.count_again()
