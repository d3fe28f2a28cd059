"""The simulator's passes in detail: what tests compare with the engine, beside the prediction of `simulate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from offload_core.planning.plan import Plan
from offload_core.planning.simulate import copy_ns, run_passes, simulate
from offload_core.planning.timeline import Order, PassTimes, run_pass


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Times in nanoseconds, sizes in bytes; what is not explained here is the `Prediction`'s.

    first_pass_bytes  copied by the first pass
    stall_ns          per layer: how long the compute lane waits before its visits in the last pass
    peak_ring_bytes   most ring bytes that are in use, between the start of their copy and their last read, at a time
    passes_simulated  number of passes simulated
    last_pass_ns      the last pass simulated
    """

    pass_ns: int
    bound_ns: int
    first_pass_ns: int
    bytes_per_pass: int
    first_pass_bytes: int
    stall_ns: tuple[int, ...]
    peak_ring_bytes: int
    passes_simulated: int
    last_pass_ns: int


def simulate_in_detail(
    plan: Plan, compute_ns: Sequence[int], h2d_bytes_per_s: float, passes: int = 3
) -> SimulationResult:
    """The prediction for a plan, and the sums of at least `passes` passes. Raises what `simulate` raises."""
    first, steady, times = run_passes(plan, compute_ns, h2d_bytes_per_s)
    links = [copy_ns(layer.bytes, h2d_bytes_per_s) for layer in plan.layers]
    while len(times) < passes:
        times.append(run_pass(steady, plan.visits, links, compute_ns, times[-1]))
    predicted = asdict(simulate(plan, compute_ns, h2d_bytes_per_s))
    assert predicted["bytes_per_pass"] == _copied_bytes(steady, plan)
    return SimulationResult(
        **predicted | {"stall_ns": _stalls(times, plan)},
        first_pass_bytes=_copied_bytes(first, plan),
        peak_ring_bytes=_peak_ring_bytes(times, plan),
        passes_simulated=len(times),
        last_pass_ns=times[-1].end - times[-2].end,
    )


def _copied_bytes(order: Order, plan: Plan) -> int:
    return sum(plan.layers[layer].bytes for layer, wait in zip(plan.visits, order) if wait is not None)


def _stalls(times: Sequence[PassTimes], plan: Plan) -> tuple[int, ...]:
    stalls = [0] * len(plan.layers)
    free = times[-2].end
    for layer, start, end in zip(plan.visits, times[-1].starts, times[-1].ends):
        stalls[layer] += start - free
        free = end
    return tuple(stalls)


def _peak_ring_bytes(times: Sequence[PassTimes], plan: Plan) -> int:
    """Most ring bytes in use at a time: those of a copy are from its start to the last read before the next copy of
    its layer."""
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    changes: list[tuple[int, int]] = []
    for trace in times:
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
