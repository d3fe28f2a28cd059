"""The search for the best split of device memory between residents and ring.

Starts from the credit rule at several ring sizes, improves the best choice where the compute still waits, and stops at
the bound or after a fixed amount of work, counted in visits simulated, so that the result does not depend on the
machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from .credit import credit_residents
from .evaluate import Candidate, Evaluator, Problem
from .ring_places import improved_layout
from .ring_size import usual_ring
from .rules import RULES

EQUAL = 1.001  # pass times within this ratio count as equal: below the accuracy of clocks and of the model
WORK_VISITS = 6_000  # visits simulated per plan; shares of it limit the steps of the search; 5 to 10 microseconds each
_RING_STEPS = (2.0, 3.0, 1.0, 1.5, 2.5, 4.0, 6.0)  # rings tried, in largest streamed layers
_MAX_RING_LAYERS = 12  # largest ring, in largest streamed layers: more memory is better used for residents
_SIZE_CLASSES = 3  # of how many of the largest layer sizes all layers may stay, so that a smaller ring is enough
_EXHAUSTIVE_LAYERS = 12  # 4096 choices, most of them refused without simulation
_LAYOUTS = 3  # number of choices whose layout is improved
_LAYOUT_WORK = 0.4  # share of the work for each of them
_ALL_WORK = 2.5  # share of the work after which the smallest ring is not searched for
_TRIED_LAYERS = 16  # number of layers with the longest stalls, and of residents with the shortest, per improvement


class Search:
    """One search over one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.evaluator = Evaluator(problem)
        self._movable = self.evaluator.movable
        # With few layers each one matters more, and a choice takes less time to simulate.
        self._work_visits = WORK_VISITS * (2 if len(self._movable) <= _EXHAUSTIVE_LAYERS else 1)
        self._repeats = len(problem.visits) != len(self.evaluator.visit_counts)
        self._floor_ns = self._least_ns()

    def steady(self) -> Candidate | None:
        """The choice with the fastest steady pass; of equal ones that with the least memory. None: nothing fits."""
        best = self._best_start()
        if best is None:
            return None
        best = self._laid_out(self._exhausted(self._improved(best)))
        # The choices of other rules in the same memory: the plan must not be slower than these.
        room = self.problem.room_bytes - best.ring_bytes
        rivals = [self.evaluator.judge(rule(self.problem, room), best.ring_bytes) for rule in RULES]
        return self._trimmed(_least(best, *rivals))

    def streamed_only(self, first_pass: bool) -> Candidate | None:
        """No residents beyond `keep`: of the fastest rings, by first or steady pass, the smallest of at least the usual
        size, else the largest. None: no ring fits."""
        rings = self._rings(frozenset())
        judged = [self.evaluator.judge(frozenset(), ring, first_pass=first_pass) for ring in rings]
        candidates = sorted((choice for choice in judged if choice is not None), key=lambda choice: choice.ring_bytes)
        if not candidates:
            return None
        limit = min(candidate.pass_ns for candidate in candidates) * EQUAL
        fastest = [candidate for candidate in candidates if candidate.pass_ns <= limit]
        usual = min(self._usual_ring(frozenset()), candidates[-1].ring_bytes)
        return next((candidate for candidate in fastest if candidate.ring_bytes >= usual), fastest[-1])

    def filled(self, chosen: Candidate) -> Candidate:
        """`chosen` with more residents in its free room, those with most bytes copied per pass first; never slower.

        A new resident no longer needs its range of the ring, which may then shrink: repeated until nothing is added.
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
            best = candidate if best is None else _least(best, candidate)
            if best is not None and (self._is_perfect(best) or self._spent(0.4)):
                break
        if best is None or self._is_perfect(best):
            return best
        return _least(best, self.evaluator.judge(best.residents, best.ring_bytes, far_apart=True))

    def _starts(self) -> Iterator[tuple[frozenset[int], int]]:
        """(residents, ring bytes) by the credit rule for each ring size: with no layer resident beforehand, then with
        all layers of the largest size, of the two largest sizes, and so on."""
        problem, sizes = self.problem, self.problem.sizes
        forced: set[int] = set()
        classes = sorted({sizes[layer] for layer in self._movable}, reverse=True)[:_SIZE_CLASSES]
        for size in (None, *classes):
            forced |= {layer for layer in self._movable if sizes[layer] == size}
            base = frozenset(forced)
            room = self._left(base)
            if room < 0:
                return
            for ring in self._rings(base):
                left = room - problem.reserved_ring(ring)
                if left < 0:
                    continue
                chosen = credit_residents(problem, base, ring, left)
                self.evaluator.count_passes(1)
                yield from self._with_rings(base | chosen, ring)

    def _rings(self, residents: frozenset[int]) -> list[int]:
        """Ring sizes to try with these residents, the most promising first."""
        if self.problem.ring_bytes is not None:
            return [self.problem.ring_bytes]
        largest, most = self._largest_streamed(residents), self._most_ring(residents)
        steps = [self.problem.ring_size(int(largest * step)) for step in _RING_STEPS]
        rings = dict.fromkeys((*self._neighbour_sums(residents), *steps, self._usual_ring(residents), most))
        return [ring for ring in rings if largest <= ring <= most]

    def _neighbour_sums(self, residents: frozenset[int]) -> Iterator[int]:
        """The smallest ring with room for any two streamed layers visited in succession, and that for any three."""
        problem = self.problem
        order = [layer for layer in problem.visits if layer not in residents and layer not in problem.keep]
        sizes = [problem.ring_size(problem.sizes[layer]) for layer in order]
        for count in (2, 3):
            if len(sizes) > count:
                shifted = (sizes[shift:] + sizes[:shift] for shift in range(count))
                yield problem.ring_size(max(map(sum, zip(*shifted))))

    def _left(self, residents: frozenset[int]) -> int:
        """Bytes of the room beside these residents."""
        return self.problem.room_bytes - self.evaluator.resident_bytes(residents)

    def _streamed_sizes(self, residents: frozenset[int]) -> list[int]:
        return [self.problem.sizes[layer] for layer in self._movable if layer not in residents]

    def _largest_streamed(self, residents: frozenset[int]) -> int:
        return max(self._streamed_sizes(residents), default=0)

    def _usual_ring(self, residents: frozenset[int]) -> int:
        return self.problem.ring_size(usual_ring(self._streamed_sizes(residents)))

    def _most_ring(self, residents: frozenset[int]) -> int:
        """The largest useful ring beside these residents: whole segments, at most `_MAX_RING_LAYERS` layers."""
        left = self._left(residents)
        if left > self.problem.segment_bytes:
            left = left // self.problem.segment_bytes * self.problem.segment_bytes
        return min(left, self.problem.ring_size(_MAX_RING_LAYERS * self._largest_streamed(residents)))

    # ---- improving it

    def _improved(self, best: Candidate) -> Candidate:
        """Hill climbing: takes the first faster neighbour until there is none, the bound is reached or the share of the
        work is done."""
        while not self._is_perfect(best):
            better = None
            choices = (
                choice for other in self._neighbours(best) for choice in self._with_rings(other, best.ring_bytes)
            )
            for residents, ring in choices:
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

    def _neighbours(self, best: Candidate) -> Iterator[frozenset[int]]:
        """Residents one step away, the most promising first: a layer that stalls becomes resident, in exchange for the
        residents with the shortest stalls if there is no room."""
        chosen, ring = best.residents, best.ring_bytes
        stalling, spare = self._by_stall(best)
        for layer in stalling:
            yield chosen | {layer}
        for layer in stalling:
            for resident in spare:
                swapped = (chosen - {resident}) | {layer}
                yield swapped
                yield self._with_more(swapped, stalling, ring)
        for resident in spare:
            yield self._with_more(chosen - {resident}, stalling, ring)
            yield chosen - {resident}
        yield from self._exchanges(best)

    def _exchanges(self, best: Candidate) -> Iterator[frozenset[int]]:
        """Residents after an exchange of up to three for up to three streamed layers nearby that need more bytes.

        With layers of several sizes the residents rarely fill the room; an exchange of neighbours fills more of it and
        hardly changes where the pass copies.
        """
        sizes, order = self.problem.sizes, {layer: position for position, layer in enumerate(self._movable)}
        streamed = [layer for layer in self._movable if layer not in best.residents and sizes[layer]]
        classes = sorted({sizes[layer] for layer in streamed}, reverse=True)[:_SIZE_CLASSES]
        room = self.problem.room_bytes - min(best.ring_bytes, *self._rings(best.residents))
        for anchor in sorted(best.residents, key=lambda layer: order[layer]):
            nearest = sorted((*best.residents, *streamed), key=lambda layer: abs(order[layer] - order[anchor]))
            kept = [layer for layer in nearest if layer in best.residents]
            for size in classes:
                alike = [layer for layer in nearest if layer not in best.residents and sizes[layer] == size]
                for outgoing, incoming in ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 3), (3, 2)):
                    residents = best.residents.difference(kept[:outgoing]).union(alike[:incoming])
                    if best.resident_bytes < self.evaluator.resident_bytes(residents) <= room:
                        yield residents

    def _with_rings(self, residents: frozenset[int], ring: int) -> Iterator[tuple[frozenset[int], int]]:
        """These residents with this ring, and with the largest one if there is a choice."""
        yield residents, ring
        if self.problem.ring_bytes is None:
            yield residents, self._most_ring(residents)

    def _with_more(self, residents: frozenset[int], layers: Iterable[int], ring: int) -> frozenset[int]:
        """`residents` and, in their order, those of `layers` that still fit beside the ring."""
        room = self._left(residents) - self.problem.reserved_ring(ring)
        added = set(residents)
        for layer in layers:
            if layer not in added and self.problem.reserved[layer] <= room:
                room -= self.problem.reserved[layer]
                added.add(layer)
        return frozenset(added)

    def _by_stall(self, best: Candidate) -> tuple[list[int], list[int]]:
        """(streamed layers, longest stalls first; residents, shortest stalls first), `_TRIED_LAYERS` of each.

        A copy avoided shortly before a wait shortens the wait. The stall of a layer is therefore its wait plus the
        waits after it, halved with every visit in between.
        """
        visits = self.problem.visits
        stall = dict.fromkeys(self._movable, 0.0)
        carried = 0.0
        for _ in range(2):
            for visit in range(len(visits) - 1, -1, -1):
                carried = carried / 2 + best.waits_ns[visit]
                if visits[visit] in stall:
                    stall[visits[visit]] = max(stall[visits[visit]], carried)
        streamed = [layer for layer in self._movable if layer not in best.residents and self.problem.sizes[layer]]
        streamed.sort(key=lambda layer: (-stall[layer], layer))
        spare = sorted(best.residents, key=lambda layer: (stall[layer], layer))
        return streamed[:_TRIED_LAYERS], spare[:_TRIED_LAYERS]

    def _exhausted(self, best: Candidate) -> Candidate:
        """With few layers: the best of all choices of residents, as far as the work lasts, those with least to copy
        first. With many layers: `best`."""
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
                    best = _least(best, self.evaluator.judge(residents, ring, far_apart=apart))
            if self._spent(1.0) or self._is_perfect(best):
                break
        return best

    def _laid_out(self, best: Candidate) -> Candidate:
        """The best of `best` and the choices with improved offsets whose time is lost to their layout only.

        These are choices whose compute and copies alone would take less time than `best` and than they take now: some
        of their copies wait for a range of the ring that is still in use.
        """
        choices = [
            choice
            for choice in self.evaluator.judged()
            if self._ideal_ns(choice) * EQUAL < min(choice.pass_ns, best.pass_ns)
        ]
        choices.sort(key=_key)
        with_best_ring = {choice.residents: choice for choice in reversed(choices)}
        for candidate in sorted(with_best_ring.values(), key=_key)[:_LAYOUTS]:
            if self._is_perfect(best):
                break
            ring = self.problem.ring_bytes or self._most_ring(candidate.residents)
            work = int(_LAYOUT_WORK * self._work_visits)
            best = _least(best, improved_layout(self.evaluator, candidate, ring, work))
        return best

    def _ideal_ns(self, candidate: Candidate) -> int:
        """Ns of a pass without any wait for the ring. Where visits repeat, hits make that unknown: its own time."""
        if self._repeats:
            return candidate.pass_ns
        return max(self.evaluator.compute_ns, self.evaluator.link_ns(candidate.residents))

    # ---- using less memory

    def _trimmed(self, best: Candidate) -> Candidate:
        """Equal pass time with less memory: without residents that save no time, then with a smaller ring."""
        # If `best` was accepted as equal to the lower bound, that tolerance must not be granted a second time.
        equal_to = self._floor_ns if self._is_perfect(best) else best.pass_ns
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
        """Whether a choice is known to be no faster without simulation: if each layer is visited once, a pass takes at
        least its link time."""
        return not self._repeats and self.evaluator.link_ns(residents) >= best.pass_ns

    def _is_perfect(self, candidate: Candidate) -> bool:
        return candidate.pass_ns <= self._floor_ns * EQUAL

    def _least_ns(self) -> int:
        """Lower bound in ns of all choices: the compute, and the link time of the bytes that do not fit the room, if
        those that fit are the slowest to copy."""
        sizes, link_ns = self.problem.sizes, self.problem.link_ns
        ring = self.problem.ring_bytes or min((sizes[layer] for layer in self._movable), default=0)
        room = max(0, self.problem.room_bytes - ring)
        copied = [layer for layer in self._movable if self.evaluator.visit_counts[layer] and sizes[layer]]
        if self._repeats or not copied:
            return self.evaluator.compute_ns
        left = 0.0
        for layer in sorted(copied, key=lambda layer: link_ns[layer] / sizes[layer], reverse=True):
            kept = min(room, sizes[layer])
            room -= kept
            left += link_ns[layer] * (sizes[layer] - kept) / sizes[layer]
        return max(self.evaluator.compute_ns, int(left))

    def _spent(self, share: float) -> bool:
        return self.evaluator.work > self._work_visits * share


def _key(candidate: Candidate) -> tuple[int, int]:
    return candidate.pass_ns, candidate.device_bytes


def _least(best: Candidate, *others: Candidate | None) -> Candidate:
    """The best of these; of equal ones the one that comes first."""
    return min((best, *(other for other in others if other is not None)), key=_key)
