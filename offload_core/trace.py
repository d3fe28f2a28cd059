"""What happened, event by event: a ring buffer of fixed size that never grows, never blocks, and is safe to read.

A record is written by one call that packs it into memory allocated at the start, and is read by one call that unpacks
it: no reader ever sees half of one, from whatever thread it reads. Old records are overwritten. Who writes, when and
by what clock is the writer's business; this module knows nothing about devices, plans or the app.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import multimode
from typing import NamedTuple

from .fields import as_int

__all__ = ["COPY", "EVICT", "KINDS", "PASS", "PLAN", "STALL", "VISIT", "Event", "Source", "Trace"]

KINDS = ("visit", "stall", "copy", "pass", "evict", "plan")
VISIT, STALL, COPY, PASS, EVICT, PLAN = range(len(KINDS))

DEFAULT_CAPACITY = 16384
"""Records that are kept: 0.8 MB. A model of 60 layers writes some 180 in a measured pass."""

MAX_SOURCES = 256
"""Components whose names are kept. What is left in the ring of older ones is read as if it had been overwritten."""

_RECORD = struct.Struct("<qHHiqqq")
_NO_LAYER = -1


class Event(NamedTuple):
    """One record. `source` is the id of the component, `layer` an index into its layers or None. Times in ns."""

    kind: str
    source: str
    layer: int | None
    start_ns: int
    end_ns: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """A component that writes records: its id, its name for people, its device, the names of its layers."""

    id: str
    component: str
    device: str
    layers: tuple[str, ...] = ()


class Trace:
    """The ring. Any thread may read. One should write at a time: of two records at the same instant one may be lost."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = as_int("capacity", capacity, 1, 1 << 20)
        self._memory = bytearray(_RECORD.size * capacity)
        self._written = 0
        self._sources: dict[int, Source] = {}
        self._next_source = 0
        self.watched = False
        """Somebody looks at this moment: writers measure all there is, not only what costs nothing."""

    @property
    def written(self) -> int:
        """Records written since the beginning: the number of the next one."""
        return self._written

    def add_source(self, source: Source) -> int:
        """The number under which the component writes."""
        number = self._next_source = (self._next_source + 1) % (1 << 16)
        self._sources.pop(number, None)
        self._sources[number] = source
        while len(self._sources) > MAX_SOURCES:
            del self._sources[next(iter(self._sources))]
        return number

    def sources(self) -> tuple[Source, ...]:
        return tuple(self._sources.values())

    def append(self, kind: int, source: int, layer: int | None, start_ns: int, end_ns: int, nbytes: int = 0) -> None:
        """Write one record over the oldest."""
        number = self._written
        index = _NO_LAYER if layer is None else layer
        offset = number % self._capacity * _RECORD.size
        _RECORD.pack_into(self._memory, offset, number + 1, kind, source, index, start_ns, end_ns, nbytes)
        self._written = number + 1

    def since(self, number: int = 0, limit: int | None = None) -> tuple[list[Event], int]:
        """The records from `number` on that are still there, the newest `limit` of them, and where to go on next."""
        end = self._written
        first = max(number, end - self._capacity, 0)
        if limit is not None:
            first = max(first, end - limit)
        events = []
        for wanted in range(first, end):
            offset = wanted % self._capacity * _RECORD.size
            found, kind, source, layer, start_ns, end_ns, nbytes = _RECORD.unpack_from(self._memory, offset)
            known = self._sources.get(source)
            if found != wanted + 1 or known is None:  # overwritten while we read, or by nobody we remember
                continue
            index = None if layer == _NO_LAYER else layer
            events.append(Event(KINDS[kind], known.id, index, start_ns, end_ns, nbytes))
        return events, end

    def forget(self) -> None:
        """Drop all records; numbers go on."""
        self._memory = bytearray(len(self._memory))


def newest_pass(events: Sequence[Event], source: str) -> list[Event]:
    """The events on the device of the last pass of `source` that was measured from end to end.

    A pass is a run of visits up to the one that begins again with its first layer: visits are in the order in which
    they ran. The first layer is the earliest of those that were visited as often as most: a connector, through which
    text goes once before all passes, is not. A shorter run at the end is a pass whose rest was not measured, and counts
    only if there is no other.
    """
    visits = sorted((e for e in events if e.source == source and e.kind == "visit"), key=lambda e: e.start_ns)
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
    longest = max(len(one) for one in passes)
    chosen = next(one for one in reversed(passes) if 2 * len(one) > longest)
    start, end = chosen[0].start_ns, chosen[-1].end_ns
    stalls = [e.start_ns for e in events if e.source == source and e.kind == "stall" and e.end_ns == start]
    start = min([start, *stalls])
    return sorted(
        (e for e in events if e.source == source and e.kind in ("visit", "stall", "copy") and _within(e, start, end)),
        key=lambda e: (e.start_ns, e.end_ns),
    )


def _within(event: Event, start_ns: int, end_ns: int) -> bool:
    return event.end_ns > start_ns and event.start_ns < end_ns
