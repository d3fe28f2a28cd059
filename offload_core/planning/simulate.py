"""Predicted times of a plan: an exact event-driven model of the engine's two lanes, and a lower bound.

One copy lane and one compute lane, each in order. A visit starts when the visit before it has ended and its layer's
bytes have arrived; a copy starts when the lane is free and the last reader of its ring range is done. The host is
assumed to be arbitrarily far ahead, and launches to take no time, so real runs can only be slower. Knows nothing about
how the plan was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..fields import MAX_NS, as_int, as_rate
from ..trace.events import Event
from .plan import Plan, Prediction
from .timeline import NO_WAIT, PassOrder, order_passes

__all__ = ["SimulationResult", "bound_ns", "copy_ns", "predict", "simulate", "steady_events"]

_EXTRA_PASSES = 61  # most passes simulated beyond the requested ones until two in a row have the same timing


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Times in nanoseconds, sizes in bytes.

    pass_ns           one pass in the steady state; mean of the later half of the passes if none was reached
    bound_ns          lower bound of `pass_ns` with these residents and this ring, whatever the schedule
    first_pass_ns     the first pass, which starts with an empty device and copies the residents too
    bytes_per_pass    copied by a steady pass
    first_pass_bytes  copied by the first pass
    stall_ns          per layer: how long the compute lane waits before its visits in a steady pass
    peak_ring_bytes   most ring bytes that are in use, between the start of their copy and their last read, at a time
    passes_simulated  number of passes simulated
    """

    pass_ns: int
    bound_ns: int
    first_pass_ns: int
    bytes_per_pass: int
    first_pass_bytes: int
    stall_ns: tuple[int, ...]
    peak_ring_bytes: int
    passes_simulated: int


@dataclass(frozen=True, slots=True)
class _PassTrace:
    """One simulated pass, in ns: per visit the start of its copy (None: no copy), and start and end of its compute;
    then the end of the last copy so far."""

    copy_starts: tuple[int | None, ...] = ()
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    copies_end: int = 0


def copy_ns(size_bytes: int, h2d_bytes_per_s: float) -> int:
    """Link time of one copy in nanoseconds, rounded to an integer, so that times of the steady state are exact."""
    return round(size_bytes * 1e9 / h2d_bytes_per_s)


def predict(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float) -> Prediction:
    """The prediction for a plan, whatever prediction it carries. Arguments and errors are those of `simulate`."""
    result = simulate(plan, compute_ns, h2d_bytes_per_s)
    return Prediction(
        pass_ns=result.pass_ns,
        bound_ns=result.bound_ns,
        stall_ns=max(0, result.pass_ns - sum(compute_ns[layer] for layer in plan.visits)),
        bytes_per_pass=result.bytes_per_pass,
        first_pass_ns=result.first_pass_ns,
    )


def simulate(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, passes: int = 3) -> SimulationResult:
    """Simulates a plan. `compute_ns` is the compute time of one visit, per layer, in nanoseconds.

    Simulates at least `passes` passes, and more until a pass has the same timing as the one before. All later passes
    are then the same, so the steady figures are exact. Raises PlanError if the times or places do not fit the plan.
    """
    as_int("passes", passes, 1, 10_000)
    rate = as_rate("h2d_bytes_per_s", h2d_bytes_per_s)
    sizes = [layer.bytes for layer in plan.layers]
    first, steady, traces = _run(plan, compute_ns, rate, passes)
    durations = [trace.ends[-1] - before.ends[-1] for before, trace in zip(traces, traces[1:])] if plan.visits else [0]
    is_steady = not plan.visits or _same_timing(traces[-2], traces[-1])
    window = durations[-1:] if is_steady else durations[len(durations) // 2 :]
    return SimulationResult(
        pass_ns=round(sum(window) / len(window)),
        bound_ns=bound_ns(plan, compute_ns, rate),
        first_pass_ns=traces[0].ends[-1] if plan.visits else 0,
        bytes_per_pass=_copied_bytes(steady, plan.visits, sizes),
        first_pass_bytes=_copied_bytes(first, plan.visits, sizes),
        stall_ns=_stalls(traces, plan.visits, len(sizes)),
        peak_ring_bytes=_peak_ring_bytes(traces, plan),
        passes_simulated=len(traces),
    )


def steady_events(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, source: str) -> list[Event]:
    """The events of a steady pass as a recorder would write them; times are ns since the start of the pass.

    Copies that overlap the start or end of the pass are not cut. Raises what `simulate` raises.
    """
    rate = as_rate("h2d_bytes_per_s", h2d_bytes_per_s)
    _, _, traces = _run(plan, compute_ns, rate, 3)
    if not plan.visits:
        return []
    begin, end = traces[-3].ends[-1], traces[-2].ends[-1]
    events: list[Event] = []
    for trace in traces[-3:]:
        for layer, start in zip(plan.visits, trace.copy_starts):
            size = plan.layers[layer].bytes
            if start is not None and start < end and (arrived := start + copy_ns(size, rate)) > begin:
                events.append(Event("copy", source, layer, start - begin, arrived - begin, size))
    free = begin
    for layer, start, done in zip(plan.visits, traces[-2].starts, traces[-2].ends):
        if start > free:
            events.append(Event("stall", source, layer, free - begin, start - begin, 0))
        events.append(Event("visit", source, layer, start - begin, done - begin, 0))
        free = done
    return events


def _run(
    plan: Plan, compute_ns: Sequence[int], rate: float, passes: int
) -> tuple[PassOrder, PassOrder, list[_PassTrace]]:
    """(order of the first pass, order of later passes, the passes simulated); see `simulate`."""
    if len(compute_ns) != len(plan.layers):
        raise PlanError.bad_field("number of compute_ns", len(compute_ns), f"one per layer, {len(plan.layers)}")
    for layer, value in zip(plan.layers, compute_ns):
        as_int(f"compute_ns of layer {layer.name}", value, 0, MAX_NS)
    _require_ring(plan)
    first, steady = _orders(plan)
    links = [copy_ns(layer.bytes, rate) for layer in plan.layers]
    traces = [_run_pass(first, plan.visits, links, compute_ns, _PassTrace())]
    while len(traces) < max(passes, 2) + _EXTRA_PASSES:
        traces.append(_run_pass(steady, plan.visits, links, compute_ns, traces[-1]))
        if len(traces) >= max(passes, 3) and _same_timing(traces[-2], traces[-1]):
            break
    return first, steady, traces


def bound_ns(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float) -> int:
    """Lower bound in ns of a steady pass with this plan's residents and ring, whatever the schedule.

    The largest of three: all compute, on one lane; all copies, on one lane; and the time for which copies occupy the
    ring, each at least while it is copied and read (ring bytes x pass time >= sum of bytes x time occupied).
    """
    _, steady = _orders(plan)
    copied = [layer for layer, copies in zip(plan.visits, steady.copies) if copies]
    sizes = [layer.bytes for layer in plan.layers]
    links = [copy_ns(size, h2d_bytes_per_s) for size in sizes]
    compute = sum(compute_ns[layer] for layer in plan.visits)
    link = sum(links[layer] for layer in copied)
    occupied = sum(sizes[layer] * (links[layer] + compute_ns[layer]) for layer in copied)
    return max(compute, link, occupied // plan.ring_bytes if plan.ring_bytes else 0)


def _offsets(plan: Plan) -> list[int | None]:
    return [layer.offset if layer.placement == "streamed" else None for layer in plan.layers]


def _orders(plan: Plan) -> tuple[PassOrder, PassOrder]:
    return order_passes(plan.visits, [layer.bytes for layer in plan.layers], _offsets(plan), plan.ring_bytes)


def _require_ring(plan: Plan) -> None:
    for layer, offset in zip(plan.layers, _offsets(plan)):
        if layer.placement == "resident" or not layer.bytes:
            continue
        if offset is None or offset < 0 or offset + layer.bytes > plan.ring_bytes:
            allowed = f"0 to {plan.ring_bytes - layer.bytes}, inside the ring"
            raise PlanError.bad_field(f"offset of layer {layer.name}", offset, allowed)


def _run_pass(
    order: PassOrder, visits: Sequence[int], links: Sequence[int], compute_ns: Sequence[int], before: _PassTrace
) -> _PassTrace:
    copy_free, compute_free = before.copies_end, before.ends[-1] if before.ends else 0
    copy_starts: list[int | None] = []
    starts: list[int] = []
    ends: list[int] = []
    for visit, layer in enumerate(visits):
        start = compute_free
        if order.copies[visit]:
            wait = order.waits_for[visit]
            if wait != NO_WAIT:
                # A copy waits only for earlier visits, so their ends are in `ends` or those of the pass before.
                copy_free = max(copy_free, ends[wait] if wait >= 0 else before.ends[wait])
            copy_starts.append(copy_free)
            copy_free += links[layer]
            start = max(start, copy_free)
        else:
            copy_starts.append(None)  # a hit: its last copy ended before an earlier visit of the same layer began
        compute_free = start + compute_ns[layer]
        starts.append(start)
        ends.append(compute_free)
    return _PassTrace(tuple(copy_starts), tuple(starts), tuple(ends), copy_free)


def _same_timing(before: _PassTrace, after: _PassTrace) -> bool:
    """Whether all times of `after` are those of `before` plus a constant. All later passes then have the same timing,
    as each depends on the one before only."""
    if not before.ends:
        return True
    shift = after.ends[-1] - before.ends[-1]
    return all(late - early == shift for early, late in zip(before.ends, after.ends)) and all(
        late - early == shift
        for early, late in zip(before.copy_starts, after.copy_starts)
        if early is not None and late is not None
    )


def _copied_bytes(order: PassOrder, visits: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(sizes[layer] for layer, copies in zip(visits, order.copies) if copies)


def _stalls(traces: Sequence[_PassTrace], visits: Sequence[int], layer_count: int) -> tuple[int, ...]:
    """Per layer, ns for which the compute lane waited before its visits in the last pass."""
    stalls = [0] * layer_count
    if visits:
        free = traces[-2].ends[-1]
        for layer, start, end in zip(visits, traces[-1].starts, traces[-1].ends):
            stalls[layer] += start - free
            free = end
    return tuple(stalls)


def _peak_ring_bytes(traces: Sequence[_PassTrace], plan: Plan) -> int:
    """Most ring bytes in use at a time: those of a copy are from its start to the last read before the next copy of
    its layer."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    changes: list[tuple[int, int]] = []
    for trace in traces:
        for layer, start, end in zip(plan.visits, trace.copy_starts, trace.ends):
            size = plan.layers[layer].bytes
            if plan.layers[layer].placement != "streamed":
                continue
            if start is not None:
                if layer in starts:
                    changes += [(starts[layer], size), (ends[layer], -size)]
                starts[layer] = start
            ends[layer] = end
    for layer, start in starts.items():
        size = plan.layers[layer].bytes
        changes += [(start, size), (ends[layer], -size)]
    changes.sort()  # at equal times the ends (negative) come first: a copy may start when the last read ends
    in_use = peak = 0
    for _, change in changes:
        in_use += change
        peak = max(peak, in_use)
    return peak
