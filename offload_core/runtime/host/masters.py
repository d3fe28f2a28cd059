"""The memory of host masters (`host_layer.HostLayer`): shared, filled and page-locked on behalf of its users.

A layer whose tensors lie in a file shares its master with every layer of the same bytes of the file; it is read once,
never written again, and freed with its last user. A layer that lies in no file has a master of its own. A buffer is
page-locked from the first user that needs it to the last.

Any thread may use this. `_lock` is held briefly, and is re-entrant: a garbage collection may end a use anywhere.
Reading a file takes `HostMaster.filling`, which is never acquired while `_lock` is held.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator

import torch

from ..device.device_port import DevicePort

_lock = threading.RLock()
_shared: weakref.WeakValueDictionary[Hashable, HostMaster] = weakref.WeakValueDictionary()


class HostMaster:
    """A layer's bytes on the host. `key` identifies them; None: they are never shared."""

    __slots__ = ("__weakref__", "buffer", "filling", "key", "locked", "port", "uses")

    def __init__(self, port: DevicePort, key: Hashable = None) -> None:
        self.port = port
        self.key = key
        self.buffer: torch.Tensor | None = None
        """None until it is filled. With a key it never changes afterwards."""
        self.filling = threading.Lock()
        self.uses: weakref.WeakSet[MasterUse] = weakref.WeakSet()
        self.locked: list[torch.Tensor] = []
        """The buffer, while it is page-locked."""
        weakref.finalize(self, _end_lock, port, self.locked).atexit = False

    @property
    def nbytes(self) -> int:
        return 0 if self.buffer is None else self.buffer.numel()

    def is_shared(self) -> bool:
        return len(self.uses) > 1

    def fill(self, nbytes: int, pinned: bool, read: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """The buffer, filled by `read` if it is not filled yet. If `read` fails it stays empty. `pinned`: allocate it
        page-locked, for back ends that cannot page-lock memory in place."""
        with self.filling:
            if self.buffer is None:
                with torch.inference_mode(False):
                    buffer, locked = self.port.host_empty(nbytes, pinned)
                    if locked:
                        self.locked.append(buffer)
                    try:
                        read(buffer)
                    except BaseException:
                        _end_lock(self.port, self.locked)
                        raise
                self.buffer = buffer
            return self.buffer

    def _page_lock(self) -> None:
        """Page-lock the buffer, in place or, where the back end cannot, by moving it if it has one user."""
        assert self.buffer is not None
        if self.locked:
            return
        if self.port.host_pin(self.buffer):
            self.locked.append(self.buffer)
        elif not self.port.pins_in_place and not self.is_shared():
            with torch.inference_mode(False), torch.no_grad():
                pinned, locked = self.port.host_empty(self.buffer.numel(), True)
                if locked:
                    pinned.copy_(self.buffer)
                    self.buffer = pinned
                    self.locked.append(pinned)

    def _unlock_if_unwanted(self) -> None:
        if not any(use.pinned for use in self.uses):
            _end_lock(self.port, self.locked)


class MasterUse:
    """One layer's use of a master, or of none. Finalizers refer to this, so that they do not keep the layer alive."""

    __slots__ = ("__weakref__", "master", "pinned")

    def __init__(self) -> None:
        self.master: HostMaster | None = None
        self.pinned = False
        """This user needs the buffer page-locked, and it is."""

    def take(self, port: DevicePort, key: Hashable = None) -> HostMaster:
        """Use the master of `key`, which may have to be filled; without a key, a new one."""
        with _lock:
            place = (port.device.type, key)
            master = (None if key is None else _shared.get(place)) or HostMaster(port, key)
            if key is not None:
                _shared[place] = master
            return self.hold(master)

    def hold(self, master: HostMaster) -> HostMaster:
        """Use this master in place of the one before."""
        with _lock:
            self.drop()
            self.master = master
            master.uses.add(self)
            return master

    def pin(self) -> bool:
        """Page-lock the buffer for this user. False if that is not possible."""
        with _lock:
            assert self.master is not None
            self.master._page_lock()
            self.pinned = bool(self.master.locked)
            return self.pinned

    def share(self) -> MasterUse:
        """Another use of the same master, page-locked or not as this one."""
        with _lock:
            other = MasterUse()
            if self.master is not None:
                other.hold(self.master)
            other.pinned = self.pinned
            return other

    def unpin(self) -> None:
        """End this user's page-lock; no copy of this user is in flight from the buffer. Others may keep theirs."""
        with _lock:
            self.pinned = False
            if self.master is not None:
                self.master._unlock_if_unwanted()

    def drop(self) -> None:
        """Release the master. Idempotent; no copy of this user is in flight from it."""
        with _lock:
            master, self.master = self.master, None
            self.pinned = False
            if master is not None:
                master.uses.discard(self)
                master._unlock_if_unwanted()


def find(port: DevicePort, key: Hashable) -> HostMaster | None:
    """The master of `key`, if it is in memory; None otherwise. Not to be written to."""
    master = _shared.get((port.device.type, key))
    return None if master is None or master.buffer is None else master


def distinct(uses: Iterable[MasterUse]) -> Iterator[HostMaster]:
    """The masters of the uses, each once."""
    yield from {id(master): master for use in uses if (master := use.master) is not None}.values()


def close_uses(port: DevicePort, uses: Iterable[MasterUse]) -> None:
    """End the uses of a component. A finalizer calls it, which must keep no module alive."""
    port.drain()
    for use in uses:
        use.drop()


def _end_lock(port: DevicePort, locked: list[torch.Tensor]) -> None:
    """End the page-locks of buffers from which no copy is in flight."""
    while locked:
        port.host_release(locked.pop())
