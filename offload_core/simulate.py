"""What a plan will cost: an exact event-driven model of the engine's two lanes, with the bound beside it.

One copy lane and one compute lane, each in order. A visit starts when the visit before it has ended and its layer's
bytes have arrived; a copy starts when the lane is free and the last reader of its ring range is done. The host is taken
to run ahead without limit and launches to cost nothing, so real runs can only be slower. Knows nothing about how the
plan was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import PlanError
from .fields import MAX_NS, as_int, as_rate
from .plan import Plan
from .timeline import NO_WAIT, PassOrder, order_passes
from .trace import Event

__all__ = ["SimulationResult", "bound_ns", "copy_ns", "simulate", "steady_events"]

_EXTRA_PASSES = 61  # how many passes may follow the asked ones until two are alike


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Times in nanoseconds, sizes in bytes.

    pass_ns           one pass in the steady state; mean of the last passes if they never became alike
    bound_ns          no engine beats this with these residents and this ring
    first_pass_ns     from an empty device to the end of the first pass, residents brought along
    bytes_per_pass    copied by a steady pass
    first_pass_bytes  copied by the first pass
    stall_ns          per layer: how long its visits of a steady pass kept the compute lane waiting
    peak_ring_bytes   most ring bytes at once between the start of their copy and their last read, in any simulated pass
    passes_simulated  how many passes it took
    """

    pass_ns: int
    bound_ns: int
    first_pass_ns: int
    bytes_per_pass: int
    first_pass_bytes: int
    stall_ns: tuple[int, ...]
    peak_ring_bytes: int
    passes_simulated: int


@dataclass(slots=True)
class _Lanes:
    """The clock: when each lane is free, and when each visit of the last two passes ended."""

    copy_free: int = 0
    compute_free: int = 0
    ended_before: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _PassTrace:
    """One simulated pass: per visit, when its copy began (None: no copy), when it began and ended computing."""

    copy_starts: tuple[int | None, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


def copy_ns(size_bytes: int, h2d_bytes_per_s: float) -> int:
    """Link time of one copy in nanoseconds, rounded to the nearest; exact integers keep the steady state exact."""
    return round(size_bytes * 1e9 / h2d_bytes_per_s)


def simulate(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, passes: int = 3) -> SimulationResult:
    """Predict a plan. `compute_ns` is the compute time of one visit, per layer, in nanoseconds.

    Simulates `passes` passes and then goes on until a pass has the same timing as the one before: from there on nothing
    changes any more, so the steady figures are exact. Raises PlanError when the figures do not fit the plan.
    """
    as_int("passes", passes, 1, 10_000)
    rate = as_rate("h2d_bytes_per_s", h2d_bytes_per_s)
    sizes = [layer.bytes for layer in plan.layers]
    offsets = [layer.offset if layer.placement == "streamed" else None for layer in plan.layers]
    first, steady, traces = _run(plan, compute_ns, rate, passes)
    durations = [trace.ends[-1] - before.ends[-1] for before, trace in zip(traces, traces[1:])] if plan.visits else [0]
    alike = not plan.visits or _same_timing(traces[-2], traces[-1])
    window = durations[-1:] if alike else durations[len(durations) // 2 :]
    return SimulationResult(
        pass_ns=round(sum(window) / len(window)),
        bound_ns=bound_ns(plan, compute_ns, rate),
        first_pass_ns=traces[0].ends[-1] if plan.visits else 0,
        bytes_per_pass=_copied_bytes(steady, plan.visits, sizes),
        first_pass_bytes=_copied_bytes(first, plan.visits, sizes),
        stall_ns=_stalls(traces, plan.visits, len(sizes)),
        peak_ring_bytes=_peak_ring_bytes(traces, plan.visits, sizes, offsets),
        passes_simulated=len(traces),
    )


def steady_events(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, source: str) -> list[Event]:
    """What the lanes do in a steady pass, as the events that a recorder would have written; times from its begin.

    Copies that reach over the ends of the pass are whole. Raises what `simulate` raises.
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
    """Simulate at least `passes` passes, and on until two are alike."""
    if len(compute_ns) != len(plan.layers):
        raise PlanError.bad_field("number of compute_ns", len(compute_ns), f"one per layer, {len(plan.layers)}")
    for layer, value in zip(plan.layers, compute_ns):
        as_int(f"compute_ns of layer {layer.name}", value, 0, MAX_NS)
    sizes = [layer.bytes for layer in plan.layers]
    offsets = [layer.offset if layer.placement == "streamed" else None for layer in plan.layers]
    _require_ring(plan, offsets)
    first, steady = order_passes(plan.visits, sizes, offsets, plan.ring_bytes)
    links = [copy_ns(size, rate) for size in sizes]
    lanes = _Lanes()
    traces: list[_PassTrace] = []
    while len(traces) < max(passes, 2) + _EXTRA_PASSES:
        traces.append(_run_pass(steady if traces else first, plan.visits, links, compute_ns, lanes))
        if len(traces) >= max(passes, 3) and _same_timing(traces[-2], traces[-1]):
            break
    return first, steady, traces


def bound_ns(plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float) -> int:
    """The least a steady pass can take with this plan's residents and ring, whatever the schedule.

    Three laws, the largest counts: all compute runs on one lane; all copies run on one lane; and every copy holds its
    bytes of the ring at least while it is copied and read (area law: ring bytes x pass time >= sum of bytes x time
    held).
    """
    sizes = [layer.bytes for layer in plan.layers]
    offsets = [layer.offset if layer.placement == "streamed" else None for layer in plan.layers]
    _, steady = order_passes(plan.visits, sizes, offsets, plan.ring_bytes)
    copied = [layer for layer, copies in zip(plan.visits, steady.copies) if copies]
    links = [copy_ns(size, h2d_bytes_per_s) for size in sizes]
    compute = sum(compute_ns[layer] for layer in plan.visits)
    link = sum(links[layer] for layer in copied)
    area = sum(sizes[layer] * (links[layer] + compute_ns[layer]) for layer in copied)
    return max(compute, link, area // plan.ring_bytes if plan.ring_bytes else 0)


def _require_ring(plan: Plan, offsets: Sequence[int | None]) -> None:
    for layer, offset in zip(plan.layers, offsets):
        if layer.placement == "resident" or not layer.bytes:
            continue
        if offset is None or offset < 0 or offset + layer.bytes > plan.ring_bytes:
            allowed = f"0 to {plan.ring_bytes - layer.bytes}, inside the ring"
            raise PlanError.bad_field(f"offset of layer {layer.name}", offset, allowed)


def _run_pass(
    order: PassOrder, visits: Sequence[int], links: Sequence[int], compute_ns: Sequence[int], lanes: _Lanes
) -> _PassTrace:
    copy_free, compute_free, before = lanes.copy_free, lanes.compute_free, lanes.ended_before
    copy_starts: list[int | None] = []
    starts: list[int] = []
    ends: list[int] = []
    for visit, layer in enumerate(visits):
        start = compute_free
        if order.copies[visit]:
            wait = order.waits_for[visit]
            if wait != NO_WAIT:
                # A copy waits only for visits before its own, so `ends` (or the pass before) already has the answer.
                copy_free = max(copy_free, ends[wait] if wait >= 0 else before[wait])
            copy_starts.append(copy_free)
            copy_free += links[layer]
            start = max(start, copy_free)
        else:
            copy_starts.append(None)  # a hit: its last copy ended before an earlier visit of the same layer began
        compute_free = start + compute_ns[layer]
        starts.append(start)
        ends.append(compute_free)
    lanes.copy_free, lanes.compute_free, lanes.ended_before = copy_free, compute_free, tuple(ends)
    return _PassTrace(tuple(copy_starts), tuple(starts), tuple(ends))


def _same_timing(before: _PassTrace, after: _PassTrace) -> bool:
    """Whether `after` is `before`, shifted. Every later pass is the same then: it is a function of the one before."""
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
    """Per layer, how long the compute lane waited before its visits of the last pass."""
    stalls = [0] * layer_count
    if visits:
        free = traces[-2].ends[-1]
        for layer, start, end in zip(visits, traces[-1].starts, traces[-1].ends):
            stalls[layer] += start - free
            free = end
    return tuple(stalls)


def _peak_ring_bytes(
    traces: Sequence[_PassTrace], visits: Sequence[int], sizes: Sequence[int], offsets: Sequence[int | None]
) -> int:
    """Most bytes alive at once: a copy's bytes live from its start to the last read before its layer's next copy."""
    births: dict[int, int] = {}
    deaths: dict[int, int] = {}
    events: list[tuple[int, int]] = []
    for trace in traces:
        for visit, layer in enumerate(visits):
            begun = trace.copy_starts[visit]
            if offsets[layer] is None:
                continue
            if begun is not None:
                if layer in births:
                    events += [(births[layer], sizes[layer]), (deaths[layer], -sizes[layer])]
                births[layer] = begun
            deaths[layer] = trace.ends[visit]
    for layer, begun in births.items():
        events += [(begun, sizes[layer]), (deaths[layer], -sizes[layer])]
    events.sort()  # at equal times deaths (negative) come first: a copy may start the moment the last read ends
    alive = peak = 0
    for _, change in events:
        alive += change
        peak = max(peak, alive)
    return peak
