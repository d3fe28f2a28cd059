"""Another plan in place of one that is in effect: a better one, or one for a smaller budget.

A better plan may exist once times have been measured, or when a component that was planned for one pass makes a second
one; it must be better by enough to move layers for it. The best plan for a smaller budget may make layers resident that
are streamed now, each of which is copied once to get there; a layer of the same size that is resident already may do
nearly as well. Pure arithmetic on plans.
"""

from __future__ import annotations

from dataclasses import replace

from .cost_model import compute_times
from .plan import Plan
from .planner import make_plan
from .request import PlanRequest
from .simulate import copy_ns, simulate

FASTER = 0.97
"""A new plan must take at most this share of the pass time of the current one: measured times are noisy, and moving
layers takes time."""

SMALLER = 0.9
"""Or, with an equal pass time, at most this share of its device bytes."""

FEWER = 0.95
"""Or, with an equal pass time and `hold_spare`, at most this share of the bytes that a pass copies."""

SEVERAL = 2
"""Passes planned for a component that makes a second pass in one use; how many follow is not known."""


def several_passes(request: PlanRequest) -> PlanRequest:
    """The request with `SEVERAL` passes at least, for a component that makes a second pass in one use."""
    return replace(request, passes=max(SEVERAL, request.passes))


def better_plan(current: Plan, request: PlanRequest) -> Plan | None:
    """The plan of `request`, whose inventory has the latest times and visits, or None if `current` is as good.

    Both are simulated with the visits, times and rates of the request. A plan that exceeds the request's budget is
    never as good. Raises what `make_plan` raises.
    """
    new = make_plan(request)
    inventory = request.inventory
    times, _ = compute_times(inventory, request.in_place)
    rates = (request.h2d_bytes_per_s, request.peer_bytes_per_s)
    old = simulate(replace(current, visits=inventory.visits), times, *rates)
    before, after = old.pass_ns, new.predicted.pass_ns
    measured = any(layer.compute_ns is not None for layer in inventory.layers)
    occasion = "now that layers were measured" if measured else "for several passes in one use"
    copied_share = new.predicted.bytes_per_pass / old.bytes_per_pass if old.bytes_per_pass else 1
    saved_bytes = current.device_bytes - new.device_bytes
    if request.budget_bytes is not None and current.device_bytes > request.budget_bytes:
        why = f"{occasion}: the plan before was {current.device_bytes - request.budget_bytes} bytes over the budget"
    elif after < before and after <= before * FASTER:
        why = f"{occasion}: a pass takes {after / before:.0%} of the time it took with the plan before"
    elif after <= before and saved_bytes > 0 and new.device_bytes <= current.device_bytes * SMALLER:
        why = f"{occasion}: copies hide behind compute, {saved_bytes / 1e9:.2f} GB of device memory are given back"
    elif request.hold_spare and after <= before and copied_share <= FEWER:
        why = f"{occasion}: a pass copies {copied_share:.0%} of what it copied"
    else:
        return None
    return replace(new, decisions=(*new.decisions, why))


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
    predicted = simulate(exchanged, times, request.h2d_bytes_per_s, request.peer_bytes_per_s)
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
