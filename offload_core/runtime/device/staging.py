"""Copies from files and from pageable memory, queued on the copy lane like any other, through page-locked slots.

A device copies asynchronously only from page-locked memory. Bytes that lie elsewhere are read, chunk by chunk, into a
small ring of slots by reader threads, and copied on by a courier thread on the same copy lane, in the order of the
calls.

`StagedPort` wraps a port of any kind. While nothing is staged, every call goes straight to it. While something is, all
calls for the copy lane (copies, records, waits) are queued for the courier, so that the lane's order, on which the
engine's rules rest, stays the order of the calls. Why this is correct:

* A slot is filled again only after the copy out of it is complete: the reader makes the host wait for that.
* `compute_waits` for an event that the courier has not recorded yet blocks the calling thread until it has: a wait
  issued before its record would be no wait.
* A wait of the copy lane that the courier issues late may find its event recorded again. It then waits for a later
  kernel than needed. That cannot deadlock: the compute lane only waits for what the courier has issued already.
* A read that fails marks the next recorded event as failed: every wait for it raises the error, so the bytes are never
  used. Later copies are not affected.

Knows nothing about layers or files: a source is anything that fills a range of bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from ..files.direct_read import direct_reads
from ..tensors.host_source import Abandoned, ByteSource
from .device_port import DevicePort, Event

SLOT_BYTES = 16 << 20
SLOTS = 4
READERS = 2
"""One reads while the other waits for its slot; two keep a disk busy. Staging takes no memory but the slots."""

_POLL_S = 0.1


@dataclass(slots=True, eq=False)
class StagedEvent:
    """An event of the inner port, with the courier's progress and the failure of the copy before it."""

    inner: Event
    timed: bool = False
    """It measures: what waits for the copy waits for another event, which gets the failure."""
    number: int = 0
    """Number of the piece of the courier's work that records it; 0: recorded by the caller."""
    failure: BaseException | None = None


@dataclass(slots=True)
class _Slot:
    buffer: torch.Tensor
    emptied: Event


@dataclass(slots=True, eq=False)
class _Job:
    """One copy from a source."""

    destination: torch.Tensor
    source: ByteSource
    failure: BaseException | None = None

    def fail(self, failure: BaseException) -> None:
        """The bytes are not to be used. The first failure counts."""
        self.failure = self.failure or failure


@dataclass(slots=True, eq=False)
class _Chunk:
    """One piece of a copy: what goes through one slot at once."""

    job: _Job
    start: int
    end: int
    number: int
    is_read: bool = False

    def finish_read(self) -> None:
        """Its slot is filled, or its copy has failed."""
        self.is_read = True


class StagedPort:
    """A device port that can copy from any source. `threads=False`: all in the calling thread, for proofs."""

    stages_unpinned = True

    def __init__(
        self,
        inner: DevicePort,
        while_waiting: Callable[[], None] | None = None,
        *,
        slot_bytes: int = SLOT_BYTES,
        slots: int = SLOTS,
        threads: bool = True,
    ) -> None:
        self.inner = inner
        self.device = inner.device
        self.asynchronous = inner.asynchronous
        self.shares_host_memory = inner.shares_host_memory
        self.pins_in_place = inner.pins_in_place
        self.segment_bytes = inner.segment_bytes
        # Calls that neither lane's order depends on are the inner port's own.
        self.empty, self.copy_on_compute, self.before_release = inner.empty, inner.copy_on_compute, inner.before_release
        self.peer_memory, self.copy_across_on_compute = inner.peer_memory, inner.copy_across_on_compute
        self.host_empty, self.host_pin, self.host_release = inner.host_empty, inner.host_pin, inner.host_release
        self.trim, self.memory = inner.trim, inner.memory
        self.while_waiting = while_waiting
        """Called every `_POLL_S` while the caller waits for a read; may raise to give up the wait."""
        self._slot_bytes, self._slot_count, self._threaded = slot_bytes, slots, threads
        self._slots: list[_Slot] = []
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._work: deque[_Chunk | Callable[[], None]] = deque()
        self._unread: deque[_Chunk] = deque()
        self._queued = self._done = 0
        """Pieces of work queued for the courier, and done by it. Equal: callers use the lane directly."""
        self._chunks = self._sent = 0
        self._failure: BaseException | None = None
        """Failure of the last copy, for the event that is recorded next."""
        self._closed = False

    # ------------------------------------------------------------------ what need not wait for the courier

    def event(self, timed: bool = False) -> StagedEvent:
        return StagedEvent(self.inner.event(timed), timed)

    def record_compute(self, event: StagedEvent) -> None:
        event.number, event.failure = 0, None
        self.inner.record_compute(event.inner)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: StagedEvent) -> None:
        done.number, done.failure = 0, None
        self.inner.copy_back(destination, source, done.inner)

    def host_waits(self, event: StagedEvent) -> None:
        self._until_issued(event)
        self.inner.host_waits(event.inner)

    # ------------------------------------------------------------------ the copy lane

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """Queue a copy of all of a source's bytes on the copy lane."""
        self.prepare_reads()
        job = _Job(destination, source)
        for start in range(0, source.nbytes, self._slot_bytes):
            chunk = _Chunk(job, start, min(start + self._slot_bytes, source.nbytes), self._chunks)
            self._chunks += 1  # first: after an interrupt, two chunks with one number would be read into one slot
            self._hand_over(chunk)
        self._hand_over(lambda: self._take_failure(job))

    def _take_failure(self, job: _Job) -> None:
        self._failure = job.failure

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        if self._done == self._queued:
            self.inner.copy(destination, source)
        else:
            self._hand_over(lambda: self.inner.copy(destination, source))

    def copy_across(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        if self._done == self._queued:
            self.inner.copy_across(destination, source)
        else:
            self._hand_over(lambda: self.inner.copy_across(destination, source))

    def copy_waits(self, event: StagedEvent) -> None:
        if self._done == self._queued:
            self.inner.copy_waits(event.inner)
        else:
            self._hand_over(lambda: self.inner.copy_waits(event.inner))

    def record_copy(self, event: StagedEvent) -> None:
        if self._done == self._queued:
            event.number = 0
            self._record(event)
        else:
            event.number = self._queued + 1
            self._hand_over(lambda: self._record(event))

    def _record(self, event: StagedEvent) -> None:
        if not event.timed:
            event.failure, self._failure = self._failure, None
        self.inner.record_copy(event.inner)

    def compute_waits(self, event: StagedEvent) -> None:
        if event.number > self._done:
            self._until_issued(event)
        if event.failure is not None:
            raise event.failure
        self.inner.compute_waits(event.inner)

    def _until_issued(self, event: StagedEvent) -> None:
        with self._change:
            while event.number > self._done:
                self._change.wait(_POLL_S)
                if self.while_waiting is not None:
                    self.while_waiting()

    def happened(self, event: StagedEvent) -> bool:
        return event.number <= self._done and event.failure is None and self.inner.happened(event.inner)

    def elapsed_ns(self, start: StagedEvent, end: StagedEvent) -> int | None:
        if start.number > self._done or end.number > self._done:
            return None
        return self.inner.elapsed_ns(start.inner, end.inner)

    def abandon(self, sources: Collection[ByteSource]) -> None:
        """Give up unread chunks of these sources. Their events fail, so that the bytes cannot be used."""
        given_up = set(map(id, sources))
        with self._change:
            for chunk in self._unread:
                if id(chunk.job.source) in given_up:
                    chunk.job.fail(Abandoned())

    def drain(self) -> None:
        with self._change:
            while self._done != self._queued:
                self._change.wait()
        self.inner.drain()

    def close(self) -> None:
        """Finish the queued work, end the threads and release the slots."""
        self.drain()
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            self.inner.host_release(slot.buffer)
        self._threads, self._slots, self._closed = [], [], False
        self.inner.close()

    # ------------------------------------------------------------------ reader and courier threads

    def prepare_reads(self) -> None:
        if self._slots:
            return
        with torch.inference_mode(False):  # other threads write to them
            for _ in range(self._slot_count):
                buffer, _ = self.inner.host_empty(self._slot_bytes, True)
                self._slots.append(_Slot(buffer, self.inner.event()))
        if self._threaded:
            loops = [self._deliver, *[self._read_ahead] * READERS]
            self._threads = [
                threading.Thread(target=loop, name=f"layerwise-offload-staging-{number}", daemon=True)
                for number, loop in enumerate(loops)
            ]
            for thread in self._threads:
                thread.start()

    def _hand_over(self, work: _Chunk | Callable[[], None]) -> None:
        """Queue work for the courier. Without threads, do it now."""
        if not self._threaded:
            if isinstance(work, _Chunk):
                self._read(work)
            self._carry_out(work)
            return
        with self._change:
            self._queued += 1
            self._work.append(work)
            if isinstance(work, _Chunk):
                self._unread.append(work)
            self._change.notify_all()

    @direct_reads()
    def _read_ahead(self) -> None:
        """A reader thread: fills the next free slot with the next queued chunk."""
        while True:
            with self._change:
                while not (self._unread and self._unread[0].number < self._sent + self._slot_count):
                    if self._closed:
                        return
                    self._change.wait()
                chunk = self._unread.popleft()
            self._read(chunk)
            with self._change:
                chunk.finish_read()
                del chunk  # a waiting thread must not keep device memory alive
                self._change.notify_all()

    def _read(self, chunk: _Chunk) -> None:
        slot, job = self._slots[chunk.number % self._slot_count], chunk.job
        if job.failure is not None:
            return
        try:
            self.inner.host_waits(slot.emptied)
            job.source.read(slot.buffer[: chunk.end - chunk.start], chunk.start)
        except BaseException as failure:  # raised by each wait for the copy; the lane must go on
            job.fail(failure)

    def _deliver(self) -> None:
        """The courier thread: does the queued work of the copy lane, in order."""
        while True:
            with self._change:
                while not self._work or (isinstance(self._work[0], _Chunk) and not self._work[0].is_read):
                    if self._closed and not self._work:
                        return
                    self._change.wait()
                work = self._work[0]
            try:
                self._carry_out(work)
            except BaseException as failure:  # a dead courier would block all waits for ever
                self._failure = failure
            with self._change:
                self._work.popleft()
                del work  # as above
                self._done += 1
                self._change.notify_all()

    def _carry_out(self, work: _Chunk | Callable[[], None]) -> None:
        if isinstance(work, _Chunk):
            self._send(work)
        else:
            work()

    def _send(self, chunk: _Chunk) -> None:
        slot, job = self._slots[chunk.number % self._slot_count], chunk.job
        if job.failure is None:
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self.inner.copy(job.destination[chunk.start : chunk.end], slot.buffer[: chunk.end - chunk.start])
                    self.inner.record_copy(slot.emptied)
            except BaseException as failure:
                job.fail(failure)
        self._sent = chunk.number + 1
