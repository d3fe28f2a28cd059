"""Device ports for accelerators: real streams where the back end has them, plain copies where it has not.

Streams and events are torch's generic ones (`torch.Stream`, `torch.Event`, `torch.accelerator`), so CUDA, ROCm, XPU
and out-of-tree back ends take the same road. What is particular to one back end, which is page-locking and memory
figures, stands in this file and nowhere else. The module knows nothing about layers.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import time
import types
from collections.abc import Callable, Collection, Iterable

import torch

from ..reserved import reserved_bytes
from .device_port import DeviceMemory, Event, segment_bytes_of
from .host_source import ByteSource

_PIECE_BYTES = 64 << 20
"""Copies are queued in pieces of this size. A device has one copy engine for each direction, which takes the copies of
all streams in the order in which they are ready, whatever the streams' priorities: another stream's copy (a LoRA's
matrices, a latent) then waits for one piece and not for a layer."""

_LOCK_BYTES = 64 << 30
"""Most that one registration page-locks; larger calls fail in some drivers. Any layer has one, because CUDA refuses a
copy that spans two, and others copy from our buffers as well: the app, a parameter that is used outside its layer."""

_LOCK_LESS_BYTES = 16 * _PIECE_BYTES
"""The same where that is refused, as happens long before the end of memory under Windows and on busy devices. These end
where pieces of copies end, so that ours never span two."""

_LOCK_FLAGS = 1
"""cudaHostRegisterPortable: page-locked for every device of the process."""

_POLL_S = 0.0002
"""Between two looks at an event. `synchronize` spins, which takes a core from whatever else the process does."""

_READ_BYTES = 16 << 20

_current_device = torch.accelerator.current_device_index
# What torch's own two functions call, without what these do to find out which device is meant.
_current_stream: Callable[[int], torch.Stream]
_current_stream = getattr(torch._C, "_accelerator_getStream", torch.accelerator.current_stream)
_set_stream: Callable[[torch.Stream], None]
_set_stream = getattr(torch._C, "_accelerator_setStream", torch.accelerator.set_stream)


def has_streams(device: torch.device) -> bool:
    """Whether the back end of `device` has streams and events that work. Apple's has one queue and no streams."""
    if device.type in ("cpu", "mps", "meta"):
        return False
    try:
        torch.Stream(device)
        torch.Event(device)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError):
        return False
    return True


def _queue_bytes(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Queue a copy of flat bytes on the current stream. The host's side begins where a buffer of the port's begins, or
    ends before its first piece does."""
    if destination.numel() <= _PIECE_BYTES:
        destination.copy_(source, non_blocking=True)
    else:
        pieces = torch.split(destination, _PIECE_BYTES), torch.split(source, _PIECE_BYTES)
        torch._foreach_copy_(*pieces, non_blocking=True)


def _wait_until(reached: Callable[[], bool]) -> None:
    """The host waits without keeping a core busy."""
    while not reached():
        time.sleep(_POLL_S)


def _backend(device: torch.device) -> types.ModuleType:
    module: types.ModuleType = torch.get_device_module(device)
    return module


class SynchronousPort:
    """A device without streams: a copy is done when it is issued, and events mark nothing."""

    asynchronous = False
    shares_host_memory = False
    pins_in_place = True
    stages_unpinned = False

    def __init__(self, device: torch.device | str) -> None:
        self.device = _indexed(torch.device(device))
        self.segment_bytes = segment_bytes_of(self.device)
        self._pins: dict[int, list[int]] = {}
        """Page-locked buffers by address, each with the addresses of its registrations."""

    def empty(self, nbytes: int) -> torch.Tensor:
        taken = reserved_bytes(nbytes, self.segment_bytes)
        return torch.empty(taken, dtype=torch.uint8, device=self.device)[:nbytes]

    def trim(self) -> None:
        _backend(self.device).empty_cache()

    def event(self, timed: bool = False) -> Event:
        return None

    def record_copy(self, event: Event) -> None:
        pass

    def record_compute(self, event: Event) -> None:
        pass

    def copy_waits(self, event: Event) -> None:
        pass

    def compute_waits(self, event: Event) -> None:
        pass

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source)

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """Read it all, now, through one ordinary buffer. `StagedPort` does better where there are streams."""
        bounce = torch.empty(min(_READ_BYTES, source.nbytes), dtype=torch.uint8)
        for start in range(0, source.nbytes, _READ_BYTES):
            part = bounce[: min(_READ_BYTES, source.nbytes - start)]
            source.read(part, start)
            destination[start : start + part.numel()].copy_(part)

    def prepare_reads(self) -> None:
        pass

    def abandon(self, sources: Collection[ByteSource]) -> None:
        pass

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        destination.copy_(source)

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: Event) -> None:
        destination.copy_(source)

    def drain(self) -> None:
        pass

    def host_waits(self, event: Event) -> None:
        pass

    def happened(self, event: Event) -> bool:
        return True

    def before_release(self) -> None:
        pass

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

    def host_release(self, buffer: torch.Tensor) -> None:
        pass

    def close(self) -> None:
        pass


class AcceleratorPort(SynchronousPort):
    """A device with streams: one copy stream of our own, and whatever stream is current for compute."""

    asynchronous = True

    def __init__(self, device: torch.device | str) -> None:
        super().__init__(device)
        self._stream = torch.Stream(self.device)
        self._back: torch.Stream | None = None
        """What is copied back has a stream of its own: links work in both directions at once."""
        self.pins_in_place = _host_register(self.device) is not None
        self._index = self.device.index
        self._only_device = torch.accelerator.device_count() == 1
        """Else each call asks whether our device is the thread's current one. Where it is, a call need not be told the
        stream; telling it costs more than the call."""
        self._bind_calls()
        self._allocated_on: set[torch.Stream] = set()
        """The compute streams that were current when memory was taken: the allocator gives it out there again."""

    def _bind_calls(self) -> None:
        """A visit makes four event calls. Where nothing has to be decided they are torch's own, and nothing else."""
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
            # A bare set and restore: the stream's own context manager does the same with three more calls.
            current = _current_stream(self._index)
            _set_stream(self._stream)
            try:
                _queue_bytes(destination, source)
            finally:
                _set_stream(current)
        else:  # setting a stream sets its device as well, and each device has a current stream
            with self._stream:
                _queue_bytes(destination, source)

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        _queue_bytes(destination, source)

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
                _wait_until(stream.query)
                stream.synchronize()

    def host_waits(self, event: Event) -> None:
        _wait_until(event.query)
        event.synchronize()

    def happened(self, event: Event) -> bool:
        return bool(event.query())

    def before_release(self) -> None:
        """The allocator gives memory out again on the stream that it was allocated on: if that is another one, wait."""
        current = _current_stream(self._index)
        if self._allocated_on - {current}:
            _wait_until(current.query)
            current.synchronize()

    def elapsed_ns(self, start: Event, end: Event) -> int | None:
        if not (start.query() and end.query()):
            return None
        return int(start.elapsed_time(end) * 1e6)

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        if not pinned or nbytes == 0:
            return page_aligned_bytes(nbytes), False
        register = _host_register(self.device)
        if register is None:
            return _pinned_by_torch(nbytes)
        buffer = page_aligned_bytes(nbytes).fill_(0)  # by all cores: locking would fault the pages in by one
        return buffer, self._register(register, buffer)

    def host_pin(self, buffer: torch.Tensor) -> bool:
        register = _host_register(self.device)
        if register is None or not buffer.numel():
            return False
        return buffer.data_ptr() in self._pins or self._register(register, buffer)

    def _register(self, register: _HostRegister, buffer: torch.Tensor) -> bool:
        """Page-lock the bytes in place, at their exact size, by as few registrations as may be. All or nothing."""
        start, nbytes = buffer.data_ptr(), buffer.numel()
        for most in (_LOCK_BYTES, _LOCK_LESS_BYTES):
            spans = [(start + first, min(most, nbytes - first)) for first in range(0, nbytes, most)]
            locked = list(itertools.takewhile(lambda span: register.register(*span) == 0, spans))
            if len(locked) == len(spans):
                self._pins[start] = [address for address, _ in spans]
                return True
            self._clear_error()
            self._unregister(register, [address for address, _ in locked])
        return False

    def _unregister(self, register: _HostRegister, addresses: Iterable[int]) -> None:
        codes = [register.unregister(address) for address in addresses]
        if any(codes):
            self._clear_error()

    def _clear_error(self) -> None:
        """A call of the runtime that failed leaves an error behind in its thread, for the next launch or allocation to
        raise. Torch offers nothing that takes it away, so it is raised here, by the smallest of both."""
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device=self.device).add_(1)

    def host_release(self, buffer: torch.Tensor) -> None:
        addresses = self._pins.pop(buffer.data_ptr(), [])
        register = _host_register(self.device)
        if addresses and register is not None:
            # Nothing of ours is in flight from it. Code of others may have queued a copy that it does not wait for, on
            # its own stream: torch keeps memory for such a copy if it has page-locked it itself, which this is not.
            current = _current_stream(self._index)
            _wait_until(current.query)
            current.synchronize()
            self._unregister(register, addresses)

    def close(self) -> None:
        self.drain()


def page_aligned_bytes(nbytes: int) -> torch.Tensor:
    """Host bytes in a mapping of their own: exact size, page aligned, so that no two buffers share a page to lock."""
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
    """Page-locked bytes where the back end offers no registration in place: torch's own allocator for it.

    These cannot be unlocked in place: after `detach` the module's parameters still look into them, so they stay
    page-locked until the parameters go or get other data, and then torch keeps them for its next such tensor.
    """
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True), True
    except RuntimeError:
        return page_aligned_bytes(nbytes), False


class _HostRegister:
    """Page-locking of memory that is already there: cudart's, or any back end's that offers the same two calls. Both
    return the runtime's error code, 0 for none."""

    def __init__(self, backend: types.ModuleType) -> None:
        self._runtime = backend.cudart()

    def register(self, address: int, size: int) -> int:
        return int(self._runtime.cudaHostRegister(address, size, _LOCK_FLAGS))

    def unregister(self, address: int) -> int:
        return int(self._runtime.cudaHostUnregister(address))


def _host_register(device: torch.device) -> _HostRegister | None:
    backend = _backend(device)
    return _HostRegister(backend) if hasattr(backend, "cudart") else None


def _indexed(device: torch.device) -> torch.device:
    """`cuda` means the current device today and maybe another tomorrow: say which."""
    if device.index is None:
        return torch.device(device.type, torch.accelerator.current_device_index())
    return device
