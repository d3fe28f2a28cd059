"""Writes the events of one component into a trace, from times that the engine measures anyway.

The prefetcher measures the visits and copies of some passes and hands over their times once they are read. While a
trace is watched (`Trace.watched`), every pass is measured. The host never waits for the device here.
"""

from __future__ import annotations

import time

from ..trace import COPY, EVICT, PASS, PLAN, STALL, VISIT, Source, Trace
from .counters import RunCounters
from .device_port import DevicePort, Event
from .layer import Layer

_TICK_NS = 1_000_000_000
"""Devices return the time between two events as milliseconds in single precision: measure from a recent event."""


class DeviceClock:
    """Times of a device's events on one scale. Shared by all components on the device; knows no layers.

    Two events alternate as the base of measurements: the newer one becomes the base once it has happened. Its time is
    the older one's plus the time between them; the first one's is the host's time when it was recorded.
    """

    def __init__(self, port: DevicePort) -> None:
        self._port = port
        self._base: Event = port.event(timed=True)
        self._next: Event = port.event(timed=True)
        self._base_ns: int | None = None
        self._next_pending = False
        self._ticked_ns = 0

    def tick(self) -> None:
        """Advance the base event. Called before a pass that is measured."""
        now = time.monotonic_ns()
        if self._base_ns is None:
            self._port.record_compute(self._base)
            self._base_ns = self._ticked_ns = now
            return
        if self._next_pending:
            elapsed = self._port.elapsed_ns(self._base, self._next)
            if elapsed is None:
                return
            self._base, self._next = self._next, self._base
            self._base_ns += elapsed
            self._next_pending = False
        if now - self._ticked_ns >= _TICK_NS:
            self._port.record_compute(self._next)
            self._next_pending = True
            self._ticked_ns = now

    def ns(self, event: Event) -> int | None:
        """Time of the event in nanoseconds; None if it has not happened, or the device does not tell."""
        if self._base_ns is None:
            return None
        elapsed = self._port.elapsed_ns(self._base, event)
        return None if elapsed is None else self._base_ns + elapsed


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

    @property
    def watched(self) -> bool:
        return self.trace.watched

    # ------------------------------------------------------------------ on the device

    def visit(self, layer: Layer, stall_ns: int, compute_ns: int) -> None:
        """Record a measured visit whose times have been read."""
        start_ns = self.clock.ns(layer.started)
        if start_ns is None:
            return
        if stall_ns > 0:
            self.trace.append(STALL, self._source, layer.index, start_ns - stall_ns, start_ns)
        self.trace.append(VISIT, self._source, layer.index, start_ns, start_ns + compute_ns)

    def copy(self, layer: Layer, start: Event, copy_ns: int) -> None:
        """Record a measured copy whose time has been read."""
        start_ns = self.clock.ns(start)
        if start_ns is not None:
            self.trace.append(COPY, self._source, layer.index, start_ns, start_ns + copy_ns, layer.nbytes)

    # ------------------------------------------------------------------ on the host

    def begin_pass(self, counters: RunCounters) -> None:
        self._began_ns = time.monotonic_ns()
        self._bytes_before = counters.bytes_copied

    def end_pass(self, counters: RunCounters, timing: bool) -> None:
        self.last_pass_bytes = counters.bytes_copied - self._bytes_before
        if timing:
            self.trace.append(PASS, self._source, None, self._began_ns, time.monotonic_ns(), self.last_pass_bytes)

    def evicted(self, layer: Layer | None, nbytes: int) -> None:
        """Record device bytes that were released: a resident layer's, or all of the component's (layer None)."""
        now = time.monotonic_ns()
        self.trace.append(EVICT, self._source, None if layer is None else layer.index, now, now, nbytes)

    def planned(self, began_ns: int, device_bytes: int) -> None:
        """Record that a plan has taken effect; `began_ns` is of the monotonic clock."""
        self.trace.append(PLAN, self._source, None, began_ns, time.monotonic_ns(), device_bytes)
