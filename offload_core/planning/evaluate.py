"""The pass time of one choice of residents and ring, for the planner's search; counts the visits that it simulates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .packing import pack_cyclic, pack_far_apart
from .reserved import align_up, reserved_bytes
from .timeline import Order, PassTimes, order_passes, run_pass

_FAR_APART_WORK = 4  # work of judging a choice with that packing, relative to the cyclic one
_STEADY_PASSES = 10  # most passes simulated per choice; most choices are steady sooner


@dataclass(frozen=True, slots=True)
class Problem:
    """The problem to search. All tuples are per layer, except `visits`.

    keep        layers that are resident in every choice
    reserved    device bytes of each layer as a resident
    room_bytes  device bytes for the ring and for residents beyond `keep`
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
        """Bytes of the smallest ring of at least `nbytes`: aligned, and a whole number of segments."""
        return reserved_bytes(align_up(nbytes, self.alignment), self.segment_bytes)

    def reserved_ring(self, ring_bytes: int) -> int:
        """Device bytes of a ring: more than its size if the user's ring is no whole number of segments."""
        return reserved_bytes(ring_bytes, self.segment_bytes)

    def movable(self) -> tuple[int, ...]:
        """Layers that may be streamed, in order of first visit; those without a visit come last."""
        order = dict.fromkeys((*self.visits, *range(len(self.sizes))))
        return tuple(layer for layer in order if layer not in self.keep)

    def visited(self) -> tuple[int, ...]:
        """Layers that may be streamed and are visited, in order of first visit."""
        return tuple(layer for layer in dict.fromkeys(self.visits) if layer not in self.keep)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete choice with its simulated pass.

    residents  resident layers beyond `keep`
    offsets    offset in the ring of every streamed layer
    pass_ns    the steady pass, or the first one if that was simulated
    waits_ns   how long the compute waited before each visit of that pass
    far_apart  whether the offsets come from `pack_far_apart`, else from `pack_cyclic`
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
        """Bytes of the room that the choice takes."""
        return self.resident_bytes + self.ring_bytes


class Evaluator:
    """Simulates choices and caches the results. `work` counts the visits simulated."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.movable = problem.movable()
        self.visit_counts = Counter(problem.visits)
        self.compute_ns = sum(problem.compute_ns[layer] for layer in problem.visits)
        self.work = 0
        self._judged: dict[tuple[frozenset[int], int, bool, bool], Candidate | None] = {}

    def count_passes(self, passes: int) -> None:
        """Add the visits of so many passes to `work`."""
        self.work += len(self.problem.visits) * passes

    def judged(self) -> list[Candidate]:
        """Every choice judged so far."""
        return [candidate for candidate in self._judged.values() if candidate is not None]

    def resident_bytes(self, residents: frozenset[int]) -> int:
        """Device bytes of these layers as residents."""
        return sum(self.problem.reserved[layer] for layer in residents)

    def link_ns(self, residents: frozenset[int]) -> int:
        """Link time of a pass in which every visit of a layer that is not resident copies it."""
        return sum(
            self.problem.link_ns[layer] * self.visit_counts[layer] for layer in self.movable if layer not in residents
        )

    def judge(
        self, residents: frozenset[int], ring_bytes: int, far_apart: bool = False, first_pass: bool = False
    ) -> Candidate | None:
        """This choice with its steady pass, or with its first one, which starts with an empty device. None if it does
        not fit the room."""
        key = (residents, ring_bytes, far_apart, first_pass)
        if key not in self._judged:
            self._judged[key] = self._judge(*key)
        return self._judged[key]

    def _judge(self, residents: frozenset[int], ring_bytes: int, far_apart: bool, first: bool) -> Candidate | None:
        problem = self.problem
        offsets = dict.fromkeys((layer for layer in self.movable if layer not in residents), 0)
        largest = max((problem.sizes[layer] for layer in offsets), default=0)
        needed = self.resident_bytes(residents) + problem.reserved_ring(ring_bytes)
        if needed > problem.room_bytes or largest > ring_bytes:
            return None
        self.count_passes(_FAR_APART_WORK - 1 if far_apart else 0)
        pack = pack_far_apart if far_apart else pack_cyclic
        visits = [layer for layer in problem.visits if layer in offsets]
        # Layers without a visit stay at 0: they are copied only when they are used outside the recorded order.
        offsets |= pack(visits, problem.sizes, ring_bytes, problem.alignment)
        return self.place(residents, ring_bytes, offsets, far_apart, first)

    def place(
        self, residents: frozenset[int], ring_bytes: int, offsets: dict[int, int], far_apart: bool, first: bool = False
    ) -> Candidate:
        """This choice with the given offsets, which must lie inside the ring."""
        problem = self.problem
        self.count_passes(1)
        used = max((offset + problem.sizes[layer] for layer, offset in offsets.items()), default=0)
        places = [offsets.get(layer) for layer in range(len(problem.sizes))]
        first_order, steady_order = order_passes(problem.visits, problem.sizes, places)
        order, passes = (first_order, 1) if first else (steady_order, _STEADY_PASSES)
        pass_ns, waits = _run(problem, order, passes)
        if problem.ring_bytes is None:  # the unused end of the ring is not needed
            ring_bytes = min(ring_bytes, problem.ring_size(used))
        kept_bytes = self.resident_bytes(residents)
        return Candidate(residents, kept_bytes, ring_bytes, offsets, pass_ns, waits, far_apart)


def _run(problem: Problem, order: Order, passes: int) -> tuple[int, tuple[int, ...]]:
    """(ns of the last pass, ns waited before each of its visits) of at most `passes` passes; it stops at the second of
    two passes of equal duration. Starts with an empty ring and idle lanes."""
    visits = problem.visits
    times, duration = PassTimes(ends=[0] * len(visits)), 0
    for _ in range(passes):
        before, times = times, run_pass(order, visits, problem.link_ns, problem.compute_ns, times)
        previous, duration = duration, times.end - before.end
        if duration == previous:
            break
    return duration, tuple(start - free for free, start in zip((before.end, *times.ends), times.starts))
