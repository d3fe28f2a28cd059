"""One choice of residents and ring, judged: the pass time it leads to. What the planner's search is made of.

The same lanes as `simulate`, without its record keeping, and with a count of the work done. Knows nothing about how a
choice came about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .packing import align_up, pack_cyclic, pack_far_apart
from .reserved import reserved_bytes
from .timeline import NO_WAIT, PassOrder, order_passes

__all__ = ["Candidate", "Evaluator", "Problem"]

_FAR_APART_WORK = 4  # that packing takes about this many times as long as all the rest
_STEADY_PASSES = 10  # enough for a steady state, or for a fair mean; the plan's own prediction is exact


@dataclass(frozen=True, slots=True)
class Problem:
    """What a choice is about. All tuples are per layer, except `visits`.

    keep        layers that are resident whatever is chosen
    reserved    what each takes of the device as a resident
    room_bytes  for the ring and for residents beyond `keep`
    ring_bytes  the ring the user asked for; None: free choice
    """

    visits: tuple[int, ...]
    sizes: tuple[int, ...]
    link_ns: tuple[int, ...]
    compute_ns: tuple[int, ...]
    keep: frozenset[int]
    room_bytes: int
    alignment: int
    ring_bytes: int | None = None
    segment_bytes: int = 1
    reserved: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reserved", tuple(reserved_bytes(size, self.segment_bytes) for size in self.sizes))

    def ring_size(self, nbytes: int) -> int:
        """The ring that holds so many bytes: aligned, and no less than what it takes of the device anyway."""
        return reserved_bytes(align_up(nbytes, self.alignment), self.segment_bytes)

    def movable(self) -> tuple[int, ...]:
        """Layers that may be streamed, in order of first visit; those no visit names come last."""
        order = dict.fromkeys((*self.visits, *range(len(self.sizes))))
        return tuple(layer for layer in order if layer not in self.keep)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete choice.

    residents  those beyond `keep`
    offsets    place in the ring of every other layer beyond `keep`
    pass_ns    simulated: steady, or the first pass where that was asked
    waits_ns   how long the compute waited before each visit of that pass
    far_apart  which of the two packings the offsets come from
    """

    residents: frozenset[int]
    resident_bytes: int
    ring_bytes: int
    offsets: dict[int, int]
    pass_ns: int
    waits_ns: tuple[int, ...]
    far_apart: bool = False

    @property
    def device_bytes(self) -> int:
        """What the choice takes of the room."""
        return self.resident_bytes + self.ring_bytes


class Evaluator:
    """Judges choices, remembers them, counts visits simulated in `work`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.movable = problem.movable()
        self.visit_counts = Counter(problem.visits)
        self.compute_ns = sum(problem.compute_ns[layer] for layer in problem.visits)
        self.work = 0
        self._seen: dict[tuple[frozenset[int], int, bool], Candidate | None] = {}

    def judged(self) -> list[Candidate]:
        """Every steady choice judged so far."""
        return [candidate for candidate in self._seen.values() if candidate is not None]

    def resident_bytes(self, residents: frozenset[int]) -> int:
        """What these layers take of the device as residents."""
        return sum(self.problem.reserved[layer] for layer in residents)

    def link_ns(self, residents: frozenset[int]) -> int:
        """Link time of a pass that streams everything else once a visit: what a ring without hits needs."""
        return sum(
            self.problem.link_ns[layer] * self.visit_counts[layer] for layer in self.movable if layer not in residents
        )

    def judge(self, residents: frozenset[int], ring_bytes: int, far_apart: bool = False) -> Candidate | None:
        """The steady pass of this choice, or None when it does not fit the room."""
        key = (residents, ring_bytes, far_apart)
        if key not in self._seen:
            self._seen[key] = self._judge(residents, ring_bytes, far_apart, first=False)
        return self._seen[key]

    def judge_first_pass(self, residents: frozenset[int], ring_bytes: int) -> Candidate | None:
        """The first pass of this choice, from an empty device."""
        return self._judge(residents, ring_bytes, far_apart=False, first=True)

    def _judge(self, residents: frozenset[int], ring_bytes: int, far_apart: bool, first: bool) -> Candidate | None:
        problem = self.problem
        kept_bytes = self.resident_bytes(residents)
        streamed = [layer for layer in self.movable if layer not in residents]
        largest = max((problem.sizes[layer] for layer in streamed), default=0)
        if kept_bytes + reserved_bytes(ring_bytes, problem.segment_bytes) > problem.room_bytes or largest > ring_bytes:
            return None
        self.work += len(problem.visits) * (_FAR_APART_WORK - 1 if far_apart else 0)
        pack = pack_far_apart if far_apart else pack_cyclic
        offsets = pack(problem.visits, problem.sizes, set(streamed), ring_bytes, problem.alignment)
        return self.place(residents, ring_bytes, offsets, far_apart, first)

    def place(
        self, residents: frozenset[int], ring_bytes: int, offsets: dict[int, int], far_apart: bool, first: bool = False
    ) -> Candidate:
        """The choice with these offsets, which must lie in the ring."""
        problem = self.problem
        self.work += len(problem.visits)
        used = max((offset + problem.sizes[layer] for layer, offset in offsets.items()), default=0)
        places = [offsets.get(layer) for layer in range(len(problem.sizes))]
        first_order, steady_order = order_passes(problem.visits, problem.sizes, places, used)
        order, passes = (first_order, 1) if first else (steady_order, _STEADY_PASSES)
        pass_ns, waits = _run(order, problem.visits, problem.link_ns, problem.compute_ns, passes)
        if problem.ring_bytes is None:  # what packing left unused at the end of the ring costs nothing to give back
            ring_bytes = min(ring_bytes, problem.ring_size(used))
        kept_bytes = self.resident_bytes(residents)
        return Candidate(residents, kept_bytes, ring_bytes, offsets, pass_ns, waits, far_apart)


def _run(
    order: PassOrder, visits: Sequence[int], link_ns: Sequence[int], compute_ns: Sequence[int], passes: int
) -> tuple[int, tuple[int, ...]]:
    """Duration of the last of `passes` passes (sooner if they become alike), and the waits in it.

    Starts with an empty ring and idle lanes, so early passes are the slow ones: look-ahead only builds up.
    """
    steps = [
        (link_ns[layer] if copies else -1, wait, compute_ns[layer])
        for layer, copies, wait in zip(visits, order.copies, order.waits_for)
    ]
    copy_free = compute_free = duration = 0
    ends: list[int] = [0] * len(steps)
    waits: list[int] = []
    for _ in range(passes):
        began, before, ends, waits = compute_free, ends, [], []
        for link, wait, compute in steps:
            ready = compute_free
            if link >= 0:
                if wait != NO_WAIT:
                    freed = ends[wait] if wait >= 0 else before[wait]
                    if freed > copy_free:
                        copy_free = freed
                copy_free += link
                if copy_free > ready:
                    ready = copy_free
            waits.append(ready - compute_free)
            compute_free = ready + compute
            ends.append(compute_free)
        last, duration = duration, compute_free - began
        if duration == last:
            break
    return duration, tuple(waits)
