"""The walks that a component's passes were seen to make: which of them explains the visits so far, which comes next.

Models walk their layers in more than one way: each block twice while a prefix is put into a key/value cache and once
afterwards, without the blocks that a step cache or skip-layer guidance leaves out, by another conditioning. The last
few different walks are kept. Nothing here is called while visits come as expected: `explaining` on a visit that did
not, `add` and `after` once a pass. Knows nothing of copies: whatever it answers is a guess, and may be wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from .layer import Layer

KEPT = 6
"""Walks that are kept. The one that was made longest ago goes first."""


class Walk:
    """The layers that one pass visits, in order. Two walks are the same only if they are one object."""

    __slots__ = ("derived_from", "entry", "passes", "seen", "visits")

    def __init__(self, visits: Sequence[Layer], derived_from: Walk | None = None) -> None:
        self.visits = list(visits)
        self.derived_from = derived_from
        """The walk that this one was made up from; None: it was seen, or planned."""
        self.seen = False
        """A pass has made it. Until one has, a plan's guess is kept like a walk that was seen."""
        self.entry: Hashable = None
        """The method through which the last of its passes began; None: none was told."""
        self.passes = 0
        """How many passes have made it since `count_again`."""

    def begins_with(self, trace: list[Layer]) -> bool:
        """Whether the visits of `trace` are its first ones."""
        count = len(trace)
        return self.visits[count - 1 : count] == trace[-1:] and self.visits[:count] == trace


class Walks:
    """What is known of one component's walks. There is always one, however little is known."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._kept = [Walk(layers)]
        """The one that was made last comes first."""
        self._before: Walk | None = None
        self.last = self._kept[0]
        """The walk of the last pass, and the one before it."""
        self._forecasts: dict[tuple[Walk | None, Walk], tuple[Walk, bool]] = {}
        """By the walks of two passes that follow one another: the walk of the third, and whether it came last time."""

    @property
    def seen(self) -> bool:
        """Whether any pass was seen."""
        return self.last.seen

    def guess(self, order: Sequence[Layer]) -> None:
        """The plan's guess. For as long as no pass was seen."""
        if order and not self.seen:
            self._kept = [Walk(order)]
            self.last = self._kept[0]

    # ------------------------------------------------------------------ what comes next

    def expected(self) -> Walk:
        """The walk of the next pass, most probably."""
        return self.after(self._before, self.last)

    def through(self, entry: Hashable) -> Walk | None:
        """The last walk of a pass that began through `entry`. If there is none, the plan's guess, while it is kept."""
        known = [walk for walk in self._kept if walk.seen and walk.entry == entry]
        return next(iter(known), None) or next((walk for walk in self._kept if not walk.seen), None)

    def after(self, before: Walk | None, last: Walk) -> Walk:
        """What most probably follows a pass `last` that followed a pass `before`.

        That is what followed these two before; else what has always followed `last`; else the same walk again, or the
        one before it if the last one has left something out. Where there was none before it, and `last` was made by
        layers that were called by themselves, the plan's guess stands for the one before.
        """
        forecast = self._forecasts.get((before, last))
        if forecast is not None:
            return forecast[0]
        followers = {walk for context, (walk, _) in self._forecasts.items() if context[1] is last}
        if len(followers) == 1:
            return followers.pop()
        if before is None and last.entry is None:
            before = next((walk for walk in self._kept if not walk.seen), None)
        shortened = before is not None and len(last.visits) < len(before.visits)
        return before if shortened and before is not None else last

    def add(self, trace: list[Layer], entry: Hashable = None, before: int = 0) -> None:
        """A pass through `entry` has made the visits of `trace`, of which there is at least one. The list is kept.

        `before`: the first so many of them came before the entry was called, as text goes through a connector once
        before the steps. The next pass most probably is one without them.
        """
        walk = self._kept[0]
        if walk.visits != trace:
            walk = self._bring_forward(trace)
        if self.seen:
            self._learn(walk)
            self._before = self.last
        self.last = walk
        walk.seen, walk.entry = True, entry
        walk.passes += 1
        if 0 < before < len(trace):
            self._expect_without(walk, before)
        while len(self._kept) > KEPT:
            self._forget(self._kept.pop())

    def _bring_forward(self, trace: list[Layer]) -> Walk:
        kept = self._kept
        walk = next((known for known in kept if known.visits == trace), None)
        if walk is None:
            walk = Walk(trace)
        else:
            kept.remove(walk)
        kept.insert(0, walk)
        return walk

    def _expect_without(self, walk: Walk, before: int) -> None:
        """Where it is not known what follows, the walk without its first visits does, and the same again."""
        rest = walk.visits[before:]
        follower = next((known for known in self._kept if known.visits == rest), None)
        if follower is None:
            follower = Walk(rest)
            self._kept.insert(1, follower)
        for context in ((self._before, walk), (walk, follower)):
            self._forecasts.setdefault(context, (follower, False))

    def _learn(self, walk: Walk) -> None:
        """A forecast is given up when it was wrong twice in a row: a run's first pass does not change the others'."""
        context = (self._before, self.last)
        forecast, held = self._forecasts.get(context, (walk, False))
        if forecast is walk or not held:
            self._forecasts[context] = (walk, True)
        else:
            self._forecasts[context] = (forecast, False)

    def _forget(self, walk: Walk) -> None:
        self._forecasts = {
            context: forecast
            for context, forecast in self._forecasts.items()
            if walk not in context and walk is not forecast[0]
        }

    # ------------------------------------------------------------------ where we are

    def explaining(self, trace: list[Layer], current: Walk) -> Walk | None:
        """A walk that begins with the visits of this pass so far, or None. `current` comes before others.

        Of several others the one in which the last layer comes once more at once: if it does not, having kept its
        bytes has cost nothing. Else the one that was made last.
        """
        count = len(trace)
        if current.begins_with(trace):
            return current
        explaining = [walk for walk in self._kept if walk.begins_with(trace)]
        for walk in explaining:
            if walk.visits[count : count + 1] == trace[-1:]:
                return walk
        return explaining[0] if explaining else self._stretched(trace)

    def _stretched(self, trace: list[Layer]) -> Walk | None:
        """A walk made up from one that is known, with each visit as often as the first one of this pass has come.

        The first pass of a model that fills a cache is like that. Later ones are known from `add`.
        """
        first, times = trace[0], len(trace)
        if times < 2 or any(layer is not first for layer in trace):
            return None
        for walk in self._kept:
            if walk.visits[0] is first and walk.visits[1:2] != [first]:
                return Walk([layer for layer in walk.visits for _ in range(times)], derived_from=walk)
        return None

    def is_whole(self, trace: list[Layer]) -> bool:
        """Whether these visits are a pass of their own: all that one through an entry makes, or the plan's guess."""
        return any(walk.visits == trace for walk in self._kept if walk.entry is not None or not walk.seen)

    # ------------------------------------------------------------------ what to plan by

    def typical(self) -> Walk:
        """The walk to plan by: the one made most often; of several, the one with most layers, then the last one made.

        So the first of them that skips layers does not replace the one that has them all. Layers that were called by
        themselves say little about the passes: until a pass has begun through an entry, the plan's guess stands, unless
        one of theirs has been made so often that it has as many visits.
        """
        begun = [walk for walk in self._kept if walk.seen and walk.entry is not None]
        if begun:
            return max(begun, key=lambda walk: (walk.passes, len(set(walk.visits))))
        return max(self._kept, key=lambda walk: len(walk.visits) * (walk.passes if walk.seen else 1))

    def count_again(self) -> None:
        """How often which walk was made so far says nothing about the passes to come."""
        for walk in self._kept:
            walk.passes = 0
