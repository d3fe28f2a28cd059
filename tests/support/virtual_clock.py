"""A device port on which time is arithmetic: two lanes, a link of a given rate, compute times set by the test.

Copies move their bytes at once, so numbers are right; what they and the kernels *take* is added up in nanoseconds per
lane, and events carry the lane's time. A run gives its makespan exactly, on any machine, in microseconds: this is what
catches an engine that is correct but waits too often, which no race check sees.

The host costs nothing and runs ahead without limit, as the planner's model has it, until it waits for the copy lane
(`drain`), which is counted. Knows nothing about layers; the test says what computes, and what it reads, by `compute`.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import torch

from offload_core.runtime.device.peer_memory import PeerMemory
from offload_core.runtime.tensors.host_source import ByteSource


@dataclass(slots=True)
class VirtualEvent:
    """A moment on a lane, None until it is recorded."""

    ns: int | None = None


class _OtherDevice:
    """Another device's memory beside that of a `VirtualClockPort`."""

    device = torch.device("cpu")

    def __init__(self, port: VirtualClockPort) -> None:
        self._port = port

    def empty(self, nbytes: int) -> torch.Tensor:
        return self._port.other_memory(nbytes)

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        source.read(destination, 0)

    def trim(self) -> None:
        pass

    def memory(self) -> None:
        return None


class VirtualClockPort:
    """A device "cpu" whose lanes are two numbers. `host_waits`, `allocations` and `copied_bytes` count what matters."""

    asynchronous = True
    shares_host_memory = False
    stages_unpinned = False
    pins_in_place = True
    segment_bytes = 1

    def __init__(self, h2d_bytes_per_s: float, moves_bytes: bool = True) -> None:
        """`moves_bytes` False: for sizes that no test machine has. Memory is never touched, so it takes none."""
        self._moves_bytes = moves_bytes
        self.peer_bytes_per_s: float | None = None
        """The rate of copies from another device; None: that of the host's link."""
        self.device = torch.device("cpu")
        self.h2d_bytes_per_s = h2d_bytes_per_s
        self.host_ns = 0
        """When the host issues: 0, until it waits for a lane."""
        self.copy_ns = 0
        self.compute_ns = 0
        self.back_ns = 0
        """When each lane has done what it was given so far."""
        self.host_waits = self.allocations = self.copies = self.copied_bytes = self.copied_back_bytes = 0
        self.record_ns = 0
        """What a lane takes to go on after it has recorded an event. Another lane that waits for the event need not
        wait for that."""
        self.page_lock_bytes_per_s: float | None = None
        """What the host does when it page-locks memory; None: that costs nothing."""
        self.page_locks = 0
        self._stays: list[list[int]] = []
        """Per copy into device memory: first byte, end, begin of the copy, last read."""

    # ------------------------------------------------------------------ the port

    def empty(self, nbytes: int) -> torch.Tensor:
        self.allocations += 1
        return self._memory(nbytes)

    def trim(self) -> None:
        pass

    def event(self, timed: bool = False) -> VirtualEvent:
        return VirtualEvent()

    def record_copy(self, event: VirtualEvent) -> None:
        event.ns = max(self.copy_ns, self.host_ns)
        self.copy_ns = event.ns + self.record_ns

    def record_compute(self, event: VirtualEvent) -> None:
        event.ns = max(self.compute_ns, self.host_ns)
        self.compute_ns = event.ns + self.record_ns

    def copy_waits(self, event: VirtualEvent) -> None:
        self.copy_ns = max(self.copy_ns, event.ns or 0)

    def compute_waits(self, event: VirtualEvent) -> None:
        self.compute_ns = max(self.compute_ns, event.ns or 0)

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        begin = max(self.copy_ns, self.host_ns)
        self.copy_ns = begin + self._move(destination, source)
        self._stays.append([destination.data_ptr(), destination.data_ptr() + destination.numel(), begin, self.copy_ns])

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self.compute_ns = max(self.compute_ns, self.host_ns) + self._move(destination, source)

    def peer_memory(self, device: str) -> PeerMemory:
        return PeerMemory(_OtherDevice(self))

    def copy_across(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """On the same lane, at the rate of the link between the two devices."""
        begin = max(self.copy_ns, self.host_ns)
        self.copy_ns = begin + self._move(destination, source, self.peer_bytes_per_s)
        self._stays.append([destination.data_ptr(), destination.data_ptr() + destination.numel(), begin, self.copy_ns])

    def copy_across_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        begin = max(self.compute_ns, self.host_ns)
        self.compute_ns = begin + self._move(destination, source, self.peer_bytes_per_s)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: VirtualEvent) -> None:
        self.back_ns = max(self.back_ns, self.compute_ns, self.host_ns) + self._move(destination, source)
        self.copied_back_bytes += source.numel()
        self.copied_bytes -= source.numel()
        self.copies -= 1
        done.ns = self.back_ns

    def prepare_reads(self) -> None:
        pass

    def abandon(self, sources: object) -> None:
        pass

    def happened(self, event: VirtualEvent) -> bool:
        return event.ns is None or event.ns <= self.host_ns

    def before_release(self) -> None:
        pass

    def drain(self) -> None:
        self.host_waits += 1
        self.host_ns = max(self.host_ns, self.copy_ns, self.back_ns)

    def elapsed_ns(self, start: VirtualEvent, end: VirtualEvent) -> int | None:
        """As if the device had got that far at every query: a query is not a wait."""
        return None if start.ns is None or end.ns is None else end.ns - start.ns

    def memory(self) -> None:
        return None

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        if pinned:
            self.page_locks += 1
            if self.page_lock_bytes_per_s is not None:
                self.host_ns = max(self.host_ns, self.compute_ns) + round(nbytes * 1e9 / self.page_lock_bytes_per_s)
        return self._memory(nbytes), pinned

    def host_release(self, buffer: torch.Tensor) -> None:
        pass

    def close(self) -> None:
        pass

    # ------------------------------------------------------------------ for tests

    def compute(self, ns: int, *reads: torch.Tensor) -> None:
        """A kernel of `ns` that reads the given tensors."""
        self.compute_ns = max(self.compute_ns, self.host_ns) + ns
        for tensor in reads:
            for stay in reversed(self._stays):
                if stay[0] <= tensor.data_ptr() < stay[1]:
                    stay[3] = self.compute_ns
                    break

    def peak_bytes(self, arena: torch.Tensor) -> int:
        """Most bytes of `arena` in use at once, from the begin of a copy to the last read of what it brought."""
        start, end = arena.data_ptr(), arena.data_ptr() + arena.numel()
        changes = []
        for first, last, begin, read in self._stays:
            if start <= first < end:
                bisect.insort(changes, (begin, last - first))
                bisect.insort(changes, (read, first - last))  # sorts before a begin at the same time
        alive = peak = 0
        for _, change in changes:
            alive += change
            peak = max(peak, alive)
        return peak

    def _memory(self, nbytes: int) -> torch.Tensor:
        make = torch.zeros if self._moves_bytes else torch.empty
        return make(nbytes, dtype=torch.uint8)

    def other_memory(self, nbytes: int) -> torch.Tensor:
        """Bytes of the other device. To fill them takes no time here: it is not done in a pass."""
        return self._memory(nbytes)

    def _move(self, destination: torch.Tensor, source: torch.Tensor, bytes_per_s: float | None = None) -> int:
        if self._moves_bytes:
            with torch.inference_mode(False), torch.no_grad():
                destination.copy_(source)
        self.copies += 1
        self.copied_bytes += source.numel()
        return round(source.numel() * 1e9 / (bytes_per_s or self.h2d_bytes_per_s))
