"""Better offsets in the ring for one choice of residents, found by moving one layer at a time.

Packing in visit order does not consider times. Where the compute still waits, a copy waits for the last reader of its
range; another range for it, or for a layer before it, often removes the wait.
"""

from __future__ import annotations

from collections.abc import Iterator

from .evaluate import Candidate, Evaluator
from .reserved import align_up

_WAITS = 6  # number of longest waits considered
_VISITS_BACK = 10  # number of visits up to a wait whose layers are considered its cause
_RESIDENTS = 2  # number of nearest residents of equal size that a layer may be exchanged with


def improved_layout(evaluator: Evaluator, candidate: Candidate, ring_bytes: int, work: int) -> Candidate:
    """Hill climbing from `candidate`: takes the first faster move until there is none or `work` visits were simulated.

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
    """(residents, offsets) after one move: a layer exchanged with a resident nearby, or at another offset.

    Layers just before the longest waits come first. The offsets tried are the edges of other layers and the last one
    that fits.
    """
    problem, offsets = evaluator.problem, candidate.offsets
    visits, sizes, alignment = problem.visits, problem.sizes, problem.alignment
    ends = (align_up(offset + sizes[layer], alignment) for layer, offset in offsets.items())
    edges = sorted({0, *offsets.values(), *ends})
    waiting = [visit for visit, wait in enumerate(candidate.waits_ns) if wait]
    waiting.sort(key=lambda visit: -candidate.waits_ns[visit])
    before = ((visit - back) % len(visits) for visit in waiting[:_WAITS] for back in range(_VISITS_BACK))
    for layer in dict.fromkeys(visits[visit] for visit in before):
        if layer not in offsets:
            continue
        same_size = (resident for resident in candidate.residents if sizes[resident] == sizes[layer])
        for resident in sorted(same_size, key=lambda resident: (abs(resident - layer), resident))[:_RESIDENTS]:
            others = {other: offset for other, offset in offsets.items() if other != layer}
            yield (candidate.residents - {resident}) | {layer}, {**others, resident: offsets[layer]}
        last = (ring_bytes - sizes[layer]) // alignment * alignment
        for edge in (*edges, last):
            if edge != offsets[layer] and 0 <= edge <= ring_bytes - sizes[layer]:
                yield candidate.residents, {**offsets, layer: edge}
