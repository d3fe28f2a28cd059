"""A plan as text for people: a few lines of figures, one line per run of equal layers, the decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from ..units import count, format_bytes, format_ns
from .plan import Plan, PlannedLayer

_NAME_CHARS = 44


def plan_to_text(plan: Plan) -> str:
    """The whole text, without a newline at its end."""
    decisions = ["", *(f"  - {text}" for text in plan.decisions)] if plan.decisions else []
    return "\n".join([*_head(plan), "", *_table(plan), "", _prediction(plan), *decisions])


def _head(plan: Plan) -> list[str]:
    sizes = [layer.bytes for layer in plan.layers]
    streamed = sum(sizes[index] for index in plan.streamed)
    total = sum(map(plan.reserved, sizes)) + plan.loose_bytes
    share = f" ({plan.device_bytes / total:.0%} of {format_bytes(total)})" if total else ""
    return [
        f"{plan.component} on {plan.device}: {format_bytes(plan.device_bytes)} of device memory{share}",
        f"  resident {count(len(plan.residents), 'layer', 'layers')}, {format_bytes(plan.resident_bytes)}"
        f" | streamed {count(len(plan.streamed), 'layer', 'layers')}, {format_bytes(streamed)}"
        f" through a ring of {format_bytes(plan.ring_bytes)}"
        f" | outside layers {format_bytes(plan.loose_bytes)}",
    ]


def _family(layer: PlannedLayer) -> tuple[str, int]:
    """What the layers of one line have in common: the list that their names belong to, and their size.

    An evenly spread choice alternates and would give a line per layer. So a line may mix placements, and counts both.
    """
    stem, _, last = layer.name.rpartition(".")
    return (stem if last.isdigit() else layer.name, layer.bytes)


def _table(plan: Plan) -> list[str]:
    rows = [("layers", "each", "placement", "wait in")]
    for _, alike in groupby(plan.layers, key=_family):
        layers = list(alike)
        name = layers[0].name
        if len(layers) > 1:
            name = f"{name} .. {layers[-1].name.rpartition('.')[2]} ({len(layers)})"
        if len(name) > _NAME_CHARS:
            name = "..." + name[3 - _NAME_CHARS :]
        peer = f"on {plan.peer_device}"
        tiers: Counter[str] = Counter(peer if layer.host_tier == "peer" else layer.host_tier for layer in layers)
        counts = ", ".join(f"{number} {tier}" for tier, number in sorted(tiers.items()))
        memory = counts if len(tiers) > 1 else next(iter(tiers))
        rows.append((name, format_bytes(layers[0].bytes), _mix(layers), memory))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows]


def _mix(layers: Sequence[PlannedLayer]) -> str:
    """One word, or for both how many of each and a picture of which: "2 resident (R), 3 streamed (.)  .R..R"."""
    placements = Counter(layer.placement for layer in layers)
    if len(placements) == 1:
        return layers[0].placement
    picture = "".join("R" if layer.placement == "resident" else "." for layer in layers)
    if len(picture) > 64:
        return f"{placements['resident']} resident, {placements['streamed']} streamed"
    return f"{placements['resident']} resident (R), {placements['streamed']} streamed (.)  {picture}"


def _prediction(plan: Plan) -> str:
    predicted = plan.predicted
    hidden = predicted.pass_ns - predicted.stall_ns
    return (
        f"  predicted: {format_ns(predicted.pass_ns)} a pass ({format_ns(hidden)} compute, waiting"
        f" {format_ns(predicted.stall_ns)}; bound {format_ns(predicted.bound_ns)}),"
        f" first pass {format_ns(predicted.first_pass_ns)}, {format_bytes(predicted.bytes_per_pass)} copied a pass"
    )
