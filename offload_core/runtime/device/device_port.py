"""The calls through which the engine uses a device.

A port has two lanes: the *compute lane*, which is whatever stream the caller's kernels go to, and the *copy lane*,
which the port owns. It knows nothing about layers, plans or rings. All ordering of the engine goes through the six
event calls below; so a test can replace the port by one that keeps vector clocks, or virtual time, and prove things
about the engine without a device.

`ports.py` selects the port for a device. Ports are shared by all components on their device, see `device_queue.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import torch

from ...planning.reserved import SEGMENT_BYTES
from ..tensors.host_source import ByteSource
from .peer_memory import PeerMemory

Event = Any
"""An event handle. Its type is private to the port that made it."""


class DeviceMemory(NamedTuple):
    """The device's memory, in bytes."""

    free_bytes: int
    total_bytes: int


class DevicePort(Protocol):
    """Device calls of the engine. Only `drain`, `trim`, `host_waits` and `close` may make the host wait. Exception:
    `compute_waits` for a copy from a source waits until the source has been read."""

    device: torch.device
    asynchronous: bool
    """Whether copies run beside the compute lane. False: look-ahead saves no time."""
    shares_host_memory: bool
    """Whether kernels read host memory directly, so that what is not streamed needs no copy."""
    pins_in_place: bool
    """Whether `host_pin` can succeed; else only `host_empty` gives page-locked memory, if anything does."""
    stages_unpinned: bool
    """Whether memory that is not page-locked is to be copied as a source (`copy_from`) rather than directly."""
    segment_bytes: int
    """Device memory is allocated in multiples of this many bytes (`reserved.py`); 1: to the byte."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """A new byte tensor of `nbytes` on the device, from the compute lane's allocator. Its whole reservation
        (`reserved.py`) is allocated: the allocator's figures, which the app uses, must not count the rest of it as
        free."""

    def trim(self) -> None:
        """Return the allocator's cached memory to the device, so that the next allocation does not come on top of it.
        May make the host wait. Never on the hot path."""

    def event(self, timed: bool = False) -> Event:
        """A new event. Waiting for an event that was never recorded has no effect. `timed`: it only measures, and no
        lane waits for it; what reading for a copy raised is left to the next event that is not timed."""

    def record_copy(self, event: Event) -> None: ...

    def record_compute(self, event: Event) -> None: ...

    def copy_waits(self, event: Event) -> None:
        """Later work on the copy lane starts after `event`."""

    def compute_waits(self, event: Event) -> None:
        """Later work on the compute lane starts after `event`. Raises what reading for the copy before it raised."""

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of bytes on the copy lane. Both are flat byte tensors of the same length; the source is a whole
        buffer from `host_empty`, or its beginning."""

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """Queue a copy of bytes that have to be read first. Waits for it raise what reading raised."""

    def prepare_reads(self) -> None:
        """Allocate now, not in a pass, what copies from sources need. Idempotent."""

    def abandon(self, sources: Collection[ByteSource]) -> None:
        """Give up the reads of these sources that have not begun: their copies will not be waited for."""

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of bytes on the compute lane: the slow path of a layer for which the ring has no room."""

    def peer_memory(self, device: str) -> PeerMemory:
        """The memory of another device of the same kind, as a store for `copy_across`. The first call comes before any
        copy from there, and may make the host wait."""

    def copy_across(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of bytes on the copy lane from the memory of another device (`peer_memory`). It waits for
        nothing that runs there, and nothing there waits for it."""

    def copy_across_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """The same on the compute lane."""

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: Event) -> None:
        """Queue a copy of bytes from the device to a host buffer, beside both lanes, after all work that the compute
        lane has been given. `done` is recorded at its end. For results made on the device, never on the hot path."""

    def drain(self) -> None:
        """The host waits until the copy lane is empty and no copy back is in flight. Never on the hot path."""

    def host_waits(self, event: Event) -> None:
        """The host waits for `event`. Never on the hot path."""

    def happened(self, event: Event) -> bool:
        """Whether a recorded `event` has happened. Does not wait. True: later work need not wait for it."""

    def before_release(self) -> None:
        """Memory from `empty`, whose readers were issued before this point of the compute lane, is about to be
        released. Its next use, on any stream, is ordered after them. Never on the hot path."""

    def elapsed_ns(self, start: Event, end: Event) -> int | None:
        """Nanoseconds between two timed events, or None until both have happened."""

    def memory(self) -> DeviceMemory | None:
        """The device's memory, or None where the device does not tell."""

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        """A host byte tensor of exactly `nbytes`, and whether it is page-locked, which may fail."""

    def host_pin(self, buffer: torch.Tensor) -> bool:
        """Page-lock a buffer from `host_empty` in place. False: it stays pageable and unchanged."""

    def host_release(self, buffer: torch.Tensor) -> None:
        """End the page-lock of a buffer from `host_empty`; its bytes stay readable. No copy of ours is in flight from
        it; the host waits for what other code has queued on the compute lane. Never on the hot path."""

    def close(self) -> None: ...


def is_unified(device: torch.device) -> bool:
    """Whether the device keeps its tensors in host memory: Apple's devices, and integrated GPUs. A host copy of a
    weight would be a second one in the same memory, so plans leave weights in their file."""
    if device.type in ("mps", "cpu", "meta"):
        return device.type == "mps"
    describe = getattr(torch.get_device_module(device), "get_device_properties", None)
    return describe is not None and bool(getattr(describe(device), "is_integrated", False))


def segment_bytes_of(device: torch.device) -> int:
    """The size in bytes of which torch allocates multiples on `device`. Not known for Apple's devices: 1."""
    return 1 if device.type in ("mps", "cpu", "meta") else SEGMENT_BYTES
