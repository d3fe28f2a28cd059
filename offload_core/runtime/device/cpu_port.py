"""A device port for the CPU: the copy lane is a worker thread, the compute lane is the calling thread.

Without an accelerator, the engine runs on it as it is, with the ring in host memory. In tests it stands for a device:
copies really are late, waits really are needed. Knows nothing about layers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from ..files.direct_read import direct_reads
from ..tensors.host_source import Abandoned, ByteSource
from .accelerator_port import SynchronousPort, page_aligned_bytes
from .device_port import Event

_POLL_S = 0.1


@dataclass(slots=True, eq=False)
class LaneEvent:
    """An event. `pending` is the record queued last; a wait binds to the record queued before it."""

    timed: bool = False
    """It measures: what waits for the copy waits for another event, which gets the failure."""
    pending: threading.Event | None = None
    reached_ns: int | None = None
    failure: BaseException | None = None
    """Failure of the copy before the event: every wait for the event raises it."""

    def queue(self) -> threading.Event:
        """The copy lane will reach it. Returns the record, for `reach`."""
        self.pending, self.reached_ns, self.failure = threading.Event(), None, None
        return self.pending

    def reach(self, record: threading.Event | None, failure: BaseException | None = None) -> None:
        """The lane has come to `record`, behind a copy that may have failed; None: the compute lane, which is there."""
        self.failure = failure
        if record is None:
            self.pending = None
        if record is self.pending:
            self.reached_ns = time.perf_counter_ns()


class ThreadedCpuPort(SynchronousPort):
    """Copies on a worker thread, in order. Kernels of the calling thread are complete when they return."""

    asynchronous = True
    shares_host_memory = True

    def __init__(self, while_waiting: Callable[[], None] | None = None) -> None:
        super().__init__("cpu")
        self.while_waiting = while_waiting
        """Called every `_POLL_S` while the caller waits for a read; may raise to give up the wait."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        """Failure of the last copy, for the event that is recorded next."""
        self._copies = 0
        self._abandoned: dict[int, int] = {}
        """By id of the source: number of its last copy that was given up."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """A mapping of its own: huge pages, which are faster to fill, and back to the system as soon as it is freed."""
        return page_aligned_bytes(nbytes)

    def trim(self) -> None:
        """Memory has gone back to the system."""

    def memory(self) -> None:
        """A component on the CPU is planned by what the host has available."""

    def event(self, timed: bool = False) -> Event:
        return LaneEvent(timed)

    def record_copy(self, event: LaneEvent) -> None:
        record = event.queue()

        def mark() -> None:
            failure = None
            if not event.timed:
                failure, self._failure = self._failure, None
            event.reach(record, failure)
            record.set()

        self._queue(mark)

    def record_compute(self, event: LaneEvent) -> None:
        event.reach(None)

    def copy_waits(self, event: LaneEvent) -> None:
        if (reached := event.pending) is not None:
            self._queue(lambda: (reached.wait(), None)[1])

    def compute_waits(self, event: LaneEvent) -> None:
        if event.pending is not None:
            while not event.pending.wait(_POLL_S):
                if self.while_waiting is not None:
                    self.while_waiting()
            if event.failure is not None:
                raise event.failure

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self._queue(lambda: _copy_bytes(destination, source))

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """The ring is host memory: bytes are read straight into it."""
        self._copies += 1
        number = self._copies

        def read() -> None:
            if number <= self._abandoned.get(id(source), 0):
                raise Abandoned
            source.read(destination[: source.nbytes], 0)

        self._queue(read)

    def abandon(self, sources: Collection[ByteSource]) -> None:
        self._abandoned |= {id(source): self._copies for source in sources}

    def host_waits(self, event: LaneEvent) -> None:
        self.compute_waits(event)

    def happened(self, event: LaneEvent) -> bool:
        return event.pending is None or (event.pending.is_set() and event.failure is None)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: LaneEvent) -> None:
        _copy_bytes(destination, source)
        self.record_compute(done)

    def drain(self) -> None:
        if self._thread is not None:
            idle = threading.Event()
            self._queue(idle.set)
            idle.wait()

    def elapsed_ns(self, start: LaneEvent, end: LaneEvent) -> int | None:
        if start.reached_ns is None or end.reached_ns is None:
            return None
        return end.reached_ns - start.reached_ns

    def close(self) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _queue(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layerwise-offload-copies", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _run(self) -> None:
        with direct_reads():
            while (work := self._work.get()) is not None:
                try:
                    work()
                except BaseException as failure:  # raised in the thread that waits; the lane must go on
                    self._failure = failure


def _copy_bytes(destination: torch.Tensor, source: torch.Tensor) -> None:
    with torch.inference_mode(False), torch.no_grad():
        destination.copy_(source)
