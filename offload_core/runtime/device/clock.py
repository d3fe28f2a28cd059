"""The times of a device's events on one scale, as the trace needs them."""

from __future__ import annotations

import time

from .device_port import DevicePort, Event

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
