"""Device ports for accelerators: real streams where the back end has them, plain copies where it has not.

Streams and events are torch's generic ones (`torch.Stream`, `torch.Event`, `torch.accelerator`), so CUDA, ROCm, XPU and
out-of-tree back ends use the same code. Page-locking and memory figures, which differ between back ends, are in this
file only. Knows nothing about layers.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import time
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ...planning.reserved import reserved_bytes
from ..tensors.host_source import ByteSource
from .device_port import DeviceMemory, Event, segment_bytes_of
from .peer_memory import PeerMemory

_PIECE_BYTES = 64 << 20
"""Copies are queued in pieces of this size. A device has one copy engine per direction, which takes the copies of all
streams in the order in which they are ready, whatever the streams' priorities: another stream's copy (a LoRA's
matrices, a latent) then waits for one piece and not for a layer."""

_LOCK_BYTES = 64 << 30
"""Most bytes of one registration; larger calls fail in some drivers. A layer normally has one, because CUDA refuses a
copy that spans two, and other code copies from our buffers too: the app, or a use of a weight outside its layer."""

_LOCK_LESS_BYTES = 16 * _PIECE_BYTES
"""The same where that is refused, as happens long before the end of memory under Windows and on busy devices. These
registrations end where pieces of copies end, so that our copies never span two."""

_LOCK_FLAGS = 1
"""cudaHostRegisterPortable: page-locked for every device of the process."""

_POLL_S = 0.0002
"""Seconds between two queries of an event. `synchronize` spins, which keeps a core from the rest of the process."""

_READ_BYTES = 16 << 20

_current_device = torch.accelerator.current_device_index
# What torch's two public functions call, without their look-up of the device.
_current_stream: Callable[[int], torch.Stream] = getattr(
    torch._C, "_accelerator_getStream", torch.accelerator.current_stream
)
_set_stream: Callable[[torch.Stream], None] = getattr(torch._C, "_accelerator_setStream", torch.accelerator.set_stream)


def has_streams(device: torch.device) -> bool:
    """Whether the back end of `device` has working streams and events. Apple's has one queue and no streams."""
    if device.type in ("cpu", "mps", "meta"):
        return False
    try:
        torch.Stream(device)
        torch.Event(device)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError):
        return False
    return True


def _queue_bytes(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Queue a copy of flat bytes on the current stream. The host bytes begin with a buffer of the port, or end in its
    first piece."""
    if destination.numel() <= _PIECE_BYTES:
        destination.copy_(source, non_blocking=True)
    else:
        pieces = torch.split(destination, _PIECE_BYTES), torch.split(source, _PIECE_BYTES)
        torch._foreach_copy_(*pieces, non_blocking=True)


def _wait_for(work: torch.Stream | torch.Event) -> None:
    """The host waits for a stream or an event without keeping a core busy."""
    while not work.query():
        time.sleep(_POLL_S)
    work.synchronize()


def _backend(device: torch.device) -> types.ModuleType:
    module: types.ModuleType = torch.get_device_module(device)
    return module


class SynchronousPort:
    """A device without streams: a copy is complete when it returns, and events do nothing. `AcceleratorPort` and
    `ThreadedCpuPort` replace what is asynchronous there, and keep the rest."""

    asynchronous = False
    shares_host_memory = False
    pins_in_place = True
    stages_unpinned = False

    def __init__(self, device: torch.device | str) -> None:
        self.device = _indexed(torch.device(device))
        self.segment_bytes = segment_bytes_of(self.device)
        self._pins: dict[int, list[int]] = {}
        """Page-locked buffers by address, with the addresses of their registrations."""

    def empty(self, nbytes: int) -> torch.Tensor:
        taken = reserved_bytes(nbytes, self.segment_bytes)
        return torch.empty(taken, dtype=torch.uint8, device=self.device)[:nbytes]

    def trim(self) -> None:
        _backend(self.device).empty_cache()

    def event(self, timed: bool = False) -> Event:
        return None

    def _nothing_about(self, event: Any) -> None:
        """All work is complete when its call returns: there is nothing to record, to wait for or to give up."""

    def _nothing(self) -> None: ...

    record_copy = record_compute = copy_waits = compute_waits = host_waits = abandon = host_release = _nothing_about
    prepare_reads = drain = before_release = close = _nothing

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source)

    copy_on_compute = copy_across = copy_across_on_compute = copy

    def peer_memory(self, device: str) -> PeerMemory:
        return PeerMemory(SynchronousPort(device))

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """Read and copy it now, through one pageable buffer. `StagedPort` is faster where there are streams."""
        bounce = torch.empty(min(_READ_BYTES, source.nbytes), dtype=torch.uint8)
        for start in range(0, source.nbytes, _READ_BYTES):
            part = bounce[: min(_READ_BYTES, source.nbytes - start)]
            source.read(part, start)
            destination[start : start + part.numel()].copy_(part)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: Event) -> None:
        destination.copy_(source)

    def happened(self, event: Event) -> bool:
        return True

    def elapsed_ns(self, start: Event, end: Event) -> int | None:
        return None

    def memory(self) -> DeviceMemory | None:
        backend = _backend(self.device)
        if not hasattr(backend, "mem_get_info"):
            return None
        free, total = backend.mem_get_info(self.device)
        return DeviceMemory(free, total)

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        return page_aligned_bytes(nbytes), False

    def host_pin(self, buffer: torch.Tensor) -> bool:
        return False


class AcceleratorPort(SynchronousPort):
    """A device with streams: one copy stream of our own, and whatever stream is current for compute."""

    asynchronous = True

    def __init__(self, device: torch.device | str) -> None:
        super().__init__(device)
        self._stream = torch.Stream(self.device)
        self._back: torch.Stream | None = None
        """The stream for copies back to the host: links work in both directions at once."""
        self.pins_in_place = _lock_runtime(self.device) is not None
        self._index = self.device.index
        self._only_device = torch.accelerator.device_count() == 1
        """Otherwise each call asks whether our device is the thread's current one. If it is, calls need no stream
        argument; passing one costs more than the call."""
        self._bind_calls()
        self._lanes_of_peers: dict[torch.device, dict[bool, torch.Stream]] = {}
        """By other device, and by whether it serves the compute lane: the stream there on which copies from there run.
        Torch puts a copy between two devices on the current stream of the source, and has the two streams wait for each
        other. With that device's compute stream each would wait for the other, so each of our lanes has its own."""
        self._peers: dict[str, PeerMemory] = {}
        self._allocated_on: set[torch.Stream] = set()
        """The compute streams that were current when memory was allocated: the allocator reuses the memory there."""

    def _bind_calls(self) -> None:
        """A visit makes four event calls. Where there is nothing to decide they are torch's own, without a wrapper."""
        self.record_copy = self._stream.record_event  # type: ignore
        self.copy_waits = self._stream.wait_event  # type: ignore[method-assign]
        if self._only_device:
            self.record_compute = torch.Event.record  # type: ignore
            self.compute_waits = torch.Event.wait  # type: ignore

    def empty(self, nbytes: int) -> torch.Tensor:
        self._allocated_on.add(_current_stream(self._index))
        return super().empty(nbytes)

    def event(self, timed: bool = False) -> Event:
        return torch.Event(self.device, enable_timing=timed)

    def record_compute(self, event: Event) -> None:
        if _current_device() == self._index:
            event.record()
        else:
            event.record(_current_stream(self._index))

    def compute_waits(self, event: Event) -> None:
        if _current_device() == self._index:
            event.wait()
        else:
            event.wait(_current_stream(self._index))

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        if self._only_device or _current_device() == self._index:
            # The stream's context manager does the same with three more calls.
            current = _current_stream(self._index)
            _set_stream(self._stream)
            try:
                _queue_bytes(destination, source)
            finally:
                _set_stream(current)
        else:  # setting a stream sets its device too, and each device has a current stream
            with self._stream:
                _queue_bytes(destination, source)

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        _queue_bytes(destination, source)

    def copy_across(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        with self._lanes_of_peers[source.device][False], self._stream:
            _queue_bytes(destination, source)

    def copy_across_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        with self._lanes_of_peers[source.device][True]:
            _queue_bytes(destination, source)

    def peer_memory(self, device: str) -> PeerMemory:
        """As the port says. The first call for a device makes what copies from it need: streams there, and torch's own
        access, which it sets up at the first copy. That is not to be part of a pass, nor of a measured copy."""
        memory = self._peers.get(device)
        if memory is None:
            memory = super().peer_memory(device)
            with contextlib.suppress(torch.OutOfMemoryError):  # a device that is full now: the next call tries again
                self._prepare_copies_from(memory.device)
                self._peers[device] = memory
        return memory

    def _prepare_copies_from(self, peer: torch.device) -> None:
        if peer not in self._lanes_of_peers:
            self._lanes_of_peers[peer] = {lane: torch.Stream(peer) for lane in (False, True)}
        with torch.inference_mode(False), torch.no_grad():
            source, here = (torch.zeros(1, dtype=torch.uint8, device=where) for where in (peer, self.device))
            torch.accelerator.synchronize(peer)
            torch.accelerator.synchronize(self.device)
            self.copy_across(here, source)
            self.drain()

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: Event) -> None:
        if self._back is None:
            self._back = torch.Stream(self.device)
        self.record_compute(done)
        self._back.wait_event(done)
        try:
            with self._back, torch.inference_mode(False), torch.no_grad():
                _queue_bytes(destination, source)
        finally:
            done.record(self._back)

    def drain(self) -> None:
        for stream in (self._stream, self._back):
            if stream is not None:
                _wait_for(stream)

    def host_waits(self, event: Event) -> None:
        _wait_for(event)

    def happened(self, event: Event) -> bool:
        return bool(event.query())

    def before_release(self) -> None:
        """The allocator reuses memory on the stream it was allocated on: if that is another, the host waits."""
        current = _current_stream(self._index)
        if self._allocated_on - {current}:
            _wait_for(current)

    def elapsed_ns(self, start: Event, end: Event) -> int | None:
        if not (start.query() and end.query()):
            return None
        return int(start.elapsed_time(end) * 1e6)

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        if not pinned or nbytes == 0:
            return page_aligned_bytes(nbytes), False
        runtime = _lock_runtime(self.device)
        if runtime is None:
            return _pinned_by_torch(nbytes)
        buffer = page_aligned_bytes(nbytes).fill_(0)  # on all cores: locking faults the pages in on one
        return buffer, self._register(runtime, buffer)

    def host_pin(self, buffer: torch.Tensor) -> bool:
        runtime = _lock_runtime(self.device)
        if runtime is None or not buffer.numel():
            return False
        return buffer.data_ptr() in self._pins or self._register(runtime, buffer)

    def _register(self, runtime: Any, buffer: torch.Tensor) -> bool:
        """Page-lock the bytes in place, at their exact size, with as few registrations as possible. All or nothing."""
        start, nbytes = buffer.data_ptr(), buffer.numel()
        for most in (_LOCK_BYTES, _LOCK_LESS_BYTES):
            spans = [(start + first, min(most, nbytes - first)) for first in range(0, nbytes, most)]
            locked = list(
                itertools.takewhile(lambda span: int(runtime.cudaHostRegister(*span, _LOCK_FLAGS)) == 0, spans)
            )
            if len(locked) == len(spans):
                self._pins[start] = [address for address, _ in spans]
                return True
            self._clear_error()
            self._unregister(runtime, [address for address, _ in locked])
        return False

    def _unregister(self, runtime: Any, addresses: Iterable[int]) -> None:
        codes = [int(runtime.cudaHostUnregister(address)) for address in addresses]
        if any(codes):
            self._clear_error()

    def _clear_error(self) -> None:
        """A failed call of the runtime leaves an error in its thread, which the next launch or allocation raises. Torch
        cannot clear it, so a small launch and allocation raise it here."""
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self.device).add_(1)

    def host_release(self, buffer: torch.Tensor) -> None:
        addresses = self._pins.pop(buffer.data_ptr(), [])
        runtime = _lock_runtime(self.device)
        if addresses and runtime is not None:
            # No copy of ours is in flight. Other code may have queued one on its own stream without waiting for it:
            # torch keeps memory alive for such a copy only if torch page-locked it.
            _wait_for(_current_stream(self._index))
            self._unregister(runtime, addresses)

    def close(self) -> None:
        self.drain()


def page_aligned_bytes(nbytes: int) -> torch.Tensor:
    """Host bytes in a mapping of their own: exact size, page-aligned, so that no two buffers share a page to lock."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    if hasattr(mmap, "MAP_PRIVATE"):  # a shared mapping, the default, is a file in memory: no huge pages
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        mapping = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)


def _pinned_by_torch(nbytes: int) -> tuple[torch.Tensor, bool]:
    """Bytes from torch's page-locking allocator, for back ends that cannot lock in place, and whether they are locked.

    They cannot be unlocked in place: after `detach` they stay page-locked until the module's parameters are freed or
    get other data; torch then keeps them for its next such tensor.
    """
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True), True
    except RuntimeError:
        return page_aligned_bytes(nbytes), False


def _lock_runtime(device: torch.device) -> Any:
    """The runtime that page-locks existing memory: cudart, or a back end's with the same two calls, which return an
    error code, 0 for none. None: the back end has none."""
    backend = _backend(device)
    return backend.cudart() if hasattr(backend, "cudart") else None


def _indexed(device: torch.device) -> torch.device:
    """The device with its index: `cuda` alone means whatever device is current."""
    if device.index is None and device.type != "cpu":
        return torch.device(device.type, torch.accelerator.current_device_index())
    return device
