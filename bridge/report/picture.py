"""The report as a picture: memory of each device and of the host; placement, figures and timeline of each component.

Drawn from the report document alone. Colours are those of `docs/formats.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...offload_core.trace.events import Event
from ...offload_core.units import count
from .canvas import GROUND, LINE, PANEL, QUIET, TEXT, Canvas, readable_on, text_width

WIDTH = 1024
MARGIN = 24
ROOM = WIDTH - 2 * MARGIN
MAX_COMPONENTS = 8

RESIDENT, USE, FLIGHT, USED, OFFLOADED = "#4c8dd6", "#f2b134", "#2fa88a", "#8fcbb9", "#6b7280"
STALL, LOOSE, OTHERS = "#e5484d", "#9b7bd4", "#a3a8b0"
STORED, PINNED, PAGEABLE, MAPPED = "#b8b04c", "#d07aa8", "#c9a36a", "#7c93a8"

_STATES = {
    "R": ("resident", RESIDENT),
    "r": ("resident, not yet there", GROUND),
    "U": ("in use", USE),
    "F": ("fetched ahead", FLIGHT),
    "C": ("in the ring, used", USED),
    "O": ("offloaded", OFFLOADED),
}
_SOURCES = {"node": "the node's widget", "options": "the options node", "graph": "the graph's options"}
_SOURCES |= {"settings": "your settings", "selection": "the selection", "policy": "the policy"}
_HEADER, _LADDER, _COMPONENT, _SHORT, _NOTE, _LEGEND = 62, 84, 262, 82, 24, 44
_LANE_LEFT = MARGIN + 72
_ALWAYS_SHOWN = ("others", "free", "available")
"""Parts of memory that stand in its legend also where they take nothing."""

Timeline = tuple[Sequence[Event], bool]


def draw_report(document: Mapping[str, Any], timelines: Mapping[str, Timeline]) -> Canvas:
    """The picture of a report document (`report.live_document`); `timelines`: one pass of each component, by its id."""
    shown = [*document["components"], *document["expected"]]
    more, shown = shown[MAX_COMPONENTS:], shown[:MAX_COMPONENTS]
    notes = _notes(document, more)
    height = _HEADER + _LADDER * (len(document["devices"]) + 1) + sum(map(_height, shown)) + _NOTE * len(notes)
    canvas = Canvas(WIDTH, height + (_LEGEND if shown else 0) + MARGIN // 2)
    canvas.text(MARGIN, 18, "Layerwise Offload", 24)
    loaded = sum(component["loaded"] for component in document["components"])
    all_of_them = count(len(document["components"]) + len(document["expected"]), "component", "components")
    summary = f"{all_of_them} under layerwise offload, {loaded} loaded"
    canvas.text(WIDTH - MARGIN, 24, summary, 15, QUIET, align=1)
    y = _HEADER
    for device in document["devices"]:
        _device(canvas, y, device)
        y += _LADDER
    _host(canvas, y, document["host"])
    y += _LADDER
    for component in shown:
        _component(canvas, y, component, timelines.get(component["id"], ((), False)))
        y += _height(component)
    for note in notes:
        canvas.text(MARGIN, y, note, 14, QUIET, ROOM)
        y += _NOTE
    if shown:
        _legend(canvas, y + 10, [(f"{sign} {words}", colour) for sign, (words, colour) in _STATES.items()])
    return canvas


def _notes(document: Mapping[str, Any], more: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = document["bystanders"]
    notes = [f"ComfyUI's own way: {row['component']}, {row['model']}: {row['reason']}" for row in rows]
    if more:
        notes.append(f"and {len(more)} more: {', '.join(component['component'] for component in more)}")
    if not document["components"] and not document["expected"]:
        notes.insert(0, "No component has been loaded yet.")
    return notes


# ---------------------------------------------------------------------- memory


def _device(canvas: Canvas, y: float, device: Mapping[str, Any]) -> None:
    parts = [
        ("resident layers", device["resident_bytes"], RESIDENT),
        ("outside layers", device["loose_bytes"], LOOSE),
        ("ring", device["ring_bytes"], FLIGHT),
        ("stored for another device", device["stored_bytes"], STORED),
        ("others", device["others_bytes"], OTHERS),
        ("free", device["free_bytes"], PANEL),
    ]
    _ladder(canvas, y, device["name"], device["total_bytes"], parts, device["budget_bytes"])


def _host(canvas: Canvas, y: float, host: Mapping[str, int]) -> None:
    ours = host["pinned_bytes"] + host["pageable_bytes"] + host["mapped_bytes"]
    available = min(host["available_bytes"], host["total_bytes"])
    parts = [
        ("pinned", host["pinned_bytes"], PINNED),
        ("pageable", host["pageable_bytes"], PAGEABLE),
        ("mapped", host["mapped_bytes"], MAPPED),
        ("others", max(0, host["total_bytes"] - available - ours), OTHERS),
        ("available", available, PANEL),
    ]
    _ladder(canvas, y, "system memory", host["total_bytes"], parts, None)


Part = tuple[str, int, str]


def _ladder(canvas: Canvas, y: float, name: str, total_bytes: int, parts: list[Part], budget_bytes: int | None) -> None:
    """A stacked bar of the (name, bytes, colour) parts, their sizes below it, the budget above."""
    title = canvas.text(MARGIN, y, name, 15)
    canvas.text(MARGIN + title + 10, y, size_text(total_bytes), 15, QUIET)
    top, high = y + 24, 22
    scale = ROOM / max(1, total_bytes, sum(nbytes for _, nbytes, _ in parts))
    canvas.box(MARGIN, top, ROOM, high, PANEL, LINE)
    x = float(MARGIN)
    for _, nbytes, colour in parts:
        if nbytes and colour != PANEL:
            canvas.box(x, top, max(2.0, nbytes * scale), high, colour)
        x += nbytes * scale
    if budget_bytes is not None:
        used = sum(nbytes for what, nbytes, _ in parts if what in ("resident layers", "outside layers", "ring"))
        colour = STALL if used > budget_bytes else TEXT
        mark = MARGIN + min(ROOM - 1.0, budget_bytes * scale)
        canvas.line(mark, top - 5, mark, top + high + 4, colour, 2)
        text = f"budget {size_text(budget_bytes)}"
        left = max(mark - text_width(text, 13) / 2, MARGIN + title + 100)
        canvas.text(min(left, WIDTH - MARGIN - text_width(text, 13)), y + 2, text, 13, colour)
    shown = [(what, nbytes, colour) for what, nbytes, colour in parts if nbytes or what in _ALWAYS_SHOWN]
    _legend(canvas, top + high + 8, [(f"{what} {size_text(nbytes)}", colour) for what, nbytes, colour in shown])


def _legend(canvas: Canvas, y: float, entries: Sequence[tuple[str, str]]) -> None:
    x = float(MARGIN)
    for text, colour in entries:
        canvas.box(x, y + 2, 12, 12, colour, RESIDENT if colour == GROUND else LINE)
        x += 17 + canvas.text(x + 17, y, text, 14, QUIET) + 14


# ---------------------------------------------------------------------- components


def _height(component: Mapping[str, Any]) -> int:
    """Pixels; a component without a plan or without layers gets text only."""
    return _COMPONENT if (component.get("plan") or {}).get("layers") else _SHORT


def _component(canvas: Canvas, y: float, component: Mapping[str, Any], timeline: Timeline) -> None:
    canvas.line(MARGIN, y, WIDTH - MARGIN, y, LINE)
    name_width = canvas.text(MARGIN, y + 12, component["component"], 19)
    canvas.text(MARGIN + name_width + 12, y + 15, component["model"], 15, QUIET, 420)
    canvas.text(WIDTH - MARGIN, y + 15, _placement_text(component), 15, QUIET, align=1)
    plan = component.get("plan")
    if plan is None:
        canvas.text(MARGIN, y + 48, component.get("error", ""), 14, STALL, ROOM)
        return
    canvas.text(MARGIN, y + 40, _plan_line(component), 14, QUIET, ROOM)
    layers = plan["layers"]
    if not layers:
        return
    planned = "".join("r" if layer["placement"] == "resident" else "O" for layer in layers)
    _placement_map(canvas, y + 64, layers, component.get("layer_states") or planned)
    _figures(canvas, y + 98, component)
    _timeline(canvas, y + 150, timeline)


def _placement_text(component: Mapping[str, Any]) -> str:
    placement = component.get("settings", {}).get("placement")
    if placement is None or placement["value"] is None:
        return "not loaded yet: as things stand now" if "settings" not in component else ""
    state = "" if component["loaded"] else ", not on the device now"
    return f"{placement['value']}, by {_SOURCES.get(placement['source'], placement['source'])}{state}"


def _plan_line(component: Mapping[str, Any]) -> str:
    plan = component["plan"]
    if not plan["layers"]:
        return f"nothing in it is large enough to be streamed: {size_text(plan['loose_bytes'])} stay on the device"
    resident = sum(layer["placement"] == "resident" for layer in plan["layers"])
    streamed = len(plan["layers"]) - resident
    total = sum(layer["bytes"] for layer in plan["layers"])
    parts = [
        f"{count(len(plan['layers']), 'layer', 'layers')}, {size_text(total)}",
        f"{resident} resident",
        f"{streamed} streamed through a ring of {size_text(plan['ring_bytes'])}" if streamed else "none streamed",
    ]
    if component.get("budget_bytes") is not None:
        source = component.get("settings", {}).get("budget_bytes", {}).get("source", "policy")
        word = "up to" if source == "policy" else "budget"
        parts.append(f"{word} {size_text(component['budget_bytes'])}")
    warnings = len(component.get("warnings", ()))
    if warnings:
        parts.append(f"{count(warnings, 'warning', 'warnings')}, see the text")
    return "  ·  ".join(parts)


def _placement_map(canvas: Canvas, y: float, layers: Sequence[Mapping[str, Any]], states: str) -> None:
    """One cell per layer, its width by its bytes; the state's letter where the cell is wide enough."""
    total = sum(layer["bytes"] for layer in layers) or 1
    narrowest = min(6.0, ROOM / max(1, len(layers)))
    free = ROOM - narrowest * len(layers)
    x = float(MARGIN)
    for layer, state in zip(layers, states):
        width = narrowest + free * layer["bytes"] / total
        _, colour = _STATES.get(state, _STATES["O"])
        gap = 2 if width >= 6 else 0
        canvas.box(x, y, width - gap, 24, colour, RESIDENT if state == "r" else colour)
        if width >= 14:
            canvas.text(x + (width - gap) / 2, y + 4, state, 13, readable_on(colour), align=0.5)
        x += width


def _figures(canvas: Canvas, y: float, component: Mapping[str, Any]) -> None:
    """The five numbers of the last run; without a run the plan's predictions, labelled as planned."""
    numbers = component.get("numbers") or {}
    predicted = component["plan"]["predicted"]
    streamed = any(layer["placement"] == "streamed" for layer in component["plan"]["layers"])
    names = ("stall_pct", "bytes_per_pass", "copy_bytes_per_s", "hit_rate", "headroom_bytes")
    stall, moved, rate, hits, headroom = (numbers.get(name) for name in names)
    waiting, moving = "waiting for copies", "moved per pass"
    if stall is None:
        waiting, stall = "waiting, as planned", 100 * predicted["stall_ns"] / (predicted["pass_ns"] or 1)
    if moved is None:
        moving, moved = "moved per pass, as planned", predicted["bytes_per_pass"]
    figures = [
        (waiting, f"{stall:.1f} %"),
        (moving, size_text(moved)),
        ("copy speed", "not measured" if rate is None else f"{size_text(rate)}/s"),
        ("fetched ahead", f"{hits:.1%}" if hits is not None else "not run yet" if streamed else "none streamed"),
        ("free on the device", "not known" if headroom is None else size_text(headroom)),
    ]
    width = ROOM / len(figures)
    for number, (what, value) in enumerate(figures):
        canvas.text(MARGIN + number * width, y, what, 13, QUIET, width - 8)
        canvas.text(MARGIN + number * width, y + 16, value, 19, TEXT, width - 8)


# ---------------------------------------------------------------------- timeline


def _timeline(canvas: Canvas, y: float, timeline: Timeline) -> None:
    """Lanes of copies and of compute in one pass, with stalls in red."""
    events, measured = timeline
    compute = [event for event in events if event.kind in ("visit", "stall")]
    if not compute:
        canvas.text(MARGIN, y + 20, "No timeline: no pass has been measured, and none can be predicted.", 14, QUIET)
        return
    start, end = min(event.start_ns for event in compute), max(event.end_ns for event in compute)
    span = max(1, end - start)
    left, room = _LANE_LEFT, WIDTH - MARGIN - _LANE_LEFT
    caption = f"one pass, {'measured' if measured else 'as the simulator expects it'}: {time_text(span)}"
    stalled = sum(event.end_ns - event.start_ns for event in compute if event.kind == "stall")
    canvas.text(left, y, caption, 14, TEXT)
    waits = f"compute waits {time_text(stalled)}"
    canvas.text(WIDTH - MARGIN, y, waits, 14, STALL if stalled else QUIET, align=1)
    for name, top in (("copy", y + 20), ("compute", y + 46)):
        canvas.text(MARGIN, top + 3, name, 14, QUIET)
        canvas.box(left, top, room, 22, PANEL)
    for event in events:
        top, colour = (y + 20, FLIGHT) if event.kind == "copy" else (y + 46, STALL if event.kind == "stall" else USE)
        first = left + room * (max(event.start_ns, start) - start) / span
        last = left + room * (min(event.end_ns, end) - start) / span
        if last > first:
            gap = 1 if last - first > 4 and event.kind != "stall" else 0
            canvas.box(first, top, last - first - gap, 22, colour)
    _axis(canvas, y + 72, left, room, span)


def _axis(canvas: Canvas, y: float, left: float, room: float, span_ns: int) -> None:
    """At most nine ticks, at round times, labelled in one unit."""
    steps = (digit * 10**power for power in range(15) for digit in (1, 2, 5))
    step = next(step for step in steps if span_ns / step <= 8)
    unit, word = next((u, w) for u, w in ((10**9, "s"), (10**6, "ms"), (1000, "us"), (1, "ns")) if span_ns >= u)
    for number in range(span_ns // step + 1):
        x = left + room * number * step / span_ns
        canvas.line(x, y, x, y + 4, QUIET)
        canvas.text(x, y + 6, f"{number * step / unit:g} {word}", 12, QUIET, align=0.5)


def size_text(nbytes: float) -> str:
    """In GB, MB or kB (10^9, 10^6, 10^3 bytes)."""
    if nbytes >= 1e8:
        return f"{nbytes / 1e9:.2f} GB" if nbytes < 1e11 else f"{nbytes / 1e9:.0f} GB"
    if nbytes >= 1e5:
        return f"{nbytes / 1e6:.1f} MB"
    return f"{nbytes / 1e3:.1f} kB" if nbytes else "0"


def time_text(ns: float) -> str:
    if ns >= 1e9:
        return f"{ns / 1e9:.2f} s"
    if ns >= 1e6 or not ns:
        return f"{ns / 1e6:.4g} ms"
    return f"{ns / 1e3:.4g} us"
