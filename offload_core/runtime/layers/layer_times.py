"""Measures the visits and copies of one layer by events, and reads those that have happened. The host never waits."""

from __future__ import annotations

from typing import NamedTuple

from ..device.counters import RunCounters
from ..device.device_port import DevicePort, Event
from .recorder import Recorder


class CopyMarks(NamedTuple):
    """Start and end of one copy; `across`: it came from another device."""

    start: Event
    end: Event
    across: bool = False


class LayerTimes:
    """Events that only measure. They are recorded again only after they were read, unlike the two that order."""

    __slots__ = (
        *("arrived", "compute_ns", "finished", "started", "timed", "timing"),
        *("_copies_timed", "_copy_marks", "_index", "_nbytes", "_warm"),
    )

    def __init__(self, port: DevicePort, index: int, nbytes: int) -> None:
        """`index` and `nbytes`: of the layer."""
        self._index = index
        self._nbytes = nbytes
        self.arrived: Event = port.event(timed=True)
        self.started: Event = port.event(timed=True)
        self.finished: Event = port.event(timed=True)
        self.timing = False
        """A visit that is being measured is under way."""
        self.timed = False
        """`arrived`, `started` and `finished` belong to one visit whose times have not been read yet."""
        self._warm = False
        """That visit was not in a first pass, so its time is typical."""
        self._copy_marks = [CopyMarks(port.event(timed=True), port.event(timed=True)) for _ in range(2)]
        """Of two copies: look-ahead issues the next copy before the times of the last are read."""
        self._copies_timed = 0
        """How many of `_copy_marks`, from the first on, are recorded and not read yet."""
        self.compute_ns: int | None = None
        """Nanoseconds of the last measured visit, without stalls."""

    # ------------------------------------------------------------------ measuring

    def wait(self, port: DevicePort, copy_done: Event, warm: bool) -> None:
        """Wait for the copy between two events on the compute lane: the time between them is the stall. The visit is
        measured; `warm`: its time is typical."""
        assert not self.timed, "the last measured visit was not read"
        port.record_compute(self.arrived)
        port.compute_waits(copy_done)
        port.record_compute(self.started)
        self.timing = self.timed = True
        self._warm = warm

    def finish(self, port: DevicePort) -> None:
        """The kernels of the measured visit are queued."""
        assert self.timing
        port.record_compute(self.finished)
        self.timing = False

    def void(self) -> None:
        """The visit under way, or the last one, took longer than others do: its times are not read."""
        self.timing = self.timed = False

    def start_copy(self, port: DevicePort) -> Event | None:
        """Before a copy is queued. Returns the event to be recorded after it (`end_copy`); None: it is not measured."""
        if self._copies_timed == len(self._copy_marks):
            return None
        marks = self._copy_marks[self._copies_timed]
        port.record_copy(marks.start)
        return marks.end

    def end_copy(self, port: DevicePort, end: Event, across: bool) -> None:
        """The copy is queued; `across`: from another device."""
        port.record_copy(end)
        self._copy_marks[self._copies_timed] = self._copy_marks[self._copies_timed]._replace(across=across)
        self._copies_timed += 1

    # ------------------------------------------------------------------ reading

    def forget(self) -> None:
        """Discard the compute time, read or not. Times of copies are kept."""
        self.compute_ns, self.timed = None, False

    def read(self, port: DevicePort, counters: RunCounters, recorder: Recorder | None) -> None:
        """Add the times of the last measured visit, and of the measured copies, if their events have happened."""
        elapsed = port.elapsed_ns
        compute = elapsed(self.started, self.finished)
        stall = elapsed(self.arrived, self.started)
        if compute is None or stall is None:
            return
        self.timed = False
        if self._warm:
            self.compute_ns = compute
        counters.timed_visits += 1
        counters.stall_ns += stall
        counters.compute_ns += compute
        if recorder is not None:
            recorder.visit(self._index, self.started, self.finished, stall)
        while self._copies_timed:
            marks = self._copy_marks[0]
            copy = elapsed(marks.start, marks.end)
            if copy is None:
                return
            self._copy_marks.append(self._copy_marks.pop(0))
            self._copies_timed -= 1
            counters.timed_copies += 1
            if marks.across:
                counters.timed_peer_bytes += self._nbytes
                counters.peer_copy_ns += copy
            else:
                counters.timed_copy_bytes += self._nbytes
                counters.copy_ns += copy
            if recorder is not None:
                recorder.copy(self._index, marks.start, marks.end, self._nbytes)
