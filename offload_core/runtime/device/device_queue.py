"""What the components on one device share: the copy lane, and one arena for all their rings.

A component *leases* bytes of the arena and *activates* its lease when it starts to run. One component uses the arena at
a time; one that starts preempts the look-ahead of another that has no layer in use, even in the middle of its pass: the
other's copies there are lost, and it activates its lease again at its next demand load.

Near the end of its use the *holder* shares the arena with a *guest*, the component that is expected to run next: into
the bytes that the holder needs no more, the guest's first layers are copied. Each then counts the other's layers among
those that its own overlap. The guest becomes the holder when it starts to run; if another starts, or the holder needs
its bytes after all, the guest's copies are lost. Knows nothing about layers: a lessee is any object with the methods of
`Lessee`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ...errors import StateError
from ...planning.reserved import reserved_bytes
from ...planning.succession import Succession
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

    def is_between_passes(self) -> bool:
        """Whether no pass of it is under way. Layers called by themselves since its last pass count as one."""

    def ring_places(self) -> Mapping[Any, int]:
        """Its layers in the arena, with their offsets."""

    def share_ring(self, places: Mapping[Any, int]) -> None:
        """Another component's layers at these places overlap ours from now on; none: no other's do."""

    def fetch_early(self) -> None:
        """It is the guest, or the holder and not yet running: copy its first layers to where no other layer needs the
        bytes."""


class DeviceQueue:
    """Owner of the port and the arena of one device. End every lease before closing it."""

    def __init__(self, port: DevicePort) -> None:
        self.port = port
        self.arena: torch.Tensor | None = None
        self._leases: weakref.WeakKeyDictionary[Lessee, int] = weakref.WeakKeyDictionary()
        self._holder: weakref.ref[Lessee] | None = None
        self._guest: weakref.ref[Lessee] | None = None
        self._succession = Succession()
        self._numbers: weakref.WeakKeyDictionary[Lessee, int] = weakref.WeakKeyDictionary()
        """What `_succession` calls a component."""
        self._new_numbers = itertools.count()
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
        self.withdraw(lessee)
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
        holder, guest = self._holder_now(), self._guest_now()
        if holder is lessee:
            return True
        if holder is not None and holder.is_running():
            return False
        for other in (holder, guest):
            if other is not None and other is not lessee:
                other.give_up_ring()
        self.fence()
        self._holder, self._guest = weakref.ref(lessee), None  # after an interrupt before this, all is as before
        _unlink(holder, guest)
        return True

    def withdraw(self, lessee: Lessee) -> None:
        """`lessee` is about to move its layers, or to leave. The host waits for its look-ahead; `activate` orders later
        copies. A guest stays, and becomes the holder."""
        holder, guest = self._holder_now(), self._guest_now()
        if lessee is holder:
            self.port.drain()
            if guest is not None:
                self.fence()
            self._holder, self._guest = self._guest, None
            _unlink(holder, guest)
        elif lessee is guest:
            self.port.drain()
            self._stop_sharing()

    # ------------------------------------------------------------------ who runs next

    def use_begins(self, lessee: Lessee) -> None:
        """The caller is about to use `lessee`, for some passes in a row."""
        self._succession.use_begins(self._number_of(lessee))

    def pass_begins(self, lessee: Lessee) -> bool:
        """A pass of `lessee` begins, which has activated its lease, if it has one. Returns whether it shares the arena
        from now on with a guest, which is expected to make the next pass (`fetch_next`)."""
        number = self._succession.pass_begins(self._number_of(lessee))
        upcoming = next((other for other in self._leases if self._numbers.get(other, -1) == number), None)
        holder, guest = self._holder_now(), self._guest_now()
        if guest is not None and guest is upcoming and lessee is holder:
            return True
        self._stop_sharing()  # a guest that begins a pass is the holder by now, or has to do without the arena
        if upcoming is None or self.arena is None or not upcoming.is_between_passes():
            return False
        if holder is not lessee:  # it runs without the arena
            if (holder is None or holder.is_between_passes()) and self.activate(upcoming):
                upcoming.fetch_early()
            return False
        holder.share_ring(upcoming.ring_places())
        self._guest = weakref.ref(upcoming)
        return True

    def fetch_next(self) -> None:
        """Let the guest, if there is one, copy what the holder leaves room for."""
        guest = self._guest_now()
        if guest is not None:
            guest.fetch_early()

    def keep_for_holder(self, lessee: Lessee) -> None:
        """The holder needs the arena after all. Nothing is done if `lessee` is not the holder."""
        if lessee is self._holder_now():
            self._stop_sharing()

    def _stop_sharing(self) -> None:
        """There is no guest any more: its copies, which no kernel has read, are lost."""
        if self._guest is None:
            return
        holder, guest = self._holder_now(), self._guest_now()
        if guest is not None:
            guest.give_up_ring()
        self._guest = None
        _unlink(holder, guest)

    def _number_of(self, lessee: Lessee) -> int:
        number = self._numbers.get(lessee)
        if number is None:
            number = self._numbers[lessee] = next(self._new_numbers)
        return number

    def _holder_now(self) -> Lessee | None:
        return None if self._holder is None else self._holder()

    def _guest_now(self) -> Lessee | None:
        return None if self._guest is None else self._guest()

    def fence(self) -> None:
        """Order every kernel issued so far before every copy issued from now on. For memory that changes hands: another
        lessee, another layout, or a new allocation whose memory a queued kernel may still use."""
        self.port.record_compute(self._fence)
        self.port.copy_waits(self._fence)

    def _move(self, nbytes: int) -> None:
        """Replace the arena. The host waits for the copy lane, since the old bytes are released to the allocator."""
        self.port.drain()
        self._stop_sharing()
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


def _unlink(*lessees: Lessee | None) -> None:
    """They share the arena no more. Links that stay after an interrupt cost waits, and nothing else."""
    for lessee in lessees:
        if lessee is not None:
            lessee.share_ring({})
