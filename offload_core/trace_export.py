"""Events as Chrome trace JSON and back: what Perfetto opens without any of our code.

The format (Chrome's "Trace Event Format", kept alive by Perfetto) wants the slices of one track to nest. So there is
one track per stream, slices are complete events ("X"), and where two clock readings make neighbours overlap, the later
one is cut.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import PlanError
from .trace import KINDS, Event, Source

__all__ = ["SCHEMA", "chrome_trace", "events_from_chrome"]

SCHEMA = 1
TRACKS = ("compute", "copy", "host")
_TRACK_OF = {"visit": "compute", "stall": "compute", "copy": "copy", "pass": "host", "evict": "host", "plan": "host"}
_STALL_COLOUR = "terrible"
"""The format's own name for its red."""


def chrome_trace(events: Iterable[Event], sources: Iterable[Source]) -> dict[str, Any]:
    """The whole document. Events of components that `sources` does not name are left out."""
    known = {source.id: source for source in sources}
    events = sorted((e for e in events if e.source in known), key=lambda e: (e.start_ns, -e.end_ns))
    devices = {device: number for number, device in enumerate(sorted({s.device for s in known.values()}), 1)}
    origin_ns = min((e.start_ns for e in events), default=0)
    written: list[dict[str, Any]] = []
    for device, process in devices.items():
        written += _names(device, process)
        mine = [e for e in events if known[e.source].device == device]
        for number, track in enumerate(TRACKS, 1):
            slices = _nested([e for e in mine if _TRACK_OF[e.kind] == track])
            written += [_slice(e, known[e.source], process, number, origin_ns) for e in slices]
        written += _arrows(mine, process, origin_ns)
        written += _copied(mine, process, origin_ns)
    used = dict.fromkeys(e.source for e in events)
    return {
        "traceEvents": written,
        "displayTimeUnit": "ms",
        "otherData": {
            "schema": SCHEMA,
            "made_by": "Layerwise Offload",
            "origin_ns": origin_ns,
            "components": [
                {"id": s.id, "component": s.component, "device": s.device, "layers": list(s.layers)}
                for s in (known[source] for source in used)
            ],
        },
    }


def _names(device: str, process: int) -> list[dict[str, Any]]:
    lines = [_meta(process, 0, "process_name", {"name": f"Layerwise Offload, {device}"})]
    for number, track in enumerate(TRACKS, 1):
        lines.append(_meta(process, number, "thread_name", {"name": track}))
        lines.append(_meta(process, number, "thread_sort_index", {"sort_index": number}))
    return lines


def _meta(process: int, thread: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": name, "args": args}


def _nested(events: Sequence[Event]) -> list[Event]:
    """The events, cut where one would begin inside another and end outside of it, in the order of their starts."""
    result: list[Event] = []
    open_until: list[int] = []
    waiting = [(e.start_ns, -e.end_ns, number, e) for number, e in enumerate(events)]
    heapq.heapify(waiting)
    while waiting:
        start_ns, _, number, event = heapq.heappop(waiting)
        while open_until and open_until[-1] <= start_ns:
            open_until.pop()
        if open_until and open_until[-1] < event.end_ns:
            cut_ns = open_until[-1]  # it takes its turn again, as one that begins there
            heapq.heappush(waiting, (cut_ns, -event.end_ns, number, event._replace(start_ns=cut_ns)))
            continue
        open_until.append(event.end_ns)
        result.append(event)
    return result


def _slice(event: Event, source: Source, process: int, thread: int, origin_ns: int) -> dict[str, Any]:
    layer = None if event.layer is None or event.layer >= len(source.layers) else source.layers[event.layer]
    said = {
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": _us(event.start_ns - origin_ns),
        "dur": _us(event.end_ns - event.start_ns),
        "name": layer if event.kind in ("visit", "copy") and layer else f"{event.kind} {layer or source.component}",
        "cat": event.kind,
        "args": {"kind": event.kind, "id": event.source, "layer": event.layer, "bytes": event.nbytes},
    }
    return said | {"cname": _STALL_COLOUR} if event.kind == "stall" else said


MAX_ARROWS = 1 << 20
"""Of one device: more than a trace has events."""


def _arrows(events: Sequence[Event], process: int, origin_ns: int) -> list[dict[str, Any]]:
    """From each copy to the first visit of its layer that begins after it has ended."""
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
            number = process * MAX_ARROWS + len(arrows) // 2  # Perfetto knows whole numbers only
            common = {"pid": process, "cat": "flow", "name": "used by", "id": number}
            arrows.append(common | {"ph": "s", "tid": 2, "ts": _us(copy.start_ns - origin_ns)})
            arrows.append(common | {"ph": "f", "bp": "e", "tid": 1, "ts": _us(event.start_ns - origin_ns)})
    return arrows


def _copied(events: Sequence[Event], process: int, origin_ns: int) -> list[dict[str, Any]]:
    """A counter of the bytes that the copies of the trace have brought so far."""
    total, counted = 0, []
    for event in sorted((e for e in events if e.kind == "copy"), key=lambda e: e.end_ns):
        total += event.nbytes
        at = _us(event.end_ns - origin_ns)
        counted.append({"ph": "C", "pid": process, "tid": 0, "ts": at, "name": "copied", "args": {"bytes": total}})
    return counted


def _us(ns: int) -> float:
    return ns / 1000


def events_from_chrome(data: object) -> tuple[list[Event], list[Source]]:
    """What `chrome_trace` made, read back. Raises PlanError for anything else, naming what is wrong."""
    if not isinstance(data, Mapping) or not isinstance(data.get("traceEvents"), list):
        raise PlanError("trace: no list traceEvents in it; allowed: a Chrome trace saved by Layerwise Offload")
    other = data.get("otherData")
    if not isinstance(other, Mapping) or other.get("schema") != SCHEMA:
        raise PlanError(f"trace: otherData.schema is not {SCHEMA}; allowed: a trace saved by Layerwise Offload")
    origin_ns = other.get("origin_ns", 0)
    try:
        sources = [
            Source(str(one["id"]), str(one["component"]), str(one["device"]), tuple(map(str, one["layers"])))
            for one in other["components"]
        ]
        events = [_read(one, origin_ns) for one in data["traceEvents"] if one.get("ph") == "X"]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"trace: a part of it is not as Layerwise Offload writes it ({error!r})") from None
    return events, sources


def _read(one: Mapping[str, Any], origin_ns: int) -> Event:
    args = one["args"]
    if args["kind"] not in KINDS:
        raise ValueError(f"kind {args['kind']!r}")
    start_ns = round(one["ts"] * 1000) + origin_ns
    layer = None if args["layer"] is None else int(args["layer"])
    return Event(args["kind"], args["id"], layer, start_ns, start_ns + round(one["dur"] * 1000), int(args["bytes"]))
