"""A device port for the CPU: the copy lane is a worker thread, the compute lane is whoever calls.

It serves two ends. On a machine without an accelerator the engine runs as it is, with the ring in host memory. And it
is the honest double of a device in tests: copies are really late, waits are really needed. It knows nothing about
layers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection

import torch

from .accelerator_port import page_aligned_bytes
from .device_port import DeviceMemory, Event
from .direct_read import direct_reads
from .host_source import Abandoned, ByteSource

_POLL_S = 0.1


class LaneEvent:
    """A point on a lane. `pending` is the record that was queued last; a wait binds to the record queued before it."""

    __slots__ = ("failure", "pending", "reached_ns")

    def __init__(self) -> None:
        self.pending: threading.Event | None = None
        self.reached_ns: int | None = None
        self.failure: BaseException | None = None
        """Of the copy that the event follows: whoever waits for it gets the error and not the bytes, each time."""


class ThreadedCpuPort:
    """Copies on a worker thread, in order; the caller's thread is the compute lane and finishes what it issues."""

    asynchronous = True
    shares_host_memory = True
    pins_in_place = True
    stages_unpinned = False
    segment_bytes = 1

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.while_waiting: Callable[[], None] | None = None
        """Called now and then while the caller is kept waiting for a read; may raise, to give the wait up."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        """Of the copy that came last; the event that is recorded next is to carry it."""
        self._copies = 0
        self._abandoned: dict[int, int] = {}
        """By source: the last of its copies that nobody wants."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """A mapping of its own: huge pages, which a ring is filled in much faster, and back to the system at once."""
        return page_aligned_bytes(nbytes)

    def trim(self) -> None:
        pass

    def event(self, timed: bool = False) -> Event:
        return LaneEvent()

    def record_copy(self, event: LaneEvent) -> None:
        reached = event.pending = threading.Event()
        event.reached_ns = event.failure = None

        def mark() -> None:
            event.failure, self._failure = self._failure, None
            if event.pending is reached:
                event.reached_ns = time.perf_counter_ns()
            reached.set()

        self._queue(mark)

    def record_compute(self, event: LaneEvent) -> None:
        event.pending = event.failure = None  # the compute lane has already finished all it was given
        event.reached_ns = time.perf_counter_ns()

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
        """The ring is host memory: what is read goes straight into it."""
        self._copies += 1
        number = self._copies

        def read() -> None:
            if number <= self._abandoned.get(id(source), 0):
                raise Abandoned
            source.read(destination[: source.nbytes], 0)

        self._queue(read)

    def prepare_reads(self) -> None:
        pass

    def abandon(self, sources: Collection[ByteSource]) -> None:
        self._abandoned = {id(source): self._copies for source in sources}

    def host_waits(self, event: LaneEvent) -> None:
        self.compute_waits(event)

    def happened(self, event: LaneEvent) -> bool:
        return event.pending is None or (event.pending.is_set() and event.failure is None)

    def before_release(self) -> None:
        pass

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        _copy_bytes(destination, source)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: LaneEvent) -> None:
        _copy_bytes(destination, source)  # the compute lane has already finished all it was given
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

    def memory(self) -> DeviceMemory | None:
        return None

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        return page_aligned_bytes(nbytes), False

    def host_pin(self, buffer: torch.Tensor) -> bool:
        return False

    def host_release(self, buffer: torch.Tensor) -> None:
        pass

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
                except BaseException as failure:  # handed to the thread that waits; the lane must go on
                    self._failure = failure


def _copy_bytes(destination: torch.Tensor, source: torch.Tensor) -> None:
    with torch.inference_mode(False), torch.no_grad():
        destination.copy_(source)
