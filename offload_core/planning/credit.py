"""Which layers stay resident: the credit rule, from which the search starts (others: `rules.py`).

The link is modelled as a token bucket. While a layer computes, the link can copy `rate x compute` bytes, which are
added to the bucket as credit; each streamed layer takes its bytes from it. A layer for which the credit is too low
would stall the compute, so it stays resident. A rate above the link's makes fewer layers resident; the rate is
bisected for the choice whose residents just fit. They are then spread over the pass. Keeping the first k layers, as
most engines do, leaves the link idle while these compute and the compute stalled afterwards.
"""

from __future__ import annotations

from .evaluate import Problem

_BISECTIONS = 16


def credit_residents(problem: Problem, chosen: frozenset[int], ring_bytes: int, room_bytes: int) -> frozenset[int]:
    """The layers that the credit rule keeps resident besides those of `problem.keep` and `chosen`, within `room_bytes`.

    Credit is counted in link nanoseconds, so the link's own rate is 1. If the residents of that rate fit, they are
    returned: streaming then costs no time. Otherwise bisection finds the lowest rate whose residents fit; the result is
    empty if there is none. The bucket's capacity is one ring: more than that cannot be prefetched.
    """
    link_ns, kept = problem.link_ns, problem.keep | chosen
    candidates = [layer for layer in problem.visited() if layer not in kept]
    candidate_bytes = sum(problem.sizes[layer] for layer in candidates)
    ns_per_byte = sum(link_ns[layer] for layer in candidates) / max(1, candidate_bytes)
    bucket = ring_bytes * ns_per_byte

    def residents_at(rate: float) -> frozenset[int]:
        credit = 0.0
        for _ in range(2):  # the first pass only fills the bucket, as the pass before would have
            resident: set[int] = set()
            streamed: set[int] = set()
            for layer in problem.visits:
                need = link_ns[layer]
                if need and layer not in kept and layer not in resident:
                    if credit >= need or layer in streamed:
                        credit = max(0.0, credit - need)
                        streamed.add(layer)
                    else:
                        resident.add(layer)
                credit = min(bucket, credit + rate * problem.compute_ns[layer])
        return frozenset(resident)

    def fits(residents: frozenset[int]) -> bool:
        return sum(problem.reserved[layer] for layer in residents) <= room_bytes

    best = residents_at(1.0)
    if fits(best):
        return best
    low, high = 1.0, 2.0
    while not fits(best := residents_at(high)):
        if high > 1e12:
            return frozenset()  # some layers stay resident at any rate, and do not fit
        low, high = high, high * 4.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        residents = residents_at(middle)
        if fits(residents):
            high, best = middle, residents
        else:
            low = middle
    return best
