"""A device port that proves ordering: every read and write of device and host bytes is checked by vector clocks.

Four lanes: the host, the compute lane, the copy lane, and one for what is copied back to the host. An operation
carries its lane's clock; two operations of different lanes on the same bytes, one of them a write, must be ordered by
events or by a host wait. If they are not, that is a race, however the numbers came out: everything in here runs
deterministically, in the order it was issued.

The device's memory is one flat host buffer with an allocator of its own, so that memory which was given back is given
out again at once, as a caching allocator would, with everything that happened to it before. Who reads and writes is not
declared by anybody: a `TorchDispatchMode` looks at the arguments of every operator torch runs (`watching`).

What it knows nothing about: layers, rings, plans. What it cannot see: time (see `virtual_clock`), and work that does
not go through torch's dispatcher.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from offload_core.runtime.device.device_port import DeviceMemory
from offload_core.runtime.device.peer_memory import PeerMemory
from offload_core.runtime.tensors.host_source import ByteSource

HOST, COMPUTE, COPY, BACK = 0, 1, 2, 3
LANES = ("host", "compute lane", "copy lane", "lane back")

POISON = 0x7F
"""What fresh, freed and not yet arrived device bytes hold: a NaN in bf16, a huge number in float32."""

_ALIGNMENT = 256


class Race(AssertionError):
    """Two operations touched the same bytes in no particular order."""


@dataclass(slots=True)
class Access:
    """The last time a lane touched some bytes: the lane's own count of operations, and what it was."""

    tick: int
    what: str


@dataclass(slots=True)
class Segment:
    """Bytes up to `end` that were always touched together."""

    end: int
    writer: tuple[int, Access] | None = None
    readers: dict[int, Access] = field(default_factory=dict)


class Shadow:
    """What happened last to every byte of one buffer."""

    def __init__(self, nbytes: int) -> None:
        self._segments = [Segment(nbytes)]

    def between(self, start: int, end: int) -> list[Segment]:
        """The segments that make up [start, end), split where needed."""
        self._split(start)
        self._split(end)
        ends = [segment.end for segment in self._segments]
        return self._segments[bisect_right(ends, start) : bisect_right(ends, end - 1) + 1]

    def _split(self, at: int) -> None:
        ends = [segment.end for segment in self._segments]
        index = bisect_right(ends, at)
        if at == 0 or index == len(ends) or (index and ends[index - 1] == at):
            return
        whole = self._segments[index]
        self._segments.insert(index, Segment(at, whole.writer, dict(whole.readers)))


@dataclass(slots=True, eq=False)
class Region:
    """A buffer that is watched, by its real address."""

    start: int
    end: int
    name: str
    shadow: Shadow


class RaceEvent:
    """What an event carries: the clock of the lane at the moment it was recorded."""

    __slots__ = ("clock", "copies_before", "recorded_on")

    def __init__(self) -> None:
        self.clock: tuple[int, int, int, int] | None = None
        self.recorded_on: int | None = None
        self.copies_before = 0


class _OtherDevice:
    """Another device's memory beside that of a `RacePort`, filled by the host, which waits for that."""

    device = torch.device("cpu")

    def __init__(self, port: RacePort) -> None:
        self._port = port

    def empty(self, nbytes: int) -> torch.Tensor:
        return self._port.peer_empty(nbytes)

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        source.read(destination, 0)

    def trim(self) -> None:
        self._port.peer_reserved_bytes = self._port.peer_bytes

    def memory(self) -> DeviceMemory:
        free = self._port.peer_limit_bytes - self._port.peer_bytes
        return DeviceMemory(free, self._port.peer_limit_bytes)


class RacePort:
    """A device "cpu" with memory of its own. `races` is what was found; `late=True` keeps copies back for longest."""

    asynchronous = True
    shares_host_memory = False
    stages_unpinned = False
    pins_in_place = True
    segment_bytes = 1

    def __init__(self, nbytes: int = 1 << 24, late: bool = False) -> None:
        self.device = torch.device("cpu")
        self.late = late
        self.races: list[str] = []
        self.counts: dict[str, int] = dict.fromkeys(
            ("empty", "drain", "copy", "copy_across", "copy_on_compute", "copy_back", "elapsed", "d2h"), 0
        )
        self.copied_bytes = 0
        self.live_bytes = self.peak_bytes = 0
        self.limit_bytes = nbytes
        self.peer_bytes = 0
        self.peer_reserved_bytes = 0
        """What is not there for others: bytes that are freed are, once they are returned by `trim`."""
        self.peer_limit_bytes = nbytes
        self._clocks = [[0] * len(LANES) for _ in LANES]
        self.in_pass: Callable[[], bool] = lambda: False
        """Whether a pass is under way, in which no host memory may be taken."""
        self._waiting: list[Callable[[], None]] = []
        """Copies that were issued and have not moved a byte yet (only when `late`)."""
        self._coming_back: list[tuple[RaceEvent, Callable[[], None]]] = []
        """The same for copies to the host, with the events that mark their ends."""
        self._issued = 0
        self._quiet = 0
        self.measures_ns: int | None = None  # between any two moments; None: not yet known
        self._memory = (ctypes.c_ubyte * nbytes)()
        self._base = ctypes.addressof(self._memory)
        ctypes.memset(self._base, POISON, nbytes)
        self._free: list[tuple[int, int]] = [(0, nbytes)]
        self._regions = [Region(self._base, self._base + nbytes, "device", Shadow(nbytes))]

    # ------------------------------------------------------------------ the port

    def empty(self, nbytes: int) -> torch.Tensor:
        """Device bytes, lowest address first: what was freed is used again at once."""
        self.counts["empty"] += 1
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        place = next((index for index, (_, room) in enumerate(self._free) if room >= size), None)
        if place is None or self.live_bytes + nbytes > self.limit_bytes:
            raise torch.OutOfMemoryError(f"device out of memory: {nbytes} bytes")
        offset, room = self._free[place]
        self._free[place : place + 1] = [(offset + size, room - size)] if room > size else []
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        memory = (ctypes.c_ubyte * nbytes).from_address(self._base + offset)
        weakref.finalize(memory, self._freed, offset, size, nbytes).atexit = False
        return torch.frombuffer(memory, dtype=torch.uint8)

    def trim(self) -> None:
        pass  # what is freed is used again at once, whatever its size

    def event(self, timed: bool = False) -> RaceEvent:
        return RaceEvent()

    def record_copy(self, event: RaceEvent) -> None:
        self._record(event, COPY)

    def record_compute(self, event: RaceEvent) -> None:
        self._record(event, COMPUTE)

    def copy_waits(self, event: RaceEvent) -> None:
        self._wait(event, COPY)
        self._run_copies_back(event)

    def compute_waits(self, event: RaceEvent) -> None:
        self._wait(event, COMPUTE)
        self._run_copies_back(event)
        if event.recorded_on == COPY:
            self._run_copies(event.copies_before)

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self.counts["copy"] += 1
        self._count_and_check(COPY, "copy", destination, source)
        self._issued += 1
        if self.late:
            with self._unwatched():
                destination.fill_(POISON)  # not to be read until the copy is waited for
            self._waiting.append(lambda: self._move(destination, source))
        else:
            self._move(destination, source)

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self.counts["copy_on_compute"] += 1
        self._count_and_check(COMPUTE, "copy on the compute lane", destination, source)
        self._move(destination, source)

    def peer_memory(self, device: str) -> PeerMemory:
        return PeerMemory(_OtherDevice(self))

    def copy_across(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self.counts["copy_across"] += 1
        self.copy(destination, source)

    def copy_across_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        self.counts["copy_across"] += 1
        self.copy_on_compute(destination, source)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: RaceEvent) -> None:
        self.counts["copy_back"] += 1
        if destination.numel() != source.numel() or not self.holds(source) or self.holds(destination):
            raise AssertionError(f"copy back: {source.numel()} bytes to {destination.numel()}, or not from the device")
        self._issue(COMPUTE)
        self._join(BACK, tuple(self._clocks[COMPUTE]))
        self._touch(BACK, self._ranges_of(source), write=False, what="copy back")
        self._touch(BACK, self._ranges_of(destination), write=True, what="copy back")
        self._record(done, BACK)
        if self.late:
            with self._unwatched():
                destination.fill_(POISON)
            self._coming_back.append((done, lambda: self._move(destination, source)))
        else:
            self._move(destination, source)

    def prepare_reads(self) -> None:
        pass

    def abandon(self, sources: object) -> None:
        pass

    def host_waits(self, event: RaceEvent) -> None:
        self._wait(event, HOST)
        if event.recorded_on == COPY:
            self._run_copies(event.copies_before)

    def happened(self, event: RaceEvent) -> bool:
        """A copy that is kept back has not happened; a True answer counts as a host wait."""
        if self.late and self._issued - len(self._waiting) < event.copies_before:
            return False
        self._wait(event, HOST)
        return True

    def before_release(self) -> None:
        pass

    def drain(self) -> None:
        self.counts["drain"] += 1
        self._run_copies(self._issued)
        self._run_copies_back(None)
        self._join(HOST, tuple(self._clocks[COPY]))
        self._join(HOST, tuple(self._clocks[BACK]))

    def elapsed_ns(self, start: RaceEvent, end: RaceEvent) -> int | None:
        self.counts["elapsed"] += 1
        return None if start.clock is None or end.clock is None else self.measures_ns

    def memory(self) -> None:
        return None

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        if self.in_pass():
            raise AssertionError(f"{nbytes} bytes of host memory were taken in a pass")
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8), False
        memory = (ctypes.c_ubyte * nbytes)()
        start = ctypes.addressof(memory)
        region = Region(start, start + nbytes, f"host master {len(self._regions)}", Shadow(nbytes))
        self._regions.append(region)
        weakref.finalize(memory, self._regions.remove, region).atexit = False
        return torch.frombuffer(memory, dtype=torch.uint8), pinned

    def peer_empty(self, nbytes: int) -> torch.Tensor:
        """Bytes of another device. To free them is as good as writing to them: its own kernels may do so at once."""
        if self.peer_bytes + nbytes > self.peer_limit_bytes:
            raise torch.OutOfMemoryError(f"the other device is out of memory: {nbytes} bytes")
        memory = (ctypes.c_ubyte * nbytes)()
        start = ctypes.addressof(memory)
        region = Region(start, start + nbytes, f"other device {len(self._regions)}", Shadow(nbytes))
        self._regions.append(region)
        self.peer_bytes += nbytes
        self.peer_reserved_bytes = max(self.peer_reserved_bytes, self.peer_bytes)
        weakref.finalize(memory, self._peer_freed, region).atexit = False
        return torch.frombuffer(memory, dtype=torch.uint8)

    def _peer_freed(self, region: Region) -> None:
        nbytes = region.end - region.start
        self._touch(HOST, [(region, 0, nbytes)], write=True, what="memory of the other device given back")
        self._regions.remove(region)
        self.peer_bytes -= nbytes

    def host_pin(self, buffer: torch.Tensor) -> bool:
        if self.in_pass():
            raise AssertionError(f"{buffer.numel()} bytes were page-locked in a pass")
        return True

    def host_release(self, buffer: torch.Tensor) -> None:
        """The bytes may go back to the system now: as good as writing to them."""
        self._touch(HOST, self._ranges_of(buffer), write=True, what="release of the page-lock")

    def close(self) -> None:
        self.drain()

    # ------------------------------------------------------------------ for tests

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every operator torch runs in here is checked."""
        with _Watch(self):
            yield

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in device memory."""
        return self._base <= tensor.data_ptr() < self._base + len(self._memory)

    def in_flight(self) -> bool:
        """Whether copies were issued that the host has not waited for."""
        return any(self._clocks[HOST][lane] < self._clocks[lane][lane] for lane in (COPY, BACK))

    def check(self) -> None:
        """Raise if there were races."""
        if self.races:
            raise Race(f"{len(self.races)} races, the first ones:\n" + "\n".join(self.races[:5]))

    # ------------------------------------------------------------------ clocks

    def _record(self, event: RaceEvent, lane: int) -> None:
        self._issue(lane)
        event.clock = tuple(self._clocks[lane])  # type: ignore[assignment]
        event.recorded_on = lane
        event.copies_before = self._issued

    def _wait(self, event: RaceEvent, lane: int) -> None:
        if event.clock is not None:
            self._join(lane, event.clock)

    def _issue(self, lane: int) -> int:
        """One more operation on a lane. Whatever the host has seen so far comes before it."""
        clock = self._clocks[lane]
        if lane != HOST:
            self._join(lane, tuple(self._clocks[HOST]))
        clock[lane] += 1
        return clock[lane]

    def _join(self, lane: int, clock: tuple[int, ...]) -> None:
        own = self._clocks[lane]
        own[:] = [max(mine, theirs) for mine, theirs in zip(own, clock)]

    # ------------------------------------------------------------------ accesses

    def _touch(self, lane: int, ranges: list[tuple[Region, int, int]], write: bool, what: str) -> None:
        if not ranges:
            return
        tick = self._issue(lane)
        clock = self._clocks[lane]
        for region, start, end in ranges:
            for segment in region.shadow.between(start, end):
                earlier = dict(segment.readers) if write else {}
                if segment.writer is not None:
                    writer, access = segment.writer
                    if clock[writer] < access.tick:
                        self._report(region, start, end, lane, what, writer, access, write, True)
                for reader, access in earlier.items():
                    if clock[reader] < access.tick:
                        self._report(region, start, end, lane, what, reader, access, write, False)
                if write:
                    segment.writer = (lane, Access(tick, what))
                    segment.readers = {}
                else:
                    segment.readers[lane] = Access(tick, what)

    def _report(
        self, region: Region, start: int, end: int, lane: int, what: str, other: int, access: Access, w: bool, ow: bool
    ) -> None:
        verb, earlier = ("write" if w else "read"), ("write" if ow else "read")
        self.races.append(
            f"{verb} by the {LANES[lane]} ({what}) of bytes {start}..{end} of {region.name} is not ordered after the "
            f"{earlier} by the {LANES[other]} ({access.what})"
        )

    def _ranges_of(self, tensor: torch.Tensor) -> list[tuple[Region, int, int]]:
        """Where a tensor lies in watched memory. Whole span: strides that leave gaps are not looked at more closely."""
        if tensor.numel() == 0 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return []
        if isinstance(tensor, FakeTensor):  # has no memory
            return []
        span = (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1) * tensor.element_size()
        first = tensor.data_ptr()
        return [
            (region, max(first, region.start) - region.start, min(first + span, region.end) - region.start)
            for region in self._regions
            if first < region.end and region.start < first + span
        ]

    def operator_ran(self, name: str, reads: list[torch.Tensor], writes: list[torch.Tensor]) -> None:
        """One operator of the caller's. With a device argument it is a kernel; the host waits for mixed ones."""
        if self._quiet:
            return
        read = [where for tensor in reads for where in self._ranges_of(tensor)]
        written = [where for tensor in writes for where in self._ranges_of(tensor)]
        if not read and not written:
            return
        device = self._regions[0]
        on_device = [where for where in read + written if where[0] is device]
        host_reads = [where for where in read if where[0] is not device]
        host_writes = [where for where in written if where[0] is not device]
        if host_writes and on_device:
            self.counts["d2h"] += 1
        self._touch(HOST, host_reads, write=False, what=name)
        self._touch(COMPUTE, [where for where in read if where[0] is device], write=False, what=name)
        self._touch(COMPUTE, [where for where in written if where[0] is device], write=True, what=name)
        if on_device and (host_reads or host_writes):
            self._join(HOST, tuple(self._clocks[COMPUTE]))
        self._touch(HOST, host_writes, write=True, what=name)

    def _count_and_check(self, lane: int, what: str, destination: torch.Tensor, source: torch.Tensor) -> None:
        if destination.numel() != source.numel() or not self.holds(destination):
            raise AssertionError(f"{what}: {source.numel()} bytes to {destination.numel()}, or not to the device")
        self.copied_bytes += source.numel()
        self._touch(lane, self._ranges_of(source), write=False, what=what)
        self._touch(lane, self._ranges_of(destination), write=True, what=what)

    # ------------------------------------------------------------------ bytes

    def _freed(self, offset: int, size: int, nbytes: int) -> None:
        """Back to the compute lane's allocator, which may let any kernel write there from now on."""
        self._touch(COMPUTE, [(self._regions[0], offset, offset + size)], write=True, what="memory given back")
        self.live_bytes -= nbytes
        ctypes.memset(self._base + offset, POISON, size)
        merged: list[tuple[int, int]] = []
        for start, room in sorted([*self._free, (offset, size)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((start, room))
        self._free = merged

    def _move(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        with self._unwatched():
            destination.copy_(source)

    def _run_copies(self, count: int) -> None:
        """Let the first `count` copies ever issued have happened."""
        while self._waiting and self._issued - len(self._waiting) < count:
            self._waiting.pop(0)()

    def _run_copies_back(self, event: RaceEvent | None) -> None:
        """Let the copies to the host that `event` marks have happened; None: all of them."""
        while self._coming_back and (event is None or any(done is event for done, _ in self._coming_back)):
            self._coming_back.pop(0)[1]()

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        self._quiet += 1
        try:
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self._quiet -= 1


class _Watch(TorchDispatchMode):
    """Tells the port what every operator reads and writes, from the alias annotations of its schema."""

    def __init__(self, port: RacePort) -> None:
        super().__init__()
        self._port = port

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written_arguments(func)
        if written is not None:
            reads: list[torch.Tensor] = []
            writes: list[torch.Tensor] = []
            for name, value in (*enumerate(args), *kwargs.items()):
                _collect(value, writes if name in written else reads)
            self._port.operator_ran(func.name(), reads, writes)
        return func(*args, **kwargs)


@functools.cache
def _written_arguments(func: Any) -> frozenset[int | str] | None:
    """The arguments an operator writes to, by position and by name. None: it only makes a view and touches nothing."""
    schema = func._schema
    written = {
        key
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for key in (position, argument.name)
    }
    makes_view = any(result.alias_info is not None for result in schema.returns)
    if not written and (makes_view or func._opname in ("_unsafe_view", "lift_fresh", "_reshape_alias")):
        return None
    return frozenset(written)


def _collect(value: Any, into: list[torch.Tensor]) -> None:
    """The tensors in a value. A wrapper has no bytes: what it holds is touched in its place, all of it."""
    if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
        _collect([getattr(value, name) for name in value.__tensor_flatten__()[0]], into)
    elif isinstance(value, torch.Tensor):
        into.append(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect(item, into)
