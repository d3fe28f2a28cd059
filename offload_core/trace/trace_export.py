"""Converts events to Chrome trace JSON, which Perfetto opens, and back.

The format (Chrome's "Trace Event Format") requires the slices of one track to nest. So there is one track per stream,
slices are complete events ("X"), and of two that overlap because of inexact clock readings the later one is cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import PlanError
from .events import KINDS, Event, Source

SCHEMA = 1
TRACKS = ("compute", "copy", "host")
_TRACK_OF = {"visit": "compute", "stall": "compute", "copy": "copy", "pass": "host", "evict": "host", "plan": "host"}
_STALL_COLOUR = "terrible"
"""The format's name of its red."""


def chrome_trace(events: Iterable[Event], sources: Iterable[Source]) -> dict[str, Any]:
    """The Chrome trace as JSON-ready objects, one process per device. Events of unknown sources are left out."""
    by_id = {source.id: source for source in sources}
    events = sorted((event for event in events if event.source in by_id), key=lambda e: (e.start_ns, -e.end_ns))
    origin_ns = min((event.start_ns for event in events), default=0)
    records: list[dict[str, Any]] = []
    for process, device in enumerate(sorted({source.device for source in by_id.values()}), 1):
        records += _names(device, process)
        on_device = [event for event in events if by_id[event.source].device == device]
        for thread, track in enumerate(TRACKS, 1):
            slices = _nested([event for event in on_device if _TRACK_OF[event.kind] == track])
            records += [_slice(event, by_id[event.source], process, thread, origin_ns) for event in slices]
        records += _arrows(on_device, process, origin_ns)
        records += _copied(on_device, process, origin_ns)
    used = [by_id[source] for source in dict.fromkeys(event.source for event in events)]
    return {
        "traceEvents": records,
        "displayTimeUnit": "ms",
        "otherData": {
            "schema": SCHEMA,
            "made_by": "Layerwise Offload",
            "origin_ns": origin_ns,
            "components": [asdict(source) for source in used],
        },
    }


def _names(device: str, process: int) -> list[dict[str, Any]]:
    rows: list[tuple[int, str, dict[str, Any]]] = [(0, "process_name", {"name": f"Layerwise Offload, {device}"})]
    for thread, track in enumerate(TRACKS, 1):
        rows.append((thread, "thread_name", {"name": track}))
        rows.append((thread, "thread_sort_index", {"sort_index": thread}))
    return [{"ph": "M", "pid": process, "tid": thread, "name": name, "args": args} for thread, name, args in rows]


def _nested(events: Sequence[Event]) -> list[Event]:
    """The events in the order of their starts; one that starts inside another and ends after it is cut at its start."""
    result: list[Event] = []
    open_ends: list[int] = []
    pending = [(event.start_ns, -event.end_ns, number, event) for number, event in enumerate(events)]
    heapq.heapify(pending)
    while pending:
        start_ns, _, number, event = heapq.heappop(pending)
        while open_ends and open_ends[-1] <= start_ns:
            open_ends.pop()
        if open_ends and open_ends[-1] < event.end_ns:
            cut_ns = open_ends[-1]
            heapq.heappush(pending, (cut_ns, -event.end_ns, number, event._replace(start_ns=cut_ns)))
            continue
        open_ends.append(event.end_ns)
        result.append(event)
    return result


def _slice(event: Event, source: Source, process: int, thread: int, origin_ns: int) -> dict[str, Any]:
    layer = None if event.layer is None or event.layer >= len(source.layers) else source.layers[event.layer]
    record = {
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": _us(event.start_ns - origin_ns),
        "dur": _us(event.end_ns - event.start_ns),
        "name": layer if event.kind in ("visit", "copy") and layer else f"{event.kind} {layer or source.component}",
        "cat": event.kind,
        "args": {"kind": event.kind, "id": event.source, "layer": event.layer, "bytes": event.nbytes},
    }
    return record | {"cname": _STALL_COLOUR} if event.kind == "stall" else record


MAX_ARROWS = 1 << 20
"""Arrows of one device at most: more than a trace has events."""


def _arrows(events: Sequence[Event], process: int, origin_ns: int) -> list[dict[str, Any]]:
    """Flow events from each copy to the first visit of its layer that starts after the copy has ended."""
    arrows: list[dict[str, Any]] = []
    arrived: dict[tuple[str, int | None], Event] = {}
    in_order = sorted(
        (e for e in events if e.kind in ("visit", "copy")), key=lambda e: e.start_ns if e.kind == "visit" else e.end_ns
    )
    for event in in_order:
        key = (event.source, event.layer)
        if event.kind == "copy":
            arrived[key] = event
        elif (copy := arrived.pop(key, None)) is not None:
            number = process * MAX_ARROWS + len(arrows) // 2  # Perfetto requires integers
            common = {"pid": process, "cat": "flow", "name": "used by", "id": number}
            arrows.append(common | {"ph": "s", "tid": 2, "ts": _us(copy.start_ns - origin_ns)})
            arrows.append(common | {"ph": "f", "bp": "e", "tid": 1, "ts": _us(event.start_ns - origin_ns)})
    return arrows


def _copied(events: Sequence[Event], process: int, origin_ns: int) -> list[dict[str, Any]]:
    """Counter events: the total of bytes copied so far, at the end of each copy."""
    total, counts = 0, []
    for event in sorted((event for event in events if event.kind == "copy"), key=lambda event: event.end_ns):
        total += event.nbytes
        ts = _us(event.end_ns - origin_ns)
        counts.append({"ph": "C", "pid": process, "tid": 0, "ts": ts, "name": "copied", "args": {"bytes": total}})
    return counts


def _us(ns: int) -> float:
    return ns / 1000


def events_from_chrome(data: object) -> tuple[list[Event], list[Source]]:
    """(events, sources) of a document that `chrome_trace` made. Raises PlanError for any other document."""
    if not isinstance(data, Mapping) or not isinstance(data.get("traceEvents"), list):
        raise PlanError("trace: no list traceEvents in it; allowed: a Chrome trace saved by Layerwise Offload")
    other = data.get("otherData")
    if not isinstance(other, Mapping) or other.get("schema") != SCHEMA:
        raise PlanError(f"trace: otherData.schema is not {SCHEMA}; allowed: a trace saved by Layerwise Offload")
    origin_ns = other.get("origin_ns", 0)
    try:
        sources = [
            Source(str(entry["id"]), str(entry["component"]), str(entry["device"]), tuple(map(str, entry["layers"])))
            for entry in other["components"]
        ]
        events = [_read(record, origin_ns) for record in data["traceEvents"] if record.get("ph") == "X"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"trace: a part of it is not as Layerwise Offload writes it ({error!r})") from None
    return events, sources


def _read(record: Mapping[str, Any], origin_ns: int) -> Event:
    args = record["args"]
    if args["kind"] not in KINDS:
        raise ValueError(f"kind {args['kind']!r}")
    start_ns = round(record["ts"] * 1000) + origin_ns
    layer = None if args["layer"] is None else int(args["layer"])
    return Event(args["kind"], args["id"], layer, start_ns, start_ns + round(record["dur"] * 1000), int(args["bytes"]))
