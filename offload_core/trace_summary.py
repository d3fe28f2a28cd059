"""What a run cost, in the few figures that people compare. From counters, or from the events of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .trace import Event

__all__ = ["RunNumbers", "TraceSummary", "run_numbers", "summarise"]


@dataclass(frozen=True, slots=True)
class RunNumbers:
    """The five figures of `docs/formats.md`; None is not known yet."""

    stall_pct: float | None
    bytes_per_pass: int | None
    copy_bytes_per_s: float | None
    hit_rate: float | None
    headroom_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_numbers(
    now: Mapping[str, int],
    before: Mapping[str, int],
    last_pass_bytes: int | None = None,
    headroom_bytes: int | None = None,
) -> RunNumbers:
    """From counters now and when the run began: see `runtime/counters.py` for their names.

    `last_pass_bytes`: what the last pass copied; without it, the mean of the run's passes. A link rate that was
    measured before this run still counts: it is the same link.
    """

    def grown(name: str) -> int:
        return now.get(name, 0) - before.get(name, 0)

    measured = grown("stall_ns") + grown("compute_ns")
    passes, served = grown("passes"), grown("prefetch_hits") + grown("demand_loads")
    if last_pass_bytes is None and passes:
        last_pass_bytes = grown("bytes_copied") // passes
    counters = now if not grown("copy_ns") else {name: grown(name) for name in ("timed_copy_bytes", "copy_ns")}
    copy_ns = counters.get("copy_ns", 0)
    return RunNumbers(
        stall_pct=round(100 * grown("stall_ns") / measured, 2) if measured else None,
        bytes_per_pass=last_pass_bytes if passes else None,
        copy_bytes_per_s=round(counters["timed_copy_bytes"] * 1e9 / copy_ns) if copy_ns else None,
        hit_rate=round(grown("prefetch_hits") / served, 4) if served else None,
        headroom_bytes=headroom_bytes,
    )


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Of one component's events on the device.

    visits, stalls, copies    how many were measured
    span_ns                   from the first to the last of them
    compute_ns, stall_ns      layers at work; compute waiting for copies
    copy_ns, copied_bytes     the copies
    hidden_ns                 how much of the copies' time layers were at work
    stall_pct                 of compute and stall together; None without visits
    copy_bytes_per_s          None without copies
    """

    source: str
    visits: int
    stalls: int
    copies: int
    span_ns: int
    compute_ns: int
    stall_ns: int
    copy_ns: int
    copied_bytes: int
    hidden_ns: int
    stall_pct: float | None
    copy_bytes_per_s: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(events: Sequence[Event]) -> list[TraceSummary]:
    """One summary for each component that has events on the device, in the order of their first."""
    sources = dict.fromkeys(event.source for event in events)
    return [_summary(source, mine) for source in sources if (mine := _on_device(events, source))]


def _on_device(events: Sequence[Event], source: str) -> list[Event]:
    return [e for e in events if e.source == source and e.kind in ("visit", "stall", "copy")]


def _summary(source: str, events: Sequence[Event]) -> TraceSummary:
    of: dict[str, list[Event]] = {"visit": [], "stall": [], "copy": []}
    for event in events:
        of[event.kind].append(event)
    ns = {kind: sum(e.end_ns - e.start_ns for e in mine) for kind, mine in of.items()}
    copied = sum(e.nbytes for e in of["copy"])
    busy = ns["visit"] + ns["stall"]
    return TraceSummary(
        source=source,
        visits=len(of["visit"]),
        stalls=len(of["stall"]),
        copies=len(of["copy"]),
        span_ns=max(e.end_ns for e in events) - min(e.start_ns for e in events),
        compute_ns=ns["visit"],
        stall_ns=ns["stall"],
        copy_ns=ns["copy"],
        copied_bytes=copied,
        hidden_ns=overlap_ns(of["copy"], of["visit"]),
        stall_pct=round(100 * ns["stall"] / busy, 2) if busy else None,
        copy_bytes_per_s=round(copied * 1e9 / ns["copy"]) if ns["copy"] else None,
    )


def overlap_ns(first: Sequence[Event], second: Sequence[Event]) -> int:
    """How long both are under way; events of one kind do not overlap each other."""
    one, other = (sorted((e.start_ns, e.end_ns) for e in events) for events in (first, second))
    total = i = j = 0
    while i < len(one) and j < len(other):
        total += max(0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total
