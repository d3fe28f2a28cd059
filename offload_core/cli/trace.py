"""`python3 -m offload_core trace`: summarises a saved trace, or writes the trace of a simulated plan.

A trace is Chrome trace JSON that the pack has saved: the panel's button, or the route in `docs/formats.md`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import PlanError
from ..planning.cost_model import compute_times
from ..planning.planner import make_plan
from ..planning.simulate import steady_events
from ..trace.events import Event, Source
from ..trace.trace_export import chrome_trace, events_from_chrome
from ..trace.trace_summary import summarise
from ..units import count
from .json_io import read_json, write_json
from .plan import request_from_json

_COLUMNS = ("id", "component", "kind", "layer", "start_ns", "end_ns", "bytes")


def add_parser(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "trace",
        help="summarise a saved trace, or make the trace of a plan",
        description="Summarise a trace that was saved, or make the trace of one steady pass of a plan.",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a trace that the pack has saved")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the summary as JSON")
    form.add_argument("--csv", action="store_true", help="every event as a line of CSV")
    form.add_argument(
        "--simulate", action="store_true", help="read a planning request on stdin, write a Chrome trace of its plan"
    )


def run(args: argparse.Namespace) -> int:
    """Returns exit code 0. Raises OffloadError for bad input, OSError for a file that cannot be read."""
    if args.simulate == (args.file is not None):
        raise PlanError("trace: give either a FILE or --simulate")
    if args.simulate:
        write_json(_simulated(read_json(sys.stdin.buffer, "request")))
        return 0
    with args.file.open("rb") as stream:
        events, sources = events_from_chrome(read_json(stream, args.file.name))
    if args.csv:
        _write_csv(events, sources)
    elif args.json:
        write_json({"schema": 1, "components": [asdict(summary) for summary in summarise(events)]})
    else:
        print("\n".join(_lines(events, sources)))
    return 0


def _simulated(data: object) -> dict[str, Any]:
    request = request_from_json(data)
    plan = make_plan(request)
    times, _ = compute_times(request.inventory, request.in_place)
    name = f"{plan.component}-plan"
    events = steady_events(plan, times, request.h2d_bytes_per_s, name, request.peer_bytes_per_s)
    return chrome_trace(events, [Source(name, plan.component, plan.device, tuple(layer.name for layer in plan.layers))])


def _lines(events: list[Event], sources: list[Source]) -> list[str]:
    by_id = {source.id: source for source in sources}
    lines = []
    for summary in summarise(events):
        source = by_id[summary.source]
        lines.append(
            f"{summary.source}: {source.component} on {source.device}, {count(len(source.layers), 'layer', 'layers')}"
        )
        lines.append(
            f"  measured {count(summary.visits, 'visit', 'visits')} in {summary.span_ns / 1e6:.1f} ms: "
            f"{summary.compute_ns / 1e6:.1f} ms compute, "
            f"{summary.stall_ns / 1e6:.1f} ms waiting for copies ({summary.stall_pct or 0:.1f} %)"
        )
        if summary.copies:
            hidden = summary.hidden_ns / summary.copy_ns if summary.copy_ns else 0.0
            lines.append(
                f"  {count(summary.copies, 'copy', 'copies')}, {summary.copied_bytes / 1e9:.3f} GB at "
                f"{(summary.copy_bytes_per_s or 0) / 1e9:.2f} GB/s, {hidden:.0%} of it while layers were at work"
            )
    return lines or ["no events of any component in it: nothing had run when it was saved"]


def _write_csv(events: list[Event], sources: list[Source]) -> None:
    by_id = {source.id: source for source in sources}
    writer = csv.writer(sys.stdout)
    writer.writerow(_COLUMNS)
    for event in sorted(events, key=lambda event: (event.start_ns, event.end_ns)):
        source = by_id.get(event.source, Source(event.source, "", ""))
        layers = source.layers
        layer = layers[event.layer] if event.layer is not None and event.layer < len(layers) else ""
        writer.writerow([event.source, source.component, event.kind, layer, event.start_ns, event.end_ns, event.nbytes])
