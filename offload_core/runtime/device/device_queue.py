"""What the components on one device share: the copy lane, and one arena for all their rings.

A component *leases* bytes of the arena and *activates* its lease when it starts to run. One component uses the arena at
a time; one that starts preempts the look-ahead of another that has no layer in use, even in the middle of its pass: the
other's copies there are lost, and it activates its lease again at its next demand load. Knows nothing about layers: a
lessee is any object with the three methods of `Lessee`.
"""

from __future__ import annotations

import weakref
from typing import Protocol

import torch

from ...errors import StateError
from ...planning.reserved import reserved_bytes
from .clock import DeviceClock
from .device_port import DevicePort


class Lessee(Protocol):
    """A component, as the queue sees it."""

    def ring_moved(self, arena: torch.Tensor | None) -> None:
        """The arena is now this tensor, or None: build or drop the views into it."""

    def give_up_ring(self) -> None:
        """Another component is about to overwrite the arena: activate again before the next copy into it."""

    def is_running(self) -> bool:
        """Whether one of its layers is in use."""


class DeviceQueue:
    """Owner of the port and the arena of one device. End every lease before closing it."""

    def __init__(self, port: DevicePort) -> None:
        self.port = port
        self.arena: torch.Tensor | None = None
        self._leases: weakref.WeakKeyDictionary[Lessee, int] = weakref.WeakKeyDictionary()
        self._holder: weakref.ref[Lessee] | None = None
        self._fence = port.event()
        self.clock = DeviceClock(port)
        """One time scale for all components on the device."""

    @property
    def arena_bytes(self) -> int:
        return 0 if self.arena is None else self.arena.numel()

    def lease(self, lessee: Lessee, nbytes: int) -> None:
        """Lease the first `nbytes` of the arena to `lessee`, 0: none; the arena grows or shrinks to the largest lease.
        Raises StateError if it would have to grow while another component is running."""
        needed, running = self._needed(lessee, nbytes), self.others_running(lessee)
        if running and needed > self.arena_bytes:
            raise StateError(
                f"asked for a ring of {nbytes} bytes; found another component running in the one of "
                f"{self.arena_bytes} bytes; load it when that pass has ended"
            )
        if self._holder is not None and self._holder() is lessee:
            # Wait for its look-ahead under the old layout; `activate` orders later copies.
            self.port.drain()
            self._holder = None
        if nbytes:
            self._leases[lessee] = nbytes
        else:
            self._leases.pop(lessee, None)
        if needed != self.arena_bytes and not running:  # it stays too large while a component runs in it
            self._move(needed)
        elif nbytes:
            lessee.ring_moved(self.arena)
        if not nbytes:
            lessee.ring_moved(None)

    def others_running(self, lessee: Lessee) -> bool:
        """Whether another component has a layer in use, so that the arena must not move."""
        return any(other.is_running() for other in self._leases if other is not lessee)

    def _needed(self, lessee: Lessee, nbytes: int) -> int:
        """Bytes of the arena if `lessee` leases `nbytes`."""
        return max((nbytes, *(leased for other, leased in self._leases.items() if other is not lessee)))

    def freed_by(self, lessee: Lessee, nbytes: int = 0) -> int:
        """Device bytes that would be freed if `lessee` leased only `nbytes`; 0 while another component runs."""
        if self.others_running(lessee):
            return 0
        sizes = self.arena_bytes, self._needed(lessee, nbytes)
        taken, needed = (reserved_bytes(size, self.port.segment_bytes) for size in sizes)
        return max(0, taken - needed)

    def activate(self, lessee: Lessee) -> bool:
        """`lessee` starts to run. False: there is no arena, or another component has a layer in use in it."""
        if self.arena is None:
            return False
        holder = self._holder() if self._holder is not None else None
        if holder is lessee:
            return True
        if holder is not None:
            if holder.is_running():
                return False
            holder.give_up_ring()
        self.fence()
        self._holder = weakref.ref(lessee)
        return True

    def fence(self) -> None:
        """Order every kernel issued so far before every copy issued from now on. For memory that changes hands: another
        lessee, another layout, or a new allocation whose memory a queued kernel may still use."""
        self.port.record_compute(self._fence)
        self.port.copy_waits(self._fence)

    def _move(self, nbytes: int) -> None:
        """Replace the arena. The host waits for the copy lane, since the old bytes are released to the allocator."""
        self.port.drain()
        lessees = list(self._leases)
        for lessee in lessees:
            lessee.ring_moved(None)
        had_one, self.arena = self.arena is not None, None
        self._holder = None
        if had_one:
            self.port.trim()
        if nbytes:
            with torch.inference_mode(False):
                self.arena = self.port.empty(nbytes)
        for lessee in lessees:
            lessee.ring_moved(self.arena)

    def close(self) -> None:
        """End all leases, release the arena and close the port."""
        self._leases.clear()
        self._move(0)
        self.port.close()
