"""Fewer device bytes, at the least cost: a plan for less that keeps what is there, if it can, and fetches nothing.

The best plan for a smaller budget may keep layers that are streamed now. Each of those is copied once to get there; a
layer of the same size that is resident already would do nearly as well. Pure arithmetic on plans. Knows nothing about
why memory is wanted or how a plan is put into effect.
"""

from __future__ import annotations

from dataclasses import replace

from .cost_model import compute_times
from .plan import Plan
from .planner import make_plan
from .request import PlanRequest
from .simulate import copy_ns, simulate

__all__ = ["demoted"]


def demoted(current: Plan, request: PlanRequest) -> Plan:
    """The plan of `request`, whose budget is below what `current` takes, by the cheapest way from there.

    Newly resident layers change places with residents of their size, as far as that costs less over the passes of one
    use than copying them once. Raises what `make_plan` raises.
    """
    best = make_plan(request)
    staying = _exchanged(best, current)
    if staying is best:
        return best
    times, _ = compute_times(request.inventory, request.in_place)
    result = simulate(staying, times, request.h2d_bytes_per_s)
    had = set(current.residents)
    fetched = sum(copy_ns(best.layers[index].bytes, request.h2d_bytes_per_s) for index in set(best.residents) - had)
    fetched -= sum(copy_ns(best.layers[index].bytes, request.h2d_bytes_per_s) for index in set(staying.residents) - had)
    if request.passes * (result.pass_ns - best.predicted.pass_ns) > fetched:
        return best
    predicted = replace(
        best.predicted,
        pass_ns=result.pass_ns,
        bound_ns=result.bound_ns,
        stall_ns=max(0, result.pass_ns - sum(times[layer] for layer in staying.visits)),
        bytes_per_pass=result.bytes_per_pass,
        first_pass_ns=result.first_pass_ns,
    )
    return replace(
        staying, predicted=predicted, decisions=(*best.decisions, "residents were given up, none was fetched")
    )


def _exchanged(best: Plan, current: Plan) -> Plan:
    """`best` with each newly resident layer in the place of one of its size that only `current` keeps."""
    had, wanted = set(current.residents), set(best.residents)
    leaving = sorted(had - wanted)
    layers = list(best.layers)
    for fresh in sorted(wanted - had):
        alike = [index for index in leaving if layers[index].bytes == layers[fresh].bytes]
        if alike:
            stays = min(alike, key=lambda index: (abs(index - fresh), index))
            leaving.remove(stays)
            one, other = layers[fresh], layers[stays]
            layers[fresh] = replace(one, placement=other.placement, offset=other.offset, host_tier=other.host_tier)
            layers[stays] = replace(other, placement=one.placement, offset=one.offset, host_tier=one.host_tier)
    return best if layers == list(best.layers) else replace(best, layers=tuple(layers))
