"""A trace of events: a ring buffer of fixed size that never blocks and can be read from any thread.

A record is packed by one call into memory allocated at the start, and unpacked by one call, so that readers never see a
part of a record. Old records are overwritten.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import multimode
from typing import NamedTuple

from ..fields import as_int

KINDS = ("visit", "stall", "copy", "pass", "evict", "plan")
VISIT, STALL, COPY, PASS, EVICT, PLAN = range(len(KINDS))

DEFAULT_CAPACITY = 16384
"""Records kept: 0.8 MB. A model of 60 layers writes some 180 in a measured pass."""

MAX_SOURCES = 256
"""Sources kept, the newest ones. Records of older sources are skipped by readers."""

_RECORD = struct.Struct("<qHHiqqq")
_NO_LAYER = -1


class Event(NamedTuple):
    """One record. `source` is the id of the component, `layer` an index into its layers or None; times are in ns."""

    kind: str
    source: str
    layer: int | None
    start_ns: int
    end_ns: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """A component that writes records: its id, its display name, its device, the names of its layers."""

    id: str
    component: str
    device: str
    layers: tuple[str, ...] = ()


class Trace:
    """The ring buffer. Any thread may read. If two threads write at the same time, one of the records may be lost."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = as_int("capacity", capacity, 1, 1 << 20)
        self._memory = bytearray(_RECORD.size * capacity)
        self._written = 0
        self._sources: dict[int, Source] = {}
        self._next_source = 0
        self.watched = False
        """Whether a client displays the trace now: writers then measure every pass."""

    def watch(self, watched: bool) -> None:
        """A client displays the trace from now on, or no longer."""
        self.watched = watched

    @property
    def written(self) -> int:
        """Number of records written so far, which is the number of the next one."""
        return self._written

    def add_source(self, source: Source) -> int:
        """Registers a component. Returns the number to pass to `append` as its source."""
        number = self._next_source = (self._next_source + 1) % (1 << 16)
        self._sources.pop(number, None)
        self._sources[number] = source
        while len(self._sources) > MAX_SOURCES:
            del self._sources[next(iter(self._sources))]
        return number

    def sources(self) -> tuple[Source, ...]:
        return tuple(self._sources.values())

    def append(self, kind: int, source: int, layer: int | None, start_ns: int, end_ns: int, nbytes: int = 0) -> None:
        """Writes one record in place of the oldest. `kind` is an index into `KINDS`."""
        number = self._written
        index = _NO_LAYER if layer is None else layer
        offset = number % self._capacity * _RECORD.size
        _RECORD.pack_into(self._memory, offset, number + 1, kind, source, index, start_ns, end_ns, nbytes)
        self._written = number + 1

    def since(self, number: int = 0, limit: int | None = None) -> tuple[list[Event], int]:
        """(records, number to continue from): the kept records from `number` on, at most the newest `limit`."""
        end = self._written
        first = max(number, end - self._capacity, 0)
        if limit is not None:
            first = max(first, end - limit)
        events = []
        for record in range(first, end):
            offset = record % self._capacity * _RECORD.size
            stamp, kind, source_number, layer, start_ns, end_ns, nbytes = _RECORD.unpack_from(self._memory, offset)
            source = self._sources.get(source_number)
            if stamp != record + 1 or source is None:  # overwritten meanwhile, or by a source that is not kept
                continue
            index = None if layer == _NO_LAYER else layer
            events.append(Event(KINDS[kind], source.id, index, start_ns, end_ns, nbytes))
        return events, end

    def forget(self) -> None:
        """Drops all records; the numbering continues."""
        self._memory = bytearray(len(self._memory))


def newest_pass(events: Sequence[Event], source: str) -> list[Event]:
    """The device events of the last completely measured pass of `source`, in the order of their starts.

    A pass starts at each visit of its first layer. That is the earliest layer with at least the most common number of
    visits, which excludes a connector that is visited once before all passes. A pass with at most half as many visits
    as the longest one was not measured completely.
    """
    events = device_events(events, source)
    visits = sorted((event for event in events if event.kind == "visit"), key=lambda event: event.start_ns)
    if not visits:
        return []
    counts = Counter(visit.layer for visit in visits)
    usual = multimode(counts.values())[-1]
    first = next(visit.layer for visit in visits if counts[visit.layer] >= usual)
    passes: list[list[Event]] = [[]]
    for visit in visits:
        if visit.layer == first and passes[-1]:
            passes.append([])
        passes[-1].append(visit)
    longest = max(map(len, passes))
    newest = next(candidate for candidate in reversed(passes) if 2 * len(candidate) > longest)
    start, end = newest[0].start_ns, newest[-1].end_ns
    start = min([start, *(event.start_ns for event in events if event.kind == "stall" and event.end_ns == start)])
    overlapping = (event for event in events if event.end_ns > start and event.start_ns < end)
    return sorted(overlapping, key=lambda event: (event.start_ns, event.end_ns))


def device_events(events: Sequence[Event], source: str) -> list[Event]:
    """The visits, stalls and copies of one component."""
    return [event for event in events if event.source == source and event.kind in ("visit", "stall", "copy")]
