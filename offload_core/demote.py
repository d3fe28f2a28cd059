"""A plan for a smaller budget that evicts residents of the current plan and copies no new ones, if that costs less.

The best plan for the smaller budget may make layers resident that are streamed now, each of which is copied once to get
there; a layer of the same size that is resident already may do nearly as well. Pure arithmetic on plans. Knows nothing
about why memory is needed or how a plan takes effect.
"""

from __future__ import annotations

from dataclasses import replace

from .cost_model import compute_times
from .plan import Plan
from .planner import make_plan
from .request import PlanRequest
from .simulate import copy_ns, predict

__all__ = ["demoted"]


def demoted(current: Plan, request: PlanRequest) -> Plan:
    """The plan of `request`, whose budget is below what `current` takes, with the cheapest transition from `current`.

    Layers that the best plan makes resident are exchanged for residents of their size, unless the slower passes of one
    use cost more time than the copies saved. Raises what `make_plan` raises.
    """
    best = make_plan(request)
    exchanged = _exchanged(best, current)
    if exchanged is best:
        return best
    times, _ = compute_times(request.inventory, request.in_place)
    predicted = predict(exchanged, times, request.h2d_bytes_per_s)
    saved_ns = sum(
        copy_ns(best.layers[index].bytes, request.h2d_bytes_per_s)
        for index in set(best.residents) - set(exchanged.residents)
    )
    if request.passes * (predicted.pass_ns - best.predicted.pass_ns) > saved_ns:
        return best
    return replace(
        exchanged, predicted=predicted, decisions=(*best.decisions, "residents were given up, none was fetched")
    )


def _exchanged(best: Plan, current: Plan) -> Plan:
    """`best` with each newly resident layer exchanged for the nearest layer of its size that only `current` keeps
    resident; `best` itself if there is none."""
    before, after = set(current.residents), set(best.residents)
    evicted = sorted(before - after)
    layers = list(best.layers)
    for added in sorted(after - before):
        same_size = [index for index in evicted if layers[index].bytes == layers[added].bytes]
        if same_size:
            kept = min(same_size, key=lambda index: (abs(index - added), index))
            evicted.remove(kept)
            old, new = layers[kept], layers[added]
            layers[kept], layers[added] = replace(new, name=old.name), replace(old, name=new.name)
    return best if layers == list(best.layers) else replace(best, layers=tuple(layers))
