"""Better places in the ring for one choice of residents, found by moving one layer at a time.

Packing in visit order is good but blind to times. Where the compute still waits, some copy is held up by the last
reader of the range it was given; giving it, or a layer before it, another range often ends the wait. Knows nothing
about how the choice came about, and counts its work like the rest of the search.
"""

from __future__ import annotations

from collections.abc import Iterator

from .evaluate import Candidate, Evaluator
from .packing import align_up

__all__ = ["improved_layout"]

_WAITS = 6  # the longest waits are looked at
_VISITS_BACK = 10  # layers this many visits before a wait may have caused it
_RESIDENTS = 2  # the nearest residents of its size a layer may change places with


def improved_layout(evaluator: Evaluator, candidate: Candidate, ring_bytes: int, work: int) -> Candidate:
    """Hill climbing from `candidate`: the first move that helps, until none does or `work` visits were simulated.

    `ring_bytes` may be more than the candidate's ring, and must fit the room beside its residents. Moves keep the
    number and the sizes of the residents.
    """
    limit = evaluator.work + work
    moved = True
    while moved and evaluator.work < limit:
        moved = False
        for residents, offsets in _moves(evaluator, candidate, ring_bytes):
            tried = evaluator.place(residents, ring_bytes, offsets, candidate.far_apart)
            if tried.pass_ns < candidate.pass_ns:
                candidate, moved = tried, True
            if moved or evaluator.work >= limit:
                break
    return candidate


def _moves(
    evaluator: Evaluator, candidate: Candidate, ring_bytes: int
) -> Iterator[tuple[frozenset[int], dict[int, int]]]:
    """Residents and offsets after one move: a layer exchanged with a resident nearby, or elsewhere in the ring.

    Layers just before the longest waits come first; places are the edges of other layers and the ring's end.
    """
    problem, offsets = evaluator.problem, candidate.offsets
    visits, sizes, alignment = problem.visits, problem.sizes, problem.alignment
    ends = (align_up(offset + sizes[layer], alignment) for layer, offset in offsets.items())
    edges = sorted({0, *offsets.values(), *ends})
    late = [visit for visit, wait in enumerate(candidate.waits_ns) if wait]
    late.sort(key=lambda visit: -candidate.waits_ns[visit])
    before = ((visit - back) % len(visits) for visit in late[:_WAITS] for back in range(_VISITS_BACK))
    for layer in dict.fromkeys(visits[visit] for visit in before):
        if layer not in offsets:
            continue
        alike = (other for other in candidate.residents if sizes[other] == sizes[layer])
        for other in sorted(alike, key=lambda other: (abs(other - layer), other))[:_RESIDENTS]:
            exchanged = {place: offset for place, offset in offsets.items() if place != layer}
            yield (candidate.residents - {other}) | {layer}, {**exchanged, other: offsets[layer]}
        last = (ring_bytes - sizes[layer]) // alignment * alignment
        for edge in (*edges, last):
            if edge != offsets[layer] and 0 <= edge <= ring_bytes - sizes[layer]:
                yield candidate.residents, {**offsets, layer: edge}
