"""When more is known than before: is there a plan better enough to move layers for?

Times have been measured, or a component that was planned for one pass makes a second one. Pure arithmetic on plans.
Knows nothing about how times are measured or how a plan is put into effect.
"""

from __future__ import annotations

from dataclasses import replace

from .cost_model import compute_times
from .plan import Plan
from .planner import make_plan
from .request import PlanRequest
from .simulate import simulate

__all__ = ["better_plan", "several_passes"]

FASTER = 0.97
"""A new plan has to take at most this share of the old one's time a pass: times are noisy, moving is not free."""

SMALLER = 0.9
"""Or, at no loss of time, at most this share of its device bytes."""

FEWER = 0.95
"""Or, where memory that is to spare is to be used, at no loss of time, at most this share of the bytes copied."""

SEVERAL = 2
"""Passes of a component that turned out to make more than one: how many are to come nobody knows."""


def several_passes(request: PlanRequest) -> PlanRequest:
    """The request for a component that makes a second pass in one use: what stays now is not copied a third time."""
    return replace(request, passes=max(SEVERAL, request.passes))


def better_plan(current: Plan, request: PlanRequest) -> Plan | None:
    """The plan of `request`, whose inventory carries what is known now, or None if `current` is as good.

    Both are judged by the simulator, in the order of visits and with the times and link rate of the request. A plan
    that is over the request's budget is never as good. Raises what `make_plan` raises.
    """
    new = make_plan(request)
    inventory = request.inventory
    times, _ = compute_times(inventory, request.in_place)
    old = simulate(replace(current, visits=inventory.visits), times, request.h2d_bytes_per_s)
    before, after = old.pass_ns, new.predicted.pass_ns
    measured = any(layer.compute_ns is not None for layer in inventory.layers)
    known = "now that layers were measured" if measured else "for several passes in one use"
    fewer = new.predicted.bytes_per_pass / old.bytes_per_pass if old.bytes_per_pass else 1
    spared = current.device_bytes - new.device_bytes
    if request.budget_bytes is not None and current.device_bytes > request.budget_bytes:
        why = f"{known}: the plan before was {current.device_bytes - request.budget_bytes} bytes over the budget"
    elif after < before and after <= before * FASTER:
        why = f"{known}: a pass takes {after / before:.0%} of the time it took with the plan before"
    elif after <= before and spared > 0 and new.device_bytes <= current.device_bytes * SMALLER:
        why = f"{known}: copies hide behind compute, {spared / 1e9:.2f} GB of device memory are given back"
    elif request.hold_spare and after <= before and fewer <= FEWER:
        why = f"{known}: a pass copies {fewer:.0%} of what it copied"
    else:
        return None
    return replace(new, decisions=(*new.decisions, why))
