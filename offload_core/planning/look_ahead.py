"""Decides which copies may be issued ahead of their visits. Arithmetic on the order of visits, standard library only.

The expected visits are a list, the road: the walk that this pass is expected to make, then the walk expected to follow
it (`walks.py`); so the last visits of a pass fetch the first layers of the next, unless another component is expected
to run after it (`succession.py`). After an unexpected visit, the road is that of a walk that begins with all visits of
the pass so far. After a pass that visited no layer nothing is fetched for another through the same entry, unless one
through it has visited layers before. A wrong road costs copies and ring bytes only: `pending` is then reset for all
layers; copied bytes stay valid until overwritten.

    next    the expected visit, an index of the road
    ahead   how many visits from there on are counted in `pending`: their copies have been issued

Invariants between any two calls: a layer with `pending` visits is valid, and the `pending` of all layers add up to
`ahead`. A copy is due only if no layer that shares its bytes is in use or has pending visits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from .walks import Walk, Walks

MISSES_TO_PAUSE = 2
"""Unexpected visits in a row after which look-ahead pauses: unused copies would delay demand loads."""


_NO_ENTRY = object()


class Loadable:
    """What look-ahead needs to know of a layer."""

    __slots__ = ("device_buffer", "in_use", "keep_resident", "name", "overlaps", "pending", "valid")

    def __init__(self, name: str) -> None:
        self.name = name
        self.device_buffer: object | None = None
        """Its place on the device."""
        self.overlaps: tuple[Loadable, ...] = ()
        """The other layers that share bytes of the ring with this one."""
        self.keep_resident = False
        """Its place is its own."""
        self.valid = False
        """A copy into `device_buffer` was issued, and none over it since."""
        self.pending = 0
        """Expected visits for which look-ahead has issued the copy: the bytes must not be overwritten."""
        self.in_use = 0
        """Calls of the layer that are under way: 2 in a recursive call."""


L = TypeVar("L", bound=Loadable)


T = TypeVar("T", contravariant=True)


class Issuer(Protocol[T]):
    """Makes copies."""

    def issue(self, layer: T) -> None:
        """Make a layer valid, and all that overlap it invalid."""


class LookAhead(Generic[L]):
    """The road of one component, and how far its copies have been issued."""

    def __init__(self, layers: Sequence[L]) -> None:
        self.has_ring = False
        """Whether streamed layers may be copied."""
        self.trace: list[L] = []
        """The visits of the pass under way; of layers called by themselves, those since the last pass."""
        self._layers = tuple(layers)
        self._walks = Walks(self._layers)
        self._walk = self._then = self._walks.expected()
        """The walk that this pass makes (between passes: the next pass), and the one expected to follow it."""
        self._length = len(self._walk.visits)
        """Number of visits of `_walk`."""
        self._road = self._walk.visits + self._then.visits
        self._next = 0
        """Index in `_road` of the next expected visit; less than `_length`."""
        self._last_pass = False
        """Another component is expected to run after this pass: nothing is fetched for the visits that follow it."""
        self._end = len(self._road)
        """Index in `_road` before which copies are issued."""
        self._ahead = 0
        self._misses = 0
        """Unexpected visits in a row that no walk explains."""
        self._entry: Hashable = None
        """The entry through which the pass under way began; None if unknown."""
        self._before_entry = 0
        """Number of visits of this pass before its entry was called."""
        self._idle_through: Hashable = _NO_ENTRY
        """The entry of the last pass if no pass through it has visited a layer, as of a decode if only the encoder has
        layers: until a pass begins through another one, or a layer is visited, nothing is fetched."""

    # ------------------------------------------------------------------ passes

    def expect(self, order: Sequence[L]) -> None:
        """The plan's guess of the order of visits. Ignored once a pass was seen."""
        if not self._walks.seen:
            self._walks.guess(order)
            self._set_out()

    @property
    def has_walked(self) -> bool:
        """Whether the visits since the last pass are a whole pass of their own."""
        return bool(self.trace) and self._walks.is_whole(self.trace)

    def begin_pass(self, entry: Hashable = None) -> None:
        """A pass begins, through the method with the key `entry`. The visits since the last one belong to it."""
        self._entry = entry
        if entry != self._idle_through:
            self._idle_through = _NO_ENTRY
        if self._walk.seen and entry is not None and self._walk.entry != entry:
            walk = self._walks.through(entry)
            if walk is not None:
                self._change_to(walk, len(self.trace) if walk.begins_with(self.trace) else 0)
        self._before_entry = len(self.trace)
        self._misses = 0

    def end_pass(self) -> None:
        """Record the walk just made, and expect its most probable successor."""
        trace, self.trace = self.trace, []
        if trace:
            self._walks.add(trace, self._entry, self._before_entry)
        elif (walk := self._walks.through(self._entry)) is None or not walk.seen:
            self._idle_through = self._entry
        self._entry = None
        self._set_out()

    def abort(self) -> None:
        """The pass has failed: no layer is pending, and what it has visited counts for nothing."""
        self.trace = []
        self._entry = None
        self.forget()
        self._set_out()

    def expect_last_pass(self, last: bool) -> None:
        """Whether another component is expected to run after this pass. Holds until the next call."""
        self._last_pass = last
        self._end = self._length if last else len(self._road)
        for layer in self._road[self._end : self._next + self._ahead]:  # visits that will not come
            layer.pending -= 1
        self._ahead = min(self._ahead, self._end - self._next)

    @property
    def is_complete(self) -> bool:
        """Whether copies were issued for all visits for which they are to be issued."""
        return self._idle_through is not _NO_ENTRY or self._next + self._ahead >= self._end

    def use_ring(self, may: bool) -> bool:
        """Whether streamed layers may be copied from now on. Returns it."""
        self.has_ring = may
        return may

    # ------------------------------------------------------------------ visits

    def visit(self, layer: L) -> bool:
        """A layer is visited. Returns whether it was the expected one; if not, the road has changed."""
        self.trace.append(layer)
        self._idle_through = _NO_ENTRY
        position = self._next
        if self._road[position] is not layer:
            self._find_place(layer)
            return False
        self._misses = 0
        self._next = position = position + 1
        if self._ahead:
            self._ahead -= 1
            layer.pending -= 1
        if position == self._length:
            self._turn()
        return True

    def undo_visit(self, layer: L) -> None:
        """The last visit of the layer, and those after it, have failed and will be made again."""
        while self.trace and self.trace.pop() is not layer:
            pass

    def fetch(self, issuer: Issuer[L]) -> None:
        """Have copies issued for the expected visits, in order, up to the first whose layer has no place on the device
        or shares it with a layer in use or pending."""
        if self._misses >= MISSES_TO_PAUSE or self._idle_through is not _NO_ENTRY:
            return
        road = self._road
        position = self._next + self._ahead
        end = self._end
        while position < end:
            layer = road[position]
            if not layer.valid:
                if layer.device_buffer is None or layer.in_use or not (self.has_ring or layer.keep_resident):
                    return
                for other in layer.overlaps:  # residents have none
                    if other.pending or other.in_use:
                        return
                issuer.issue(layer)
            layer.pending += 1
            self._ahead += 1
            position += 1

    def forget(self) -> None:
        """Reset `pending` and expect the first visit of a pass."""
        self.forget_pending()
        self._next = 0

    def forget_pending(self) -> None:
        for layer in self._layers:
            layer.pending = 0
        self._ahead = 0

    # ------------------------------------------------------------------ the road

    def _find_place(self, layer: L) -> None:
        """The visit was not expected: switch to a walk that begins with all visits of this pass. Without such a walk,
        continue after the layer's next visit on the current walk, if it has one."""
        walk = self._walks.explaining(self.trace, self._walk)
        if walk is not None:
            self._misses = 0
            self._change_to(walk, len(self.trace))
            return
        self._misses += 1
        walk, start = self._walk, self._next
        if walk.derived_from is not None:  # a wrong guess
            walk, start = walk.derived_from, 0
        count = len(walk.visits)
        for position in range(start, start + count):
            if walk.visits[position % count] is layer:
                self._change_to(walk, position % count + 1)
                break

    def _set_out(self) -> None:
        """Between passes: expect the first visit of the most probable next pass. Look-ahead for it may be under way."""
        walk = self._walks.expected()
        then = self._walks.after(self._walks.last, walk)
        if walk is not self._walk or then is not self._then or self._next:
            self.forget_pending()
            self._go(walk, then)
        if self._last_pass:
            self._end = 0

    def _turn(self) -> None:
        """The walk is complete: the next one begins, whose visits are in `_road` already; look-ahead for it stays."""
        self._go(self._then, self._walks.after(self._walk, self._then))
        if self._last_pass:
            self._end = 0

    def _change_to(self, walk: Walk[L], position: int) -> None:
        """This pass makes `walk` and has made its first `position` visits. Resets `pending`."""
        self.forget_pending()
        self._go(walk, self._walks.after(self._walks.last, walk))
        self._next = position
        if position == self._length:
            self._turn()

    def _go(self, walk: Walk[L], then: Walk[L]) -> None:
        """Expect the first visit of `walk`, then `then`. The caller keeps or resets `pending`."""
        if walk is not self._walk or then is not self._then:
            self._walk, self._then = walk, then
            self._length = len(walk.visits)
            self._road = walk.visits + then.visits
        self._next = 0
        self._end = self._length if self._last_pass else len(self._road)

    # ------------------------------------------------------------------ what to plan by

    def typical_walk(self) -> Sequence[L]:
        """The visits of the walk to plan by (`Walks.typical`); none before a pass."""
        walk = self._walks.typical()
        return walk.visits if walk.seen else ()

    def count_again(self) -> None:
        """Reset the counts of passes: they say nothing about the passes to come."""
        self._walks.count_again()
