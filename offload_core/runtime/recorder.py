"""Writes what one component does into a trace, by times that the engine has measured anyway.

The prefetcher measures the visits and copies of some passes; when it has read their times, it hands them over. While
somebody watches (`Trace.watched`), every pass is measured. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

import time

from ..trace import COPY, EVICT, PASS, PLAN, STALL, VISIT, Source, Trace
from .counters import RunCounters
from .device_port import DevicePort, Event
from .layer import Layer

_TICK_NS = 1_000_000_000
"""Devices tell the time between two events in milliseconds of single precision: measure from a recent one."""


class DeviceClock:
    """Times of a device's events on one scale. Shared by all components on the device; knows no layers.

    Two events take turns: when the newer one has been reached, it becomes the one that is measured from. Its time is
    that of the older one plus what lay between; the first gets the host's time when it was recorded.
    """

    def __init__(self, port: DevicePort) -> None:
        self._port = port
        self._base: Event = port.event(timed=True)
        self._next: Event = port.event(timed=True)
        self._base_ns: int | None = None
        self._next_pending = False
        self._ticked_ns = 0

    def tick(self) -> None:
        """Before a pass that is measured."""
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
        """When the device reached the event; None while it has not, or does not tell."""
        if self._base_ns is None:
            return None
        elapsed = self._port.elapsed_ns(self._base, event)
        return None if elapsed is None else self._base_ns + elapsed


class Recorder:
    """One component's pen. The prefetcher and the controller call it; they have none if nobody gave them one."""

    def __init__(self, trace: Trace, source: Source, clock: DeviceClock) -> None:
        self.trace = trace
        self.clock = clock
        self.last_pass_bytes: int | None = None
        """What the last pass that has ended copied."""
        self._source = trace.add_source(source)
        self._began_ns = 0
        self._bytes_before = 0

    @property
    def watched(self) -> bool:
        return self.trace.watched

    # ------------------------------------------------------------------ on the device

    def visit(self, layer: Layer, stall_ns: int, compute_ns: int) -> None:
        """A measured visit, whose times have been read."""
        start_ns = self.clock.ns(layer.started)
        if start_ns is None:
            return
        if stall_ns > 0:
            self.trace.append(STALL, self._source, layer.index, start_ns - stall_ns, start_ns)
        self.trace.append(VISIT, self._source, layer.index, start_ns, start_ns + compute_ns)

    def copy(self, layer: Layer, start: Event, copy_ns: int) -> None:
        """A measured copy, whose time has been read."""
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
        """Device bytes were given back: a resident layer's, or all the component had (layer None)."""
        now = time.monotonic_ns()
        self.trace.append(EVICT, self._source, None if layer is None else layer.index, now, now, nbytes)

    def planned(self, began_ns: int, device_bytes: int) -> None:
        """A plan has taken effect; `began_ns` by the monotonic clock."""
        self.trace.append(PLAN, self._source, None, began_ns, time.monotonic_ns(), device_bytes)
