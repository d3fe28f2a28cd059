"""The sentences of a plan: what was chosen, on whose word, and why. Knows nothing about how the choice was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..units import format_bytes, format_ns
from .plan import Plan
from .request import PlanRequest
from .ring_size import usual_ring

_NAMES_SHOWN = 3


def explain(plan: Plan, request: PlanRequest, too_large: frozenset[int], compute_note: str | None) -> tuple[str, ...]:
    """Everything about this plan that people may ask for. `too_large` are the layers the user's ring cannot hold."""
    return (
        *_kept(request),
        *_tables(plan, request),
        *_too_large(plan, request, too_large),
        _memory(plan, request),
        *_ring(plan, request),
        *_residents(plan, request, too_large),
        *_times(plan, request, compute_note),
    )


def _kept(request: PlanRequest) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for layer in request.inventory.layers:
        if layer.keep is not None:
            reasons.setdefault(layer.keep, []).append(layer.name)
    for reason, names in reasons.items():
        yield f"{_names(names)}: resident ({reason})"


def _tables(plan: Plan, request: PlanRequest) -> Iterator[str]:
    for table in request.inventory.tables:
        name, size = table.name, format_bytes(table.bytes)
        where = "in its file" if table.in_file else "on the host"
        if table.name in plan.tables:
            yield f"{name} ({size}) is on the device: it is also used as a whole"
        elif table.used_whole:
            yield (
                f"{name} ({size}) stays {where} and is copied for each use of it as a whole, beside the "
                "budget, which has no room for it"
            )
        else:
            yield f"{name} ({size}) stays {where}: only the rows looked up move"


def _too_large(plan: Plan, request: PlanRequest, too_large: frozenset[int]) -> Iterator[str]:
    if too_large and request.ring_bytes is not None and request.placement == "layerwise":
        names = [plan.layers[index].name for index in sorted(too_large)]
        ring = format_bytes(request.ring_bytes)
        yield f"{_names(names)}: resident (larger than the ring of {ring} that was asked for)"


def _memory(plan: Plan, request: PlanRequest) -> str:
    if request.budget_bytes is None:
        return f"device memory {format_bytes(plan.device_bytes)}; no budget was set"
    return f"device memory {format_bytes(plan.device_bytes)} of the {format_bytes(request.budget_bytes)} allowed"


def _ring(plan: Plan, request: PlanRequest) -> Iterator[str]:
    streamed = [plan.layers[index].bytes for index in plan.streamed]
    if not streamed:
        if request.ring_bytes and plan.layers:
            yield f"no ring of {format_bytes(request.ring_bytes)}, as was asked for: nothing is streamed"
        return
    largest = max(streamed)
    words = f"ring {format_bytes(plan.ring_bytes)}, {plan.ring_bytes / largest:.1f} of the largest streamed layer"
    if request.ring_bytes is not None:
        yield f"{words}, as asked"
    elif plan.ring_bytes < min(2 * largest, usual_ring(streamed)) and len(streamed) > 1:
        yield f"{words}: too small to copy one large layer while another computes; a larger budget would help"
    else:
        yield words


def _residents(plan: Plan, request: PlanRequest, too_large: frozenset[int]) -> Iterator[str]:
    chosen = [
        index
        for index in plan.residents
        if request.inventory.layers[index].keep is None and index not in too_large and plan.layers[index].bytes
    ]
    if chosen and plan.streamed:
        size = sum(plan.layers[index].bytes for index in chosen)
        why = "where copies would come too late (credit rule, checked by simulation)"
        if request.hold_spare:
            why += ", or in room that is to spare, so that less is copied"
        verb = "stays" if len(chosen) == 1 else "stay"
        yield f"{len(chosen)} of {len(chosen) + len(plan.streamed)} layers {verb} ({format_bytes(size)}), {why}"


def _times(plan: Plan, request: PlanRequest, compute_note: str | None) -> Iterator[str]:
    yield f"link {request.h2d_bytes_per_s / 1e9:.1f} GB/s ({request.link_source})"
    if compute_note is not None:
        yield compute_note
    if not plan.streamed:
        return
    stall = plan.predicted.stall_ns
    if stall <= plan.predicted.pass_ns // 1000:
        yield "copies hide behind compute: a pass takes as long as with everything resident"
    else:
        compute = plan.predicted.pass_ns - stall
        share = f", {plan.predicted.pass_ns / compute:.2f} times the compute alone" if compute else ""
        yield f"a pass waits {format_ns(stall)} for copies{share}"


def _names(names: Sequence[str]) -> str:
    if len(names) <= _NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES_SHOWN])} and {len(names) - _NAMES_SHOWN} more"
