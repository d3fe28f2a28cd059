"""The few calls through which the engine speaks to a device.

A port knows two lanes: the *compute lane*, which is whatever stream the caller's kernels go to, and the *copy lane*,
which the port owns. It knows nothing about layers, plans or rings. Everything the engine orders, it orders through
the six event calls below; that is why a test can replace the port by one that keeps vector clocks, or virtual time,
and so prove things about the engine without a device.

`ports.py` picks the port for a device. Ports are shared by every component on their device, see `device_queue.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from ..reserved import SEGMENT_BYTES
from .host_source import ByteSource

Event = Any
"""An event handle. Its type belongs to the port that made it; the engine only hands it back."""


class DeviceMemory(NamedTuple):
    """What the device says about its memory, in bytes."""

    free_bytes: int
    total_bytes: int


@runtime_checkable
class DevicePort(Protocol):
    """Device calls of the engine. No call but `drain`, `trim`, `host_waits` and `close` may make the host wait.

    Nor may any other, except where something has to be read first: `compute_waits` for a copy that comes from a source.
    """

    device: torch.device
    asynchronous: bool
    """Whether a copy runs beside the compute lane. False means look-ahead brings nothing, only correctness counts."""
    shares_host_memory: bool
    """Whether kernels read host memory as they find it: then what is not streamed needs no copy at all."""
    pins_in_place: bool
    """Whether `host_pin` is worth asking; else only `host_empty` gives page-locked memory, if anything does."""
    stages_unpinned: bool
    """Whether memory that is not page-locked is better handed over as a source (`copy_from`) than copied from."""
    segment_bytes: int
    """In multiples of what the device's memory is taken (`reserved.py`); 1: to the byte."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """A fresh byte tensor of `nbytes` on the device, from the compute lane's allocator.

        What is taken for it (`reserved.py`) is allocated in full, so that no count of the allocator's, by which the app
        reckons, calls the rest of its last segment free.
        """

    def trim(self) -> None:
        """Memory that was given back and that the allocator keeps for later goes back to the device, so that what is
        taken next does not come on top of it. May make the host wait. Never on the hot path.
        """

    def event(self, timed: bool = False) -> Event:
        """A new, never recorded event. Waiting for a never recorded event is waiting for nothing."""

    def record_copy(self, event: Event) -> None: ...

    def record_compute(self, event: Event) -> None: ...

    def copy_waits(self, event: Event) -> None:
        """Later work on the copy lane starts after what `event` marks."""

    def compute_waits(self, event: Event) -> None:
        """Later work on the compute lane starts after what `event` marks."""

    def copy(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of bytes on the copy lane. Both are flat byte tensors of the same length; the source is all of a
        buffer from `host_empty`, or what such a buffer begins with.
        """

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None:
        """Queue a copy of bytes that have to be read first. A wait for it raises what reading raised."""

    def prepare_reads(self) -> None:
        """Copies from sources are to come: take what they go through now, not in a pass. Idempotent."""

    def abandon(self, sources: Collection[ByteSource]) -> None:
        """What was not read yet for copies from these need not be: these copies will not be waited for."""

    def copy_on_compute(self, destination: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of bytes on the compute lane: the slow road of a layer for which the ring has no room."""

    def copy_back(self, destination: torch.Tensor, source: torch.Tensor, done: Event) -> None:
        """Queue a copy of bytes from the device to a host buffer, beside both lanes: after all that the compute lane
        was given so far, and `done` marks its end. For what is made on the device, once; never on the hot path.
        """

    def drain(self) -> None:
        """The host waits until the copy lane is empty and nothing is being copied back. Never on the hot path."""

    def host_waits(self, event: Event) -> None:
        """The host waits for what `event` marks. Never on the hot path."""

    def happened(self, event: Event) -> bool:
        """Whether what a recorded `event` marks has happened. Does not wait. True: nothing need wait for it now."""

    def before_release(self) -> None:
        """Memory from `empty` is about to be given back; what read it comes before this point of the compute lane.
        The memory's next use, on whichever stream, comes after. Never on the hot path.
        """

    def elapsed_ns(self, start: Event, end: Event) -> int | None:
        """Time between two timed events, or None while either is still to come."""

    def memory(self) -> DeviceMemory | None:
        """Device memory, or None where the device does not tell."""

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        """A host byte tensor of exactly `nbytes`, and whether it is page-locked, which it may fail to become."""

    def host_pin(self, buffer: torch.Tensor) -> bool:
        """Page-lock a buffer from `host_empty` in place. False: it stays pageable, and nothing else has changed."""

    def host_release(self, buffer: torch.Tensor) -> None:
        """End the page-lock of a buffer from `host_empty`; its bytes stay readable. Never on the hot path.

        Nothing of ours is in flight from it. What others have queued on the compute lane is waited for.
        """

    def close(self) -> None: ...


def is_unified(device: torch.device) -> bool:
    """Whether a device that has tensors of its own keeps them in the host's memory: Apple's, and integrated GPUs.

    A host copy of a weight would then be a second one in the same memory, so plans leave weights in their file.
    """
    if device.type in ("mps", "cpu", "meta"):
        return device.type == "mps"
    describe = getattr(torch.get_device_module(device), "get_device_properties", None)
    return describe is not None and bool(getattr(describe(device), "is_integrated", False))


def segment_bytes_of(device: torch.device) -> int:
    """In multiples of what memory torch takes of `device`. Of Apple's devices that is not known: to the byte."""
    return 1 if device.type in ("mps", "cpu", "meta") else SEGMENT_BYTES
