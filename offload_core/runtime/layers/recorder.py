"""Writes the events of one component into a trace, from times that the engine measures anyway: of some passes, of every
pass while the trace is watched."""

from __future__ import annotations

import time

from ...trace.events import COPY, EVICT, PASS, PLAN, STALL, VISIT, Source, Trace
from ..device.clock import DeviceClock
from ..device.counters import RunCounters
from ..device.device_port import Event


class Recorder:
    """Writes one component's events. Called by prefetcher and controller, if they have a recorder."""

    def __init__(self, trace: Trace, source: Source, clock: DeviceClock) -> None:
        self.trace = trace
        self.clock = clock
        self.last_pass_bytes: int | None = None
        """Bytes copied in the last complete pass."""
        self._source = trace.add_source(source)
        self._began_ns = 0
        self._bytes_before = 0

    # ------------------------------------------------------------------ on the device

    def visit(self, index: int, started: Event, finished: Event, stall_ns: int) -> None:
        """Record a measured visit of the layer `index`, whose times have been read. All times are the clock's, which
        rounds, so that of two events the later one is never recorded as the earlier."""
        start_ns, end_ns = self.clock.ns(started), self.clock.ns(finished)
        if start_ns is None or end_ns is None:
            return
        if stall_ns > 0:
            self.trace.append(STALL, self._source, index, start_ns - stall_ns, start_ns)
        self.trace.append(VISIT, self._source, index, start_ns, end_ns)

    def copy(self, index: int, start: Event, end: Event, nbytes: int) -> None:
        """Record a measured copy of the layer `index`, whose time has been read."""
        start_ns, end_ns = self.clock.ns(start), self.clock.ns(end)
        if start_ns is not None and end_ns is not None:
            self.trace.append(COPY, self._source, index, start_ns, end_ns, nbytes)

    # ------------------------------------------------------------------ on the host

    def begin_pass(self, counters: RunCounters) -> None:
        self._began_ns = time.monotonic_ns()
        self._bytes_before = counters.bytes_copied

    def end_pass(self, counters: RunCounters, timing: bool) -> None:
        self.last_pass_bytes = counters.bytes_copied - self._bytes_before
        if timing:
            self.trace.append(PASS, self._source, None, self._began_ns, time.monotonic_ns(), self.last_pass_bytes)

    def evicted(self, index: int | None, nbytes: int) -> None:
        """Record device bytes that were released: of the resident layer `index`, or all of the component's (None)."""
        now = time.monotonic_ns()
        self.trace.append(EVICT, self._source, index, now, now, nbytes)

    def planned(self, began_ns: int, device_bytes: int) -> None:
        """Record that a plan has taken effect; `began_ns` is of the monotonic clock."""
        self.trace.append(PLAN, self._source, None, began_ns, time.monotonic_ns(), device_bytes)
