"""Predicted times of a plan: an exact event-driven model of the engine's two lanes (`timeline.py`), and a lower bound.

The host is assumed to be arbitrarily far ahead, and launches to take no time, so real runs can only be slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..errors import PlanError
from ..fields import MAX_NS, as_int, as_rate
from ..trace.events import Event
from .plan import Plan, Prediction
from .timeline import Order, PassTimes, order_passes, run_pass

_FEWEST_PASSES, _MOST_PASSES = 3, 64  # simulated until two in a row have the same timing


def copy_ns(size_bytes: int, h2d_bytes_per_s: float) -> int:
    """Link time of one copy in nanoseconds, rounded to an integer, so that times of the steady state are exact."""
    return round(size_bytes * 1e9 / h2d_bytes_per_s)


def simulate(
    plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, peer_bytes_per_s: float | None = None
) -> Prediction:
    """The prediction for a plan, whatever prediction it carries.

    `compute_ns` is the compute time of one visit, per layer, in nanoseconds. Layers in tier `peer` are copied at
    `peer_bytes_per_s` (None: at the rate of the others), on the same lane; their copies on the other device are there
    before the first pass. Raises PlanError if the times or places do not fit the plan.
    """
    _, order, passes = run_passes(plan, compute_ns, h2d_bytes_per_s, peer_bytes_per_s)
    durations = [after.end - before.end for before, after in pairwise(passes)]
    # Without a steady state, the mean of the later half.
    window = durations[-1:] if _same_timing(*passes[-2:]) else durations[len(durations) // 2 :]
    pass_ns = round(sum(window) / len(window))
    copied = [layer for layer, wait in zip(plan.visits, order) if wait is not None]
    compute = sum(compute_ns[layer] for layer in plan.visits)
    return Prediction(
        pass_ns=pass_ns,
        bound_ns=max(compute, _bound_ns(plan, copied, compute_ns, h2d_bytes_per_s, peer_bytes_per_s)),
        stall_ns=max(0, pass_ns - compute),
        bytes_per_pass=sum(plan.layers[layer].bytes for layer in copied),
        first_pass_ns=passes[0].end,
    )


def steady_events(
    plan: Plan,
    compute_ns: Sequence[int],
    h2d_bytes_per_s: float,
    source: str,
    peer_bytes_per_s: float | None = None,
) -> list[Event]:
    """The events of a steady pass as a recorder would write them; times are ns since the start of the pass.

    Copies that overlap the start or end of the pass are not cut. Raises what `simulate` raises.
    """
    _, _, passes = run_passes(plan, compute_ns, h2d_bytes_per_s, peer_bytes_per_s)
    links = _link_times(plan, h2d_bytes_per_s, peer_bytes_per_s)
    begin, end = passes[-3].end, passes[-2].end
    events: list[Event] = []
    for times in passes[-3:]:
        for layer, start in zip(plan.visits, times.copy_starts):
            size = plan.layers[layer].bytes
            if start is not None and start < end and (arrived := start + links[layer]) > begin:
                events.append(Event("copy", source, layer, start - begin, arrived - begin, size))
    free = begin
    for layer, start, done in zip(plan.visits, passes[-2].starts, passes[-2].ends):
        if start > free:
            events.append(Event("stall", source, layer, free - begin, start - begin, 0))
        events.append(Event("visit", source, layer, start - begin, done - begin, 0))
        free = done
    return events


def run_passes(
    plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, peer_bytes_per_s: float | None = None
) -> tuple[Order, Order, list[PassTimes]]:
    """(order of the first pass, order of later passes, the passes). Arguments and errors are those of `simulate`.

    The first pass starts with an empty device and copies the residents too. Simulates at least three passes, and more
    until one has the same timing as the one before. All later passes are then the same, so its figures are exact.
    """
    as_rate("h2d_bytes_per_s", h2d_bytes_per_s)
    if peer_bytes_per_s is not None:
        as_rate("peer_bytes_per_s", peer_bytes_per_s)
    if len(compute_ns) != len(plan.layers):
        raise PlanError.bad_field("number of compute_ns", len(compute_ns), f"one per layer, {len(plan.layers)}")
    for layer, value in zip(plan.layers, compute_ns):
        as_int(f"compute_ns of layer {layer.name}", value, 0, MAX_NS)
    offsets = [layer.offset if layer.placement == "streamed" else None for layer in plan.layers]
    for layer, offset in zip(plan.layers, offsets):
        if layer.placement == "resident" or not layer.bytes:
            continue
        if offset is None or offset < 0 or offset + layer.bytes > plan.ring_bytes:
            allowed = f"0 to {plan.ring_bytes - layer.bytes}, inside the ring"
            raise PlanError.bad_field(f"offset of layer {layer.name}", offset, allowed)
    first, steady = order_passes(plan.visits, [layer.bytes for layer in plan.layers], offsets)
    links = _link_times(plan, h2d_bytes_per_s, peer_bytes_per_s)
    passes = [run_pass(first, plan.visits, links, compute_ns, PassTimes())]
    while len(passes) < _MOST_PASSES:
        passes.append(run_pass(steady, plan.visits, links, compute_ns, passes[-1]))
        if len(passes) >= _FEWEST_PASSES and _same_timing(*passes[-2:]):
            break
    return first, steady, passes


def _link_times(plan: Plan, h2d_bytes_per_s: float, peer_bytes_per_s: float | None) -> list[int]:
    """Link time in ns of a copy of each layer, at the rate of its tier."""
    peer = h2d_bytes_per_s if peer_bytes_per_s is None else peer_bytes_per_s
    return [copy_ns(layer.bytes, peer if layer.host_tier == "peer" else h2d_bytes_per_s) for layer in plan.layers]


def _same_timing(before: PassTimes, after: PassTimes) -> bool:
    """Whether all times of `after` are those of `before` plus a constant. All later passes then have the same timing,
    as each depends on the one before only."""
    shift = after.end - before.end
    return all(late - early == shift for early, late in zip(before.ends, after.ends)) and all(
        late - early == shift
        for early, late in zip(before.copy_starts, after.copy_starts)
        if early is not None and late is not None
    )


def _bound_ns(
    plan: Plan,
    copied: Sequence[int],
    compute_ns: Sequence[int],
    h2d_bytes_per_s: float,
    peer_bytes_per_s: float | None = None,
) -> int:
    """Lower bound in ns of a pass that makes these copies, whatever the schedule.

    The larger of two: all copies, on one lane; and the time for which copies occupy the ring, each at least while it is
    copied and read (ring bytes x pass time >= sum of bytes x time occupied).
    """
    links = _link_times(plan, h2d_bytes_per_s, peer_bytes_per_s)
    occupied = sum(plan.layers[layer].bytes * (links[layer] + compute_ns[layer]) for layer in copied)
    return max(sum(links[layer] for layer in copied), occupied // plan.ring_bytes if plan.ring_bytes else 0)
