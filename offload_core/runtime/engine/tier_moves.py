"""Moves host masters to the tiers of a plan, layer by layer; page-locks begin and end between passes only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import get_args

from ...planning.host_budget import available_bytes
from ...planning.inventory import Inventory
from ...planning.plan import HostTier, Plan
from ..device.device_port import DevicePort
from ..host.masters import MasterUse, distinct
from ..layers.layer import Layer
from ..tensors.host_source import FileSource, loaders


class TierMoves:
    """Moves masters to the tiers of a plan in two steps. In between, the device's memory is arranged: where host and
    device share memory, the old plan's ring must be freed before masters of the new one are read.

    A resident of a device that shares host memory is used where its master lies, in memory; a patched one has a device
    buffer, and its master stays in the file. `drain`: the host waits until no copy is in flight.

    `in_pass`: page-locking would stall the pass, so masters to become page-locked stay pageable or in their file, and
    are copied through the port's staging slots. Page-locked ones stay so: there may be no slots for them yet. They are
    `put_off`; `finish` moves them after the pass. So are copies to another device, for which the host waits.
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
        self.put_off: list[tuple[Layer, HostTier]] = []
        for layer, planned in zip(layers, plan.layers):
            tier = planned.host_tier
            if layer.keep_resident and port.shares_host_memory:
                own = layer.patch is not None or (layer.device_buffer is not None and not layer.is_in_place)
                tier = "mapped" if own and layer.host.in_file else "pageable"
            if not self._is_there(layer, tier):
                later = in_pass and (tier == "peer" or "pinned" in (tier, layer.host.tier))
                (self.put_off if later else self._moves).append((layer, tier))
        self._moved = 0

    def _is_there(self, layer: Layer, tier: HostTier) -> bool:
        """Whether the layer is in `tier` already, or where it stays in place of it."""
        if tier == "peer" and layer.host.peer_copy is not None:
            name = self._plan.peer_device
            return name is not None and layer.host.peer_copy.device == self._port.peer_memory(name).device
        if tier == "mapped" and not layer.host.in_file:
            return layer.host.on_peer is None
        return layer.host.tier == tier and (tier == "peer" or layer.host.on_peer is None)

    def finish(self) -> None:
        """Move the masters that were put off. Between passes, before versions are allocated. Raises FileReadError."""
        self._moves = [(layer, tier) for layer, tier in self.put_off if not self._is_there(layer, tier)]
        self._moved = 0
        self.give_back()
        self.take()

    def give_back(self) -> None:
        """Move masters back to their file and free their memory. Free copies on another device that are not planned."""
        if self._moves:
            self._drain()
        free_peer_copies([layer for layer, _ in self._moves], self._port)
        self._move("mapped")

    def take(self) -> None:
        """Move masters into memory as planned. Raises FileReadError."""
        with loaders() as threads:
            self._move("peer", threads)  # first: it frees host memory and page-locks for the others
            self._move("pageable", threads)
            self._move("pinned", threads)
        # Layers on another device count too: a weight that is written is copied from its master from then on.
        if any(layer.host.source is not None or layer.host.peer_copy is not None for layer in self._layers):
            self._port.prepare_reads()
        _drop_behind(self._layers, self._plan)

    def _move(self, tier: HostTier, threads: Executor | None = None) -> None:
        total = sum(layer.nbytes for layer, _ in self._moves)
        name = self._plan.peer_device if tier == "peer" else None
        peer = None if name is None else self._port.peer_memory(name)
        for layer in [layer for layer, wanted in self._moves if wanted == tier]:
            if not layer.is_in_place:  # else the device uses the master where it is
                layer.host.move_to(tier, threads, peer)
            self._moved += layer.nbytes
            if self._progress is not None:
                self._progress(self._moved, total)


def _drop_behind(layers: Sequence[Layer], plan: Plan) -> None:
    """Set `drop_behind` of files read in every pass if they do not fit the page cache: they would evict all else."""
    sources = [
        layer.host.source
        for layer, planned in zip(layers, plan.layers)
        if planned.placement == "streamed" and isinstance(layer.host.source, FileSource)
    ]
    if not sources:
        return
    available = available_bytes()
    too_much = available is not None and sum(source.nbytes for source in sources) > available
    for source in sources:
        for file in source.files:
            file.read_cyclically(too_much)


def already_in_memory_bytes(layers: Iterable[Layer]) -> tuple[int, int]:
    """(bytes of masters in memory of layers that could stay in their file, page-locked bytes of all masters)."""
    copies = pinned = 0
    for layer in layers:
        master = layer.host.master
        if master is not None:
            copies += layer.nbytes if layer.host.in_file else 0
            pinned += layer.nbytes if master.locked else 0
    return copies, pinned


def bytes_in_use(layers: Sequence[Layer], more: Sequence[MasterUse] = ()) -> dict[HostTier, int]:
    """Host bytes of layers of any components and of the holds `more`, by tier; a shared buffer counts once. In the tier
    `peer` they are bytes of other devices."""
    by_tier: dict[HostTier, int] = dict.fromkeys(get_args(HostTier), 0)
    for master in distinct([*(layer.host.use for layer in layers), *more]):
        by_tier["pinned" if master.locked else "pageable"] += master.nbytes
    for tier in ("mapped", "peer"):
        by_tier[tier] = sum(layer.nbytes for layer in layers if layer.host.tier == tier)
    return by_tier


def with_files(inventory: Inventory, layers: Sequence[Layer]) -> Inventory:
    """The inventory with `in_file` of each layer as it is now."""
    specs = tuple(replace(spec, in_file=layer.host.in_file) for spec, layer in zip(inventory.layers, layers))
    return replace(inventory, layers=specs)


def free_peer_copies(layers: Sequence[Layer], port: DevicePort) -> None:
    """Free the copies of layers on other devices, and return their memory there for others to allocate. No copy is in
    flight from them."""
    devices = {str(layer.host.on_peer.device) for layer in layers if layer.host.on_peer is not None}
    for layer in layers:
        layer.host.drop_peer_copy()
    for device in devices:
        port.peer_memory(device).trim()


def off_peer(plan: Plan, leaving: Collection[int]) -> Plan:
    """The same plan without these layers in another device's memory: each is copied from where its master lies."""
    layers = tuple(
        replace(layer, host_tier="mapped") if index in leaving and layer.host_tier == "peer" else layer
        for index, layer in enumerate(plan.layers)
    )
    still_there = any(layer.host_tier == "peer" for layer in layers)
    return replace(plan, layers=layers, peer_device=plan.peer_device if still_there else None)
