"""The host memory of patched layers: what a layer is under its revision, kept so that it is changed once.

`revision.py` says what a revision is and what becomes of it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch

from .device_port import DevicePort
from .host_source import MemorySource
from .layer import Layer
from .revision import Change, Place, Revision, RevisionKey

_REMEMBERED = 4
"""Patch sets of a layer whose return is noticed after their version was overwritten."""


class Versions:
    """The revisions of one component's layers that have a version, and the memory of these.

    Host memory for versions is taken, and page-locked, between passes (`reserve`); a pass only fills it (`save`). The
    version of a patch set that is not in effect gives its memory to that of the next one, page-locks and all: who tries
    one strength after another needs one version of each layer. Of a layer to which an overwritten patch set comes back,
    one version more is kept from then on, for people and graphs that go back and forth.
    """

    def __init__(self, port: DevicePort) -> None:
        self._port = port
        self.may_hold: Callable[[int], bool] = lambda nbytes: True
        """Asked whether another version of so many bytes may be kept."""
        self._kept: dict[tuple[int, RevisionKey], tuple[Layer, Revision]] = {}
        """By index of the layer and key; the least recently wanted first."""
        self._buffers: dict[int, torch.Tensor] = {}
        self._unlocked: set[int] = set()
        """Those of `_buffers` that are not page-locked."""
        self._reserved: dict[int, torch.Tensor] = {}
        """Memory for a version to come, by index of the layer."""
        self._overwritten: dict[int, deque[int]] = {}
        """Hashes of the keys whose versions gave their memory to others last, by index of the layer."""
        self._wanted_sets: dict[int, int] = {}
        """How many versions of a layer to keep, by its index, where that is more than one."""
        self.outdated = False
        """`reserve` is due."""
        self.refused: set[str] = set()
        """Names of layers for whose version there was no room when memory was last reserved."""
        self._close = weakref.finalize(self, _release, port, self._buffers)
        self._close.atexit = False

    @property
    def held_bytes(self) -> int:
        return sum(buffer.numel() for buffer in self._buffers.values())

    def revision(self, layer: Layer, changes: Sequence[tuple[Place, Change]]) -> Revision:
        """The revision of `layer` with these changes: the same one as ever, if it is in effect or has a version."""
        keys = tuple((id(parameters), name, change.key) for (parameters, name), change in changes)
        key = (layer.host.generation, keys)
        kept = self._kept.pop((layer.index, key), None)
        if kept is not None:
            self._kept[layer.index, key] = kept
            found = kept[1]
        elif layer.revision is not None and layer.revision.key == key:
            found = layer.revision
        else:
            overwritten = self._overwritten.get(layer.index)
            if overwritten is not None and hash(key) in overwritten:
                overwritten.remove(hash(key))
                self._wanted_sets[layer.index] = self._wanted_sets.get(layer.index, 1) + 1
            return Revision(key, changes)
        found.changes = changes
        return found

    # ------------------------------------------------------------------ memory, between passes

    def reserve_later(self) -> None:
        """A pass is under way: `reserve` is due at its end."""
        self.outdated = True

    def reserve(self, layers: Sequence[Layer], progress: Callable[[int, int], None] | None = None) -> None:
        """Have memory for the version of every layer that is changed when it arrives next, as far as there is room.

        `progress(bytes, of_bytes)` is told how far it is, and may end it by an error: what is missing is then due.
        """
        self.outdated = True
        wanting = {
            layer.index: layer
            for layer in layers
            if layer.revision is not None and layer.revision.version is None and not layer.keep_resident
        }
        for index in [index for index in self._reserved if index not in wanting]:
            self._free(self._reserved.pop(index))
        self.refused.clear()
        done, total = 0, sum(layer.nbytes for layer in wanting.values())
        for index, layer in wanting.items():
            if index not in self._reserved:
                buffer = self._overwrite(layer)
                if buffer is None:
                    buffer = self._take(layer)
                if buffer is None:
                    self.refused.add(layer.name)
                else:
                    self._reserved[index] = buffer
            done += layer.nbytes
            if progress is not None:
                progress(done, total)
        if self._unlocked:
            self._port.prepare_reads()
        self.outdated = False

    def _overwrite(self, layer: Layer) -> torch.Tensor | None:
        """The memory of the layer's version that was wanted least recently, if it has as many as are worth keeping."""
        mine = [place for place in self._kept if place[0] == layer.index]
        if len(mine) < self._wanted_sets.get(layer.index, 1):
            return None
        unwanted = [place for place in mine if layer.revision is not self._kept[place][1]]
        if not unwanted:
            return None
        self._port.drain()  # copies from it, or to it, may be under way
        return self._forget_version(unwanted[0])

    def _take(self, layer: Layer) -> torch.Tensor | None:
        """New memory, if need be at the cost of versions of any layer that are not in effect."""
        try:
            while not self.may_hold(layer.nbytes) and (victim := self._unwanted()) is not None:
                buffer = self._forget_version(victim)
                if buffer is not None:
                    self._free(buffer)
            if not self.may_hold(layer.nbytes):
                return None
            with torch.inference_mode(False):
                buffer, locked = self._port.host_empty(layer.nbytes, layer.host.pinned)
        except (MemoryError, OSError):
            return None
        self._buffers[id(buffer)] = buffer
        if not locked and self._port.stages_unpinned:
            self._unlocked.add(id(buffer))
        return buffer

    def _unwanted(self) -> tuple[int, RevisionKey] | None:
        return next((place for place, (layer, kept) in self._kept.items() if layer.revision is not kept), None)

    def _forget_version(self, place: tuple[int, RevisionKey]) -> torch.Tensor | None:
        """The version's memory, in which it is no longer looked for."""
        _, revision = self._kept.pop(place)
        self._overwritten.setdefault(place[0], deque(maxlen=_REMEMBERED)).append(hash(place[1]))
        buffer, revision.version, revision.to_read = revision.version, None, None
        return buffer

    def _free(self, buffer: torch.Tensor) -> None:
        self._port.drain()  # its last copy, either way, may be on its way
        self._port.host_release(buffer)
        self._unlocked.discard(id(buffer))
        del self._buffers[id(buffer)]

    # ------------------------------------------------------------------ in a pass

    def save(self, layer: Layer) -> int:
        """Copy a changed layer to the host, so that it need not be changed again when it comes next.

        Returns how many bytes are copied: none if no memory was reserved for it.
        """
        revision, changed = layer.revision, layer.device_buffer
        assert revision is not None and changed is not None
        buffer = self._reserved.pop(layer.index, None)
        if buffer is None:
            return 0
        layer.saving = True
        self._port.copy_back(buffer, changed, layer.saved)
        if id(buffer) in self._unlocked:
            self._port.host_waits(layer.saved)  # it is read by other threads, which wait for no event
            revision.to_read = MemorySource(buffer)
        revision.version = buffer
        self._kept[layer.index, revision.key] = (layer, revision)
        layer.source, layer.source_carries = buffer, revision
        return layer.nbytes

    def settle(self, layers: Sequence[Layer]) -> None:
        """Whatever is done from now on, on either lane, comes after what is being copied back."""
        for layer in layers:
            if layer.saving:
                self._port.copy_waits(layer.saved)
                self._port.compute_waits(layer.saved)
                layer.saving = False

    def forget(self) -> None:
        """Give all versions back; layers are changed on arrival until others are made. Nothing is in flight."""
        for _, revision in self._kept.values():
            revision.version = revision.to_read = None
        self._kept.clear()
        self._reserved.clear()
        self._unlocked.clear()
        self.refused.clear()
        _release(self._port, self._buffers)

    def close(self) -> None:
        """Give all versions back. Nothing is in flight."""
        self._kept.clear()
        self._reserved.clear()
        self._close()


def _release(port: DevicePort, buffers: dict[int, torch.Tensor]) -> None:
    """Holds the buffers and nothing else, so that it keeps no module alive."""
    if buffers:
        port.drain()
    for buffer in buffers.values():
        port.host_release(buffer)
    buffers.clear()
