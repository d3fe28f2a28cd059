"""Host masters, the memory behind `host_store.HostLayer`: whose buffer it is, who uses it, who wants it page-locked.

A layer whose tensors lie in a file shares its master with every layer of the same bytes: same content of the same file
(`WeightFile.identity`), same places in it, same types and layout. It is read once, never written again, and goes with
its last user. A layer that lies in no file has a master of its own. A buffer is page-locked once, from the first user
who counts on it to the last. The registry holds nobody: it finds masters that somebody else keeps.

Any thread may use this. `_lock` is for moments, and re-entrant: a garbage collection may end a hold anywhere. Reading a
file takes `Master.filling`, which nobody asks for while he has `_lock`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator

import torch

from .device_port import DevicePort

_lock = threading.RLock()
_shared: weakref.WeakValueDictionary[Hashable, Master] = weakref.WeakValueDictionary()


class Master:
    """A layer's bytes on the host. `key` says which; None: nobody else can have the same."""

    __slots__ = ("__weakref__", "buffer", "filling", "holds", "key", "locked", "port")

    def __init__(self, port: DevicePort, key: Hashable = None) -> None:
        self.port = port
        self.key = key
        self.buffer: torch.Tensor | None = None
        """None until somebody has filled it. With a key it never changes afterwards."""
        self.filling = threading.Lock()
        self.holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        self.locked: list[torch.Tensor] = []
        """The buffer, while it is page-locked."""
        weakref.finalize(self, _end_lock, port, self.locked).atexit = False

    @property
    def nbytes(self) -> int:
        return 0 if self.buffer is None else self.buffer.numel()

    def is_shared(self) -> bool:
        """Whether more than one layer uses it."""
        return len(self.holds) > 1

    def fill(self, nbytes: int, pinned: bool, read: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """The buffer, filled by `read` unless somebody has done so. If that fails it stays empty.

        `pinned`: for back ends that cannot page-lock what is there already.
        """
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
        """In place; what a back end cannot do so is moved into a buffer that it has locked, if there is one user."""
        assert self.buffer is not None
        if self.locked:
            return
        if self.port.host_pin(self.buffer):
            self.locked.append(self.buffer)
        elif not self.port.pins_in_place and not self.is_shared():
            with torch.inference_mode(False), torch.no_grad():
                other, locked = self.port.host_empty(self.buffer.numel(), True)
                if locked:
                    other.copy_(self.buffer)
                    self.buffer = other
                    self.locked.append(other)

    def _unlock_if_unwanted(self) -> None:
        if not any(hold.pinned for hold in self.holds):
            _end_lock(self.port, self.locked)


class Hold:
    """One layer's use of a master, or of none. Whoever is to end it when the layer is gone holds this and no more."""

    __slots__ = ("__weakref__", "master", "pinned")

    def __init__(self) -> None:
        self.master: Master | None = None
        self.pinned = False
        """Counts on the buffer being page-locked, and it is."""

    def take(self, port: DevicePort, key: Hashable = None) -> Master:
        """Use the master of `key`, which may have to be filled; without a key, a new one."""
        with _lock:
            place = (port.device.type, key)
            master = None if key is None else _shared.get(place)
            if master is None:
                master = Master(port, key)
                if key is not None:
                    _shared[place] = master
            self.drop()
            self.master = master
            master.holds.add(self)
            return master

    def take_from(self, other: Hold) -> None:
        """Use what `other` uses in its place."""
        with _lock:
            self.drop()
            self.master = other.master
            if self.master is not None:
                self.master.holds.add(self)
            other.drop()

    def pin(self) -> bool:
        """Have the buffer page-locked from now on. False if that cannot be."""
        with _lock:
            assert self.master is not None
            self.master._page_lock()
            self.pinned = bool(self.master.locked)
            return self.pinned

    def share(self) -> Hold:
        """Another hold of the same master, page-locked or not as this one is."""
        with _lock:
            other = Hold()
            other.master, other.pinned = self.master, self.pinned
            if other.master is not None:
                other.master.holds.add(other)
            return other

    def unpin(self) -> None:
        """Not counted on any more; nothing is in flight from the buffer for this user. Others may still count on it."""
        with _lock:
            self.pinned = False
            if self.master is not None:
                self.master._unlock_if_unwanted()

    def drop(self) -> None:
        """Use it no longer. Idempotent; nothing is in flight from it for this user."""
        with _lock:
            master, self.master = self.master, None
            self.pinned = False
            if master is not None:
                master.holds.discard(self)
                master._unlock_if_unwanted()


def find(port: DevicePort, key: Hashable) -> Master | None:
    """The master of `key`, if somebody has it in memory now. Not to be written to."""
    master = _shared.get((port.device.type, key))
    return None if master is None or master.buffer is None else master


def distinct(holds: Iterable[Hold]) -> Iterator[Master]:
    """The masters that are held, each once."""
    yield from {id(master): master for hold in holds if (master := hold.master) is not None}.values()


def close_holds(port: DevicePort, holds: Iterable[Hold]) -> None:
    """End the holds of a component. Also runs for one that was dropped and never detached.

    The finalizer that calls it has the holds and nothing else, so that it keeps no module alive.
    """
    port.drain()
    for hold in holds:
        hold.drop()


def _end_lock(port: DevicePort, locked: list[torch.Tensor]) -> None:
    """Only for what nothing is in flight from."""
    while locked:
        port.host_release(locked.pop())
