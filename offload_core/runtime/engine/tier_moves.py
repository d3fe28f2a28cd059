"""Moves host masters to the tiers of a plan, layer by layer; page-locks begin and end between passes only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

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
    `put_off`; `finish` moves them after the pass.
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
            if layer.host.tier != tier and (tier != "mapped" or layer.host.in_file):
                later = in_pass and "pinned" in (tier, layer.host.tier)
                (self.put_off if later else self._moves).append((layer, tier))
        self._moved = 0

    def finish(self) -> None:
        """Move the masters that were put off. Between passes, before versions are allocated. Raises FileReadError."""
        self._moves, self._moved = self.put_off, 0
        self.give_back()
        self.take()

    def give_back(self) -> None:
        """Move masters back to their file and free their memory."""
        if self._moves:
            self._drain()
        self._move("mapped")

    def take(self) -> None:
        """Move masters into memory as planned. Raises FileReadError."""
        with loaders() as threads:
            self._move("pageable", threads)
            self._move("pinned", threads)
        if any(layer.host.source is not None for layer in self._layers):
            self._port.prepare_reads()
        _drop_behind(self._layers, self._plan)

    def _move(self, tier: HostTier, threads: Executor | None = None) -> None:
        total = sum(layer.nbytes for layer, _ in self._moves)
        for layer in [layer for layer, wanted in self._moves if wanted == tier]:
            if not layer.is_in_place:  # else the device uses the master where it is
                layer.host.move_to(tier, threads)
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
    """Host bytes of layers of any components and of the holds `more`, by tier; a shared buffer counts once."""
    by_tier: dict[HostTier, int] = {"pinned": 0, "pageable": 0, "mapped": 0}
    for master in distinct([*(layer.host.use for layer in layers), *more]):
        by_tier["pinned" if master.locked else "pageable"] += master.nbytes
    by_tier["mapped"] = sum(layer.nbytes for layer in layers if layer.host.tier == "mapped")
    return by_tier


def with_files(inventory: Inventory, layers: Sequence[Layer]) -> Inventory:
    """The inventory with `in_file` of each layer as it is now."""
    specs = tuple(replace(spec, in_file=layer.host.in_file) for spec, layer in zip(inventory.layers, layers))
    return replace(inventory, layers=specs)
