"""Brings host masters to the tiers of a plan, layer by layer; no page-lock begins or ends in the middle of a pass.
Knows nothing about rings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import torch

from ..host_budget import available_bytes
from ..inventory import Inventory
from ..plan import HostTier, Plan
from .device_port import DevicePort, Event
from .host_source import FileSource, loaders
from .layer import Binding, Layer
from .masters import Hold, distinct


class TierMoves:
    """Brings each master to where a plan wants it, in two steps. In between, the device's memory is arranged: where
    host and device are one memory, a ring of the plan before must have gone when masters of the new one come.

    A resident of a device that shares host memory is used where its master lies, in memory; one that is changed there
    has a place of its own, and no master beyond its file. `drain`: the host waits until nothing is in flight.

    `in_pass`: page-locking would stop the pass, so masters that are to become page-locked stay as they are, pageable or
    in their file, and are copied through the port's staging slots. Those that are page-locked stay so: without one that
    is not, there may be no slots yet. `put_off` says whether there are such; `finish` moves them when the pass is over.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        plan: Plan,
        port: DevicePort,
        drain: Callable[[], None],
        progress: Callable[[int, int], None] | None,
        in_pass: bool = False,
    ) -> None:
        self._layers, self._plan, self._port = layers, plan, port
        self._drain, self._progress = drain, progress
        self._moves: list[tuple[Layer, HostTier]] = []
        self._later: list[tuple[Layer, HostTier]] = []
        for layer, planned in zip(layers, plan.layers):
            tier = planned.host_tier
            if layer.keep_resident and port.shares_host_memory:
                own = layer.revision is not None or (layer.device_buffer is not None and not layer.is_in_place)
                tier = "mapped" if own and layer.host.in_file else "pageable"
            if layer.host.tier != tier and (tier != "mapped" or layer.host.in_file):
                later = in_pass and "pinned" in (tier, layer.host.tier)
                (self._later if later else self._moves).append((layer, tier))
        self._moved = 0

    @property
    def put_off(self) -> bool:
        return bool(self._later)

    def finish(self) -> None:
        """Between passes, and before the host takes memory for versions: what was put off. Raises FileReadError."""
        self._moves, self._moved = self._later, 0
        self.give_back()
        self.take()
        self._later = []

    def give_back(self) -> None:
        """What can be read from the file again leaves memory."""
        if self._moves:
            self._drain()
        self._move("mapped")

    def take(self) -> None:
        """What the plan wants in memory comes there. Raises FileReadError."""
        with loaders() as threads:
            self._move("pageable", threads)
            self._move("pinned", threads)
        if any(layer.host.source is not None for layer in self._layers):
            self._port.prepare_reads()
        _drop_behind(self._layers, self._plan)

    def _move(self, tier: HostTier, threads: Executor | None = None) -> None:
        total = sum(layer.nbytes for layer, _ in self._moves)
        for layer in [layer for layer, wanted in self._moves if wanted == tier]:
            if not layer.is_in_place:  # else its parameters are in use where they are
                layer.host.move_to(tier, threads)
            self._moved += layer.nbytes
            if self._progress is not None:
                self._progress(self._moved, total)


def _drop_behind(layers: Sequence[Layer], plan: Plan) -> None:
    """What is read in every pass and does not fit the page cache would only drive everything else out of it."""
    sources = [
        layer.host.source
        for layer, planned in zip(layers, plan.layers)
        if planned.placement == "streamed" and isinstance(layer.host.source, FileSource)
    ]
    if not sources:
        return
    room = available_bytes()
    too_much = room is not None and sum(source.nbytes for source in sources) > room
    for source in sources:
        for file in source.files:
            file.drop_behind = too_much


def there_bytes(layers: Iterable[Layer]) -> tuple[int, int]:
    """Two byte counts, neither of which needs more host memory: of layers that could stay in their file and are in
    memory now, and of all masters that are page-locked now."""
    copies = pinned = 0
    for layer in layers:
        master = layer.host.master
        if master is not None:
            copies += layer.nbytes if layer.host.in_file else 0
            pinned += layer.nbytes if master.locked else 0
    return copies, pinned


def bytes_in_use(layers: Sequence[Layer], more: Sequence[Hold] = ()) -> dict[HostTier, int]:
    """Host memory of layers of any components and of `more`, by tier; a buffer that several share counts once."""
    found: dict[HostTier, int] = {"pinned": 0, "pageable": 0, "mapped": 0}
    for master in distinct([*(layer.host.hold for layer in layers), *more]):
        found["pinned" if master.locked else "pageable"] += master.nbytes
    found["mapped"] = sum(layer.nbytes for layer in layers if layer.host.tier == "mapped")
    return found


def with_files(inventory: Inventory, layers: Sequence[Layer]) -> Inventory:
    """The inventory with who lies in a file as it is now: plans are made from that."""
    specs = tuple(replace(spec, in_file=layer.host.in_file) for spec, layer in zip(inventory.layers, layers))
    return replace(inventory, layers=specs)


def copied_unplaced(layer: Layer, port: DevicePort, fence: Event) -> list[Binding]:
    """The layer in memory of its own, by the compute lane; what has to be read comes by the copy lane, after earlier
    users."""
    with torch.inference_mode(False):
        buffer = port.empty(layer.nbytes)
        bindings = layer.bindings_into(buffer)
    if layer.saving:
        port.compute_waits(layer.saved)
    source = layer.to_read
    if source is None:
        port.copy_on_compute(buffer, layer.source_bytes)
        return bindings
    port.record_compute(fence)
    port.copy_waits(fence)
    port.copy_from(buffer, source)
    port.record_copy(layer.copy_done)
    port.compute_waits(layer.copy_done)
    return bindings


def give_up_reads(port: DevicePort, layers: Sequence[Layer]) -> None:
    """A pass has failed: look-ahead that waits for gigabytes to be read is not waited for, nor its bytes counted on."""
    read = [(layer, source) for layer in layers if not layer.swapped_in and (source := layer.to_read) is not None]
    port.abandon([source for _, source in read])
    for layer, _ in read:
        layer.valid = False
