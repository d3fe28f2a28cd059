"""The versions of patched layers (`patched_layers.py`): host memory with their patched bytes."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch

from ..device.device_port import DevicePort
from ..layers.layer import Layer
from ..layers.patched_layers import Change, LayerPatch, PatchKey, Place
from ..tensors.host_source import MemorySource

_REMEMBERED = 4
"""Overwritten patch sets remembered per layer, to notice their return."""


class Versions:
    """One component's layer patches that have a version, and the memory of the versions.

    Memory is allocated and page-locked between passes (`reserve`); a pass only fills it (`save`). A patch set no longer
    in effect passes its memory to the next one: trying one strength after another takes one version per layer. If an
    overwritten patch set returns to a layer, one more version is kept for it, for graphs that alternate.
    """

    def __init__(self, port: DevicePort) -> None:
        self._port = port
        self.may_hold: Callable[[int], bool] | None = lambda nbytes: True
        """Called with a number of bytes: whether another version of that size may be kept. None: no version is."""
        self._kept: dict[tuple[Layer, PatchKey], LayerPatch] = {}
        """The patches with a version, in LRU order."""
        self._buffers: dict[int, torch.Tensor] = {}
        self._unlocked: set[int] = set()
        """Ids of `_buffers` that are not page-locked."""
        self._reserved: dict[Layer, torch.Tensor] = {}
        """Memory for the next version of a layer."""
        self._overwritten: dict[Layer, deque[int]] = {}
        """Hashes of the keys whose versions were overwritten last."""
        self._wanted_sets: dict[Layer, int] = {}
        """Number of versions to keep, where that is more than one."""
        self.outdated = False
        """`reserve` is due."""
        self.refused: set[str] = set()
        """Names of layers for whose version the last `reserve` found no room."""
        self._close = weakref.finalize(self, _release, port, self._buffers)
        self._close.atexit = False

    def hold_if(self, may_hold: Callable[[int], bool] | None) -> None:
        """Keep further versions only if `may_hold`, called with their bytes, says so; None: keep none."""
        self.may_hold = may_hold

    @property
    def held_bytes(self) -> int:
        return sum(buffer.numel() for buffer in self._buffers.values())

    def patch_for(self, layer: Layer, changes: Sequence[tuple[Place, Change]]) -> LayerPatch:
        """The patch of `layer` with these changes: the existing one, if it is in effect or has a version."""
        keys = tuple((id(parameters), name, change.key) for (parameters, name), change in changes)
        key = (layer.host.generation, keys)
        patch = self._kept.pop((layer, key), None)
        if patch is not None:
            self._kept[layer, key] = patch
        elif layer.patch is not None and layer.patch.key == key:
            patch = layer.patch
        else:
            overwritten = self._overwritten.get(layer, deque())
            if hash(key) in overwritten:
                overwritten.remove(hash(key))
                self._wanted_sets[layer] = self._wanted_sets.get(layer, 1) + 1
            return LayerPatch(key, changes)
        patch.make_by(changes)
        return patch

    # ------------------------------------------------------------------ memory, between passes

    def reserve_later(self) -> None:
        """Have `reserve` called after the pass under way."""
        self.outdated = True

    def reserve(self, layers: Sequence[Layer], progress: Callable[[int, int], None] | None = None) -> None:
        """Allocate memory for the version of every layer that will be patched on arrival, as far as there is room.
        `progress(bytes, of_bytes)` may raise to stop it; `reserve` is then due again."""
        self.outdated = True
        wanting = [
            layer
            for layer in layers
            if layer.patch is not None and layer.patch.version is None and not layer.keep_resident
        ]
        for layer in [layer for layer in self._reserved if layer not in wanting]:
            self._free(self._reserved.pop(layer))
        self.refused.clear()
        done, total = 0, sum(layer.nbytes for layer in wanting)
        for layer in wanting:
            if layer not in self._reserved:
                if (buffer := self._overwrite(layer)) is None:
                    buffer = self._take(layer)
                if buffer is None:
                    self.refused.add(layer.name)
                else:
                    self._reserved[layer] = buffer
            done += layer.nbytes
            if progress is not None:
                progress(done, total)
        if self._unlocked:
            self._port.prepare_reads()
        self.outdated = False

    def _overwrite(self, layer: Layer) -> torch.Tensor | None:
        """Take the memory of the layer's LRU version, if it has as many versions as are to be kept; else None."""
        kept_places = [place for place in self._kept if place[0] is layer]
        unwanted = [place for place in kept_places if layer.patch is not self._kept[place]]
        if not unwanted or len(kept_places) < self._wanted_sets.get(layer, 1):
            return None
        self._port.drain()  # copies from or to it may be in flight
        return self._forget_version(unwanted[0])

    def _take(self, layer: Layer) -> torch.Tensor | None:
        """Allocate memory, if need be by freeing versions of any layer that are not in effect; None without room."""
        try:
            while self.may_hold is None or not self.may_hold(layer.nbytes):
                places = (place for place, kept in self._kept.items() if place[0].patch is not kept)
                unwanted = next(places, None)
                if unwanted is None:
                    return None
                self._free(self._forget_version(unwanted))
            with torch.inference_mode(False):
                buffer, locked = self._port.host_empty(layer.nbytes, layer.host.pinned)
        except (MemoryError, OSError):
            return None
        self._buffers[id(buffer)] = buffer
        if not locked and self._port.stages_unpinned:
            self._unlocked.add(id(buffer))
        return buffer

    def _forget_version(self, place: tuple[Layer, PatchKey]) -> torch.Tensor:
        """Forget a version and return its memory."""
        patch = self._kept.pop(place)
        self._overwritten.setdefault(place[0], deque(maxlen=_REMEMBERED)).append(hash(place[1]))
        buffer = patch.version
        assert buffer is not None
        patch.keep(None)
        return buffer

    def _free(self, buffer: torch.Tensor) -> None:
        self._port.drain()  # its last copy, in either direction, may be in flight
        self._port.host_release(buffer)
        self._unlocked.discard(id(buffer))
        del self._buffers[id(buffer)]

    # ------------------------------------------------------------------ in a pass

    def save(self, layer: Layer) -> int:
        """Copy a patched layer to the host, so that it need not be patched on its next arrival. Returns the bytes
        copied: 0 if no memory was reserved for it."""
        patch = layer.patch
        assert patch is not None
        buffer = self._reserved.pop(layer, None)
        if buffer is None:
            return 0
        layer.copy_back(self._port, buffer)
        unlocked = id(buffer) in self._unlocked
        if unlocked:
            self._port.host_waits(layer.saved)  # it is read by threads that wait for no event
        patch.keep(buffer, MemorySource(buffer) if unlocked else None)
        self._kept[layer, patch.key] = patch
        layer.set_patch(patch)
        return layer.nbytes

    def settle(self, layers: Sequence[Layer]) -> None:
        """Order later work on both lanes after all copies back in flight."""
        for layer in layers:
            layer.settle(self._port)

    def forget(self) -> None:
        """Release all versions; layers are patched on arrival until others are made. No copy is in flight."""
        for patch in self._kept.values():
            patch.keep(None)
        self._kept.clear()
        self._reserved.clear()
        self._unlocked.clear()
        self.refused.clear()
        _release(self._port, self._buffers)

    def close(self) -> None:
        """Release all versions for good. No copy is in flight."""
        self._kept.clear()
        self._reserved.clear()
        self._close()


def _release(port: DevicePort, buffers: dict[int, torch.Tensor]) -> None:
    """Release the buffers. As a finalizer it refers to these only, so that it keeps no module alive."""
    if buffers:
        port.drain()
    for buffer in buffers.values():
        port.host_release(buffer)
    buffers.clear()
