"""The figures of a run that people compare, from counters or from the events of a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .events import Event, device_events

_TIMED_COPIES = (("timed_copy_bytes", "copy_ns"), ("timed_peer_bytes", "peer_copy_ns"))
"""Counters of the bytes and times of measured copies: from the host, and from another device."""


def run_numbers(
    now: Mapping[str, int],
    before: Mapping[str, int],
    last_pass_bytes: int | None = None,
    headroom_bytes: int | None = None,
) -> dict[str, float | None]:
    """The five figures of `docs/formats.md` of a run, from counters (named in `runtime/device/counters.py`) now and
    `before` the run. None: not known yet.

    `last_pass_bytes`: bytes copied by the last pass; None: the mean of the run's passes is used. The link rate of
    earlier runs is used if this run has measured none.
    """

    def growth(name: str) -> int:
        return now.get(name, 0) - before.get(name, 0)

    measured_ns = growth("stall_ns") + growth("compute_ns")
    passes, visits = growth("passes"), growth("prefetch_hits") + growth("demand_loads")
    if last_pass_bytes is None and passes:
        last_pass_bytes = growth("bytes_copied") // passes
    copies = [(growth(nbytes), growth(ns)) for nbytes, ns in _TIMED_COPIES]
    if not any(ns for _, ns in copies):
        copies = [(now.get(nbytes, 0), now.get(ns, 0)) for nbytes, ns in _TIMED_COPIES]
    copied_bytes, copy_ns = map(sum, zip(*copies))
    return {
        "stall_pct": round(100 * growth("stall_ns") / measured_ns, 2) if measured_ns else None,
        "bytes_per_pass": last_pass_bytes if passes else None,
        "copy_bytes_per_s": round(copied_bytes * 1e9 / copy_ns) if copy_ns else None,
        "hit_rate": round(growth("prefetch_hits") / visits, 4) if visits else None,
        "headroom_bytes": headroom_bytes,
    }


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """Summary of one component's device events.

    visits, stalls, copies    number of events of each kind
    span_ns                   from the start of the first event to the end of the last
    compute_ns, stall_ns      total time of the visits; total time the compute waited for copies
    copy_ns, copied_bytes     total time and bytes of the copies
    hidden_ns                 time in which a visit and a copy overlap
    stall_pct                 percentage of stalls in compute and stalls together; None without visits
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


def summarise(events: Sequence[Event]) -> list[TraceSummary]:
    """One summary per component with device events, in the order of their first event."""
    sources = dict.fromkeys(event.source for event in events)
    return [_summary(source, selected) for source in sources if (selected := device_events(events, source))]


def _summary(source: str, events: Sequence[Event]) -> TraceSummary:
    visits, stalls, copies = ([event for event in events if event.kind == kind] for kind in ("visit", "stall", "copy"))
    compute_ns, stall_ns, copy_ns = (sum(e.end_ns - e.start_ns for e in kind) for kind in (visits, stalls, copies))
    copied_bytes = sum(copy.nbytes for copy in copies)
    return TraceSummary(
        source=source,
        visits=len(visits),
        stalls=len(stalls),
        copies=len(copies),
        span_ns=max(event.end_ns for event in events) - min(event.start_ns for event in events),
        compute_ns=compute_ns,
        stall_ns=stall_ns,
        copy_ns=copy_ns,
        copied_bytes=copied_bytes,
        hidden_ns=overlap_ns(copies, visits),
        stall_pct=round(100 * stall_ns / (compute_ns + stall_ns), 2) if compute_ns + stall_ns else None,
        copy_bytes_per_s=round(copied_bytes * 1e9 / copy_ns) if copy_ns else None,
    )


def overlap_ns(first: Sequence[Event], second: Sequence[Event]) -> int:
    """Total time in which an event of `first` and one of `second` overlap. Within each, events must not overlap."""
    left, right = (sorted((event.start_ns, event.end_ns) for event in events) for events in (first, second))
    total = i = j = 0
    while i < len(left) and j < len(right):
        total += max(0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return total
