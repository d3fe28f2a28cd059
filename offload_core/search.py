"""The search for the best split of device memory between residents and ring.

Starts from the credit rule at several ring sizes, improves the best choice where the compute still waits, and stops at
the bound or when a fixed amount of work is done: counted, not timed, so the answer never depends on the machine. Knows
nothing about requests, or words for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from .credit import credit_residents, first_layers, last_layers, spread_layers
from .evaluate import Candidate, Evaluator, Problem
from .layout import improved_layout
from .reserved import reserved_bytes
from .ring_size import usual_ring

__all__ = ["EQUAL", "Search"]

EQUAL = 1.001  # pass times closer than this are one: no clock and no model is better
WORK_VISITS = 6_000  # visits simulated per plan before the search contents itself; some 5 to 10 microseconds each
_RING_STEPS = (2.0, 3.0, 1.0, 1.5, 2.5, 4.0, 6.0)  # rings tried, in largest streamed layers
_MAX_RING_LAYERS = 12  # look-ahead beyond this is residency by another name
_SIZE_CLASSES = 3  # how many of the largest layer sizes may be kept whole, so that a smaller ring serves the rest
_EXHAUSTIVE_LAYERS = 12  # 4096 choices, most of them refused without simulation
_LAYOUTS = 3  # choices whose layout is worked on, and the share of the work each may take
_LAYOUT_WORK = 0.4
_ALL_WORK = 2.5  # share of the work after which even the last touches are left out
_TRIED_LAYERS = 16  # how many of the worst stalls and cheapest residents one improvement looks at


class Search:
    """One search over one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.evaluator = Evaluator(problem)
        self._movable = self.evaluator.movable
        # With few layers there is no averaging out of a bad choice, and each visit costs less to simulate.
        self._work_visits = WORK_VISITS * (2 if len(self._movable) <= _EXHAUSTIVE_LAYERS else 1)
        self._repeats = len(problem.visits) != len(self.evaluator.visit_counts)

    @property
    def work(self) -> int:
        """Visits simulated so far."""
        return self.evaluator.work

    def steady(self) -> Candidate | None:
        """The choice with the least steady pass time found; among equals, the least memory. None: nothing fits."""
        best = self._best_start()
        if best is None:
            return None
        best = self._improved(best)
        best = self._exhausted(best)
        best = self._laid_out(best)
        best = _least([best, *self._simple_rules(best)])
        return self._trimmed(best)

    def streamed_only(self, first_pass: bool) -> Candidate | None:
        """No residents beyond `keep`: the ring, from three layers up, with the best first pass (or steady pass)."""
        judge = self.evaluator.judge_first_pass if first_pass else self.evaluator.judge
        judged = (judge(frozenset(), ring) for ring in self._rings(frozenset()))
        found = sorted((candidate for candidate in judged if candidate is not None), key=lambda c: c.ring_bytes)
        if not found:
            return None
        limit = min(candidate.pass_ns for candidate in found) * EQUAL
        good = [candidate for candidate in found if candidate.pass_ns <= limit]
        usual = min(self._usual_ring(frozenset()), found[-1].ring_bytes)
        return next((candidate for candidate in good if candidate.ring_bytes >= usual), good[-1])

    def with_ring(self, ring_bytes: int) -> Candidate | None:
        """No residents beyond `keep`, and this ring."""
        return self.evaluator.judge(frozenset(), ring_bytes)

    def filled(self, chosen: Candidate) -> Candidate:
        """`chosen` with more residents in the room that it leaves, those that are copied most first; never slower.

        What stays no longer needs a place in the ring, which may shrink for it: so it goes on while something is added.
        """
        sizes, counts = self.problem.sizes, self.evaluator.visit_counts
        before: Candidate | None = None
        while chosen is not before:
            before = chosen
            for layer in sorted(before.offsets, key=lambda layer: (-sizes[layer] * counts[layer], layer)):
                if chosen.device_bytes + self.problem.reserved[layer] <= self.problem.room_bytes:
                    more = self.evaluator.judge(chosen.residents | {layer}, chosen.ring_bytes, chosen.far_apart)
                    if more is not None and more.pass_ns <= chosen.pass_ns:
                        chosen = more
        return chosen

    # ---- where to start

    def _best_start(self) -> Candidate | None:
        best: Candidate | None = None
        for residents, ring in self._starts():
            candidate = self.evaluator.judge(residents, ring)
            if candidate is not None and (best is None or _key(candidate) < _key(best)):
                best = candidate
            if best is not None and (self._is_perfect(best) or self._spent(0.4)):
                break
        if best is None or self._is_perfect(best):
            return best
        apart = self.evaluator.judge(best.residents, best.ring_bytes, far_apart=True)
        return best if apart is None else _least([best, apart])

    def _starts(self) -> Iterator[tuple[frozenset[int], int]]:
        """The credit rule's choices: for each ring size, and with the largest kinds of layer kept whole or not."""
        problem, sizes = self.problem, self.problem.sizes
        forced: set[int] = set()
        classes = sorted({sizes[layer] for layer in self._movable}, reverse=True)[:_SIZE_CLASSES]
        for size in (None, *classes):
            forced |= {layer for layer in self._movable if sizes[layer] == size}
            base = frozenset(forced)
            room = problem.room_bytes - self.evaluator.resident_bytes(base)
            if room < 0:
                return
            for ring in self._rings(base):
                left = room - self._reserved(ring)
                if left < 0:
                    continue
                chosen = credit_residents(
                    *(problem.visits, sizes, problem.link_ns, problem.compute_ns, problem.keep | base),
                    ring_bytes=ring,
                    room_bytes=left,
                    reserved=problem.reserved,
                )
                self.evaluator.work += len(problem.visits)
                yield base | chosen, ring
                if problem.ring_bytes is None:
                    yield base | chosen, self._most_ring(base | chosen)

    def _rings(self, residents: frozenset[int]) -> list[int]:
        """Ring sizes worth a try with these residents, the most promising first."""
        if self.problem.ring_bytes is not None:
            return [self.problem.ring_bytes]
        largest, most = self._largest_streamed(residents), self._most_ring(residents)
        steps = [self._aligned(int(largest * step)) for step in _RING_STEPS]
        rings = dict.fromkeys((*self._neighbour_sums(residents), *steps, self._usual_ring(residents), most))
        return [ring for ring in rings if largest <= ring <= most]

    def _neighbour_sums(self, residents: frozenset[int]) -> Iterator[int]:
        """The least rings that hold every two, and every three, streamed layers that follow one another."""
        order = [layer for layer in self.problem.visits if layer not in residents and layer not in self.problem.keep]
        sizes = [self._aligned(self.problem.sizes[layer]) for layer in order]
        for count in (2, 3):
            if len(sizes) > count:
                shifted = (sizes[shift:] + sizes[:shift] for shift in range(count))
                yield self._aligned(max(map(sum, zip(*shifted))))

    def _left(self, residents: frozenset[int]) -> int:
        return self.problem.room_bytes - self.evaluator.resident_bytes(residents)

    def _largest_streamed(self, residents: frozenset[int]) -> int:
        return max((self.problem.sizes[layer] for layer in self._movable if layer not in residents), default=0)

    def _usual_ring(self, residents: frozenset[int]) -> int:
        return self._aligned(usual_ring(self.problem.sizes[layer] for layer in self._movable if layer not in residents))

    def _most_ring(self, residents: frozenset[int]) -> int:
        """What is left beside these residents, as far as look-ahead can use it."""
        left = self._left(residents)
        if left > self.problem.segment_bytes:  # what is left of a segment, nothing can use
            left = left // self.problem.segment_bytes * self.problem.segment_bytes
        return min(left, self._aligned(_MAX_RING_LAYERS * self._largest_streamed(residents)))

    def _reserved(self, ring: int) -> int:
        """What a ring takes of the device: more than its size, if that is the user's and fills no segment."""
        return reserved_bytes(ring, self.problem.segment_bytes)

    def _aligned(self, size: int) -> int:
        return self.problem.ring_size(size)

    # ---- improving it

    def _improved(self, best: Candidate) -> Candidate:
        """Hill climbing: the first better neighbour, until there is none, the bound is met or the work is spent."""
        while not self._is_perfect(best):
            better = None
            for residents, ring in self._neighbours(best):
                if self._is_slower(residents, best):
                    continue
                candidate = self.evaluator.judge(residents, ring, best.far_apart)
                if candidate is not None and candidate.pass_ns < best.pass_ns:
                    better = candidate
                if better is not None or self._spent(0.8):
                    break
            if better is None:
                break
            best = better
        return best

    def _neighbours(self, best: Candidate) -> Iterator[tuple[frozenset[int], int]]:
        """Choices one step away, most promising first: a stalled layer in, if need be for residents that help least."""
        chosen = best.residents
        wanted, spare = self._by_stall(best)
        rings = self._rings(frozenset()) if self.problem.ring_bytes is not None else [best.ring_bytes]
        for layer in wanted:
            yield from self._with_rings(chosen | {layer}, rings)
        for layer in wanted:
            for other in spare:
                swapped = (chosen - {other}) | {layer}
                yield from self._with_rings(swapped, rings)
                yield from self._with_rings(self._filled(swapped, wanted, rings[0]), rings)
        for other in spare:
            yield from self._with_rings(self._filled(chosen - {other}, wanted, rings[0]), rings)
            yield from self._with_rings(chosen - {other}, rings)
        for residents in self._reshaped(best):
            yield from self._with_rings(residents, rings)

    def _reshaped(self, best: Candidate) -> Iterator[frozenset[int]]:
        """Up to three residents for up to three streamed layers nearby, to use the room to the last byte.

        With layers of several sizes the room rarely divides; where the layers stand hardly changes, what is kept does.
        """
        sizes, order = self.problem.sizes, {layer: place for place, layer in enumerate(self._movable)}
        streamed = [layer for layer in self._movable if layer not in best.residents and sizes[layer]]
        classes = sorted({sizes[layer] for layer in streamed}, reverse=True)[:_SIZE_CLASSES]
        room = self.problem.room_bytes - min(best.ring_bytes, *self._rings(best.residents))
        for anchor in sorted(best.residents, key=lambda layer: order[layer]):
            near = sorted(best.residents, key=lambda layer: abs(order[layer] - order[anchor]))
            for size in classes:
                fresh = sorted(
                    (layer for layer in streamed if sizes[layer] == size),
                    key=lambda layer: abs(order[layer] - order[anchor]),
                )
                for outgoing, incoming in ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 3), (3, 2)):
                    residents = best.residents.difference(near[:outgoing]).union(fresh[:incoming])
                    if best.resident_bytes < self.evaluator.resident_bytes(residents) <= room:
                        yield residents

    def _with_rings(self, residents: frozenset[int], rings: Iterable[int]) -> Iterator[tuple[frozenset[int], int]]:
        for ring in rings:
            yield residents, ring
        if self.problem.ring_bytes is None:
            yield residents, self._most_ring(residents)

    def _filled(self, residents: frozenset[int], wanted: Iterable[int], ring: int) -> frozenset[int]:
        """`residents` and as many of the wanted layers as still fit beside the ring."""
        room = self._left(residents) - self._reserved(ring)
        added = set(residents)
        for layer in wanted:
            if layer not in added and self.problem.reserved[layer] <= room:
                room -= self.problem.reserved[layer]
                added.add(layer)
        return frozenset(added)

    def _by_stall(self, best: Candidate) -> tuple[list[int], list[int]]:
        """Streamed layers, most needed first, and residents, least needed first.

        A layer is needed where the compute waits soon after it: any copy avoided shortly before a wait shortens it. The
        waits are therefore smeared backwards, halving with every visit.
        """
        visits = self.problem.visits
        need = dict.fromkeys(self._movable, 0.0)
        carried = 0.0
        for _ in range(2):
            for visit in range(len(visits) - 1, -1, -1):
                carried = carried / 2 + best.waits_ns[visit]
                if visits[visit] in need:
                    need[visits[visit]] = max(need[visits[visit]], carried)
        streamed = [layer for layer in self._movable if layer not in best.residents and self.problem.sizes[layer]]
        streamed.sort(key=lambda layer: (-need[layer], layer))
        spare = sorted(best.residents, key=lambda layer: (need[layer], layer))
        return streamed[:_TRIED_LAYERS], spare[:_TRIED_LAYERS]

    def _exhausted(self, best: Candidate) -> Candidate:
        """With few layers: every choice of residents, as far as the work lasts, least left to copy first."""
        if self._is_perfect(best) or len(self._movable) > _EXHAUSTIVE_LAYERS:
            return best
        counts = range(len(self._movable) + 1)
        choices = [frozenset(choice) for count in counts for choice in combinations(self._movable, count)]
        choices.sort(key=self.evaluator.link_ns)
        for residents in choices:
            if self._left(residents) <= 0 or self._is_slower(residents, best):
                continue
            for ring in self._rings(residents):
                for apart in (False, True):
                    candidate = self.evaluator.judge(residents, ring, far_apart=apart)
                    if candidate is not None and _key(candidate) < _key(best):
                        best = candidate
            if self._spent(1.0) or self._is_perfect(best):
                break
        return best

    def _laid_out(self, best: Candidate) -> Candidate:
        """Better places in the ring, for choices that only bad places keep from being better.

        A choice whose compute and copies alone would take less than the best pass loses time to its layout: some copy
        waits for a range that another place would have had free.
        """
        hopeful = [c for c in self.evaluator.judged() if self._ideal_ns(c) * EQUAL < min(c.pass_ns, best.pass_ns)]
        hopeful.sort(key=_key)
        different = {candidate.residents: candidate for candidate in reversed(hopeful)}  # each one's best ring
        for candidate in sorted(different.values(), key=_key)[:_LAYOUTS]:
            if self._is_perfect(best):
                break
            ring = self.problem.ring_bytes or self._most_ring(candidate.residents)
            work = int(_LAYOUT_WORK * self._work_visits)
            best = _least([best, improved_layout(self.evaluator, candidate, ring, work)])
        return best

    def _ideal_ns(self, candidate: Candidate) -> int:
        """What the choice would take with a perfect ring; not known to be less than it takes where visits repeat."""
        if self._repeats:
            return candidate.pass_ns
        return max(self.evaluator.compute_ns, self.evaluator.link_ns(candidate.residents))

    # ---- making sure, and giving back

    def _simple_rules(self, best: Candidate) -> Iterator[Candidate]:
        """What simpler engines would keep in the same memory: the plan must never be worse than these."""
        order = [layer for layer in self._movable if self.evaluator.visit_counts[layer]]
        room = self.problem.room_bytes - best.ring_bytes
        for rule in (first_layers, last_layers, spread_layers):
            candidate = self.evaluator.judge(rule(order, self.problem.reserved, room), best.ring_bytes)
            if candidate is not None:
                yield candidate

    def _trimmed(self, best: Candidate) -> Candidate:
        """The same pass time in less memory: residents that nobody misses, then ring beyond three layers."""
        # A choice that was let pass as equal to the floor has used up what may be called equal.
        equal_to = self._floor_ns() if self._is_perfect(best) else best.pass_ns
        limit = max(best.pass_ns, equal_to * EQUAL)
        for layer in sorted(best.residents, key=lambda layer: (-self.problem.sizes[layer], layer)):
            fewer = best.residents - {layer}
            if self._spent(1.3) or self.problem.sizes[layer] > best.ring_bytes:
                continue
            if self.evaluator.link_ns(fewer) > limit and not self._repeats:
                continue
            candidate = self.evaluator.judge(fewer, best.ring_bytes, best.far_apart)
            if candidate is not None and candidate.pass_ns <= limit:
                best = candidate
        return self._with_least_ring(best, limit)

    def _with_least_ring(self, best: Candidate, limit: float) -> Candidate:
        if self.problem.ring_bytes is not None or not self._largest_streamed(best.residents):
            return best
        usual = min(self._usual_ring(best.residents), self._left(best.residents))
        for ring in sorted(ring for ring in self._rings(best.residents) if ring >= usual):
            for far_apart in (best.far_apart, not best.far_apart):
                candidate = None if self._spent(_ALL_WORK) else self.evaluator.judge(best.residents, ring, far_apart)
                if candidate is not None and candidate.pass_ns <= limit:
                    return candidate
        return best

    def _is_slower(self, residents: frozenset[int], best: Candidate) -> bool:
        """Refuses most choices unsimulated: with each layer visited once, a pass takes at least its link time."""
        return not self._repeats and self.evaluator.link_ns(residents) >= best.pass_ns

    def _is_perfect(self, candidate: Candidate) -> bool:
        return candidate.pass_ns <= self._floor_ns() * EQUAL

    def _floor_ns(self) -> int:
        """No choice is faster: all compute, and the link time of what cannot fit, by the bytes that save most."""
        problem = self.problem
        room = problem.room_bytes - (problem.ring_bytes or min((problem.sizes[i] for i in self._movable), default=0))
        left = float(self.evaluator.link_ns(frozenset()))
        if not self._repeats:
            total = sum(problem.sizes[layer] for layer in self._movable if self.evaluator.visit_counts[layer])
            return max(self.evaluator.compute_ns, int(left * max(0, total - room) / total) if total else 0)
        return self.evaluator.compute_ns

    def _spent(self, share: float) -> bool:
        return self.evaluator.work > self._work_visits * share


def _key(candidate: Candidate) -> tuple[int, int]:
    return candidate.pass_ns, candidate.device_bytes


def _least(candidates: Iterable[Candidate]) -> Candidate:
    return min(candidates, key=_key)
