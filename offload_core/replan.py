"""When times have been measured: is there a plan better enough to move layers for?

Pure arithmetic on plans. Knows nothing about how times are measured or how a plan is put into effect.
"""

from __future__ import annotations

from dataclasses import replace

from .cost_model import compute_times
from .plan import Plan
from .planner import make_plan
from .request import PlanRequest
from .simulate import simulate

__all__ = ["better_plan"]

FASTER = 0.97
"""A new plan has to take at most this share of the old one's time a pass: times are noisy, moving is not free."""

SMALLER = 0.9
"""Or, at no loss of time, at most this share of its device bytes."""


def better_plan(current: Plan, request: PlanRequest) -> Plan | None:
    """The plan of `request`, whose inventory carries measured times, or None if `current` is as good.

    Both are judged by the simulator with the measured times and link rate. Raises what `make_plan` raises.
    """
    new = make_plan(request)
    times, _ = compute_times(request.inventory)
    before = simulate(current, times, request.h2d_bytes_per_s).pass_ns
    after = new.predicted.pass_ns
    if after <= before * FASTER:
        why = f"layers were measured: this plan takes {after / before:.0%} of the time a pass of the one before"
    elif after <= before and new.device_bytes <= current.device_bytes * SMALLER:
        spared = (current.device_bytes - new.device_bytes) / 1e9
        why = f"layers were measured: copies hide behind compute, so {spared:.2f} GB of device memory are given back"
    else:
        return None
    return replace(new, decisions=(*new.decisions, why))
