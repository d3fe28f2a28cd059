"""Finds the layers of a module: the repeated blocks that hold most of its bytes, without any declaration.

`layer_walk.py` chooses the layers; this module tells it which modules are mere containers (module lists and
dictionaries, sequentials, modules without a forward of their own), and what is under a wrapper. The rest of the module
is *loose*: on the device while the component is in use. Reads shapes and types only, and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ...files.layer_walk import HOST_GATHER_BYTES, MIN_LAYER_BYTES, Part, small_tensor_bytes, units
from ...planning.inventory import Inventory, LayerSpec, TableSpec
from ..host.host_layer import lies_whole_in_file
from ..host.host_parameter import become_value
from ..tensors.file_rows import stays_in_file
from ..tensors.layout import Flattened, span_bytes
from ..tensors.parts import (
    UnmovableTensor,
    bring_into_memory,
    bring_written_into_memory,
    is_plain,
    parts_of,
    plain,
    stored_bytes,
)
from .call_order import in_call_order
from .loose import LooseTensors
from .wrapped import called_children, plain_name, unwrapped


@dataclass(slots=True)
class FoundLayer:
    """A module that moves as one, and the parameters that move with it."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter] = field(default_factory=list)
    nbytes: int = 0
    keep: str | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """The layers of a module in registration order, with notes on what was left out and why."""

    layers: tuple[FoundLayer, ...]
    tables: tuple[FoundLayer, ...]
    loose_bytes: int
    notes: tuple[str, ...]
    order: tuple[int, ...]
    """Indices into `layers` in the guessed order of visits (`call_order.py`)."""

    def inventory(self, component: str, segment_bytes: int) -> Inventory:
        """The inventory for the planner, on a device that allocates memory in multiples of `segment_bytes`."""
        specs = tuple(
            LayerSpec(layer.name, layer.nbytes, keep=layer.keep, in_file=lies_whole_in_file(layer.parameters))
            for layer in self.layers
        )
        tables: dict[int, TableSpec] = {}
        for table in self.tables:
            weight = table.parameters[0]
            users = [other.module for other in self.tables if other.parameters[0] is weight]
            by_row = all(_is_read_by_row(weight, module) for module in users)
            tables.setdefault(id(weight), TableSpec(table.name, stored_bytes(weight), by_row))
        return Inventory(
            component, specs, self.order, self.loose_bytes, self.notes, segment_bytes, tuple(tables.values())
        )


def discover(root: nn.Module, *, min_layer_bytes: int = MIN_LAYER_BYTES) -> Discovery:
    """The layers of `root`. For a module without repeated blocks: none, and a note. Snapshots among the parameters
    (`host_parameter.py`) are given their values first, which may raise."""
    for parameter in root.parameters():
        become_value(parameter)
    nbytes = {id(parameter): stored_bytes(parameter) for parameter in root.parameters()}
    walked = units(_part_of(root, nbytes, {}))
    found_layers = _outermost((name, part.held) for name, part in walked)
    shared = _shared_tensors(root, found_layers)
    notes: list[str] = []
    layers, tables = [], _large_tables(root, shared)
    gathered = {id(table.parameters[0]) for table in tables}
    for layer in found_layers:
        _choose_parameters(layer, shared, gathered, notes)
        if layer.nbytes >= min_layer_bytes:
            layers.append(layer)
        elif layer.nbytes:
            notes.append(
                f"{layer.name} ({layer.nbytes / 1e6:.2f} MB) is under {min_layer_bytes / 1e6:.2f} MB: kept resident"
            )
    if not layers:
        notes.append(
            f"no repeated blocks of {min_layer_bytes / 1e6:.0f} MB or more in {type(root).__name__}: all of it resident"
        )
    streamed = {id(p) for layer in (*layers, *tables) for p in layer.parameters}
    places = {module: place for place, module in enumerate(in_call_order(root))}
    order = sorted(range(len(layers)), key=lambda index: places[layers[index].module])
    loose_bytes = LooseTensors(root, streamed).nbytes
    return Discovery(tuple(layers), tuple(tables), loose_bytes, tuple(_grouped(notes)), tuple(order))


def keep_in_memory(root: nn.Module, found: Discovery) -> Discovery:
    """Copy into memory what lies in a file and is not streamed: it is used where it is, and a file may change.

    Except embedding tables that support row reads. Streamed tensors are copied into memory if they were written to
    since they were loaded. Returns the discovery with `loose_bytes` recomputed.
    """
    for parameter in root.parameters():
        bring_written_into_memory(parameter)
    streamed = {id(parameter) for layer in found.layers for parameter in layer.parameters}
    tables = [(id(table.parameters[0]), _is_read_by_row(table.parameters[0], table.module)) for table in found.tables]
    stay = streamed | {key for key, _ in tables} - {key for key, by_row in tables if not by_row}
    moved = [bring_into_memory(parameter) for parameter in root.parameters() if id(parameter) not in stay]
    if not any(moved):
        return found
    return replace(found, loose_bytes=LooseTensors(root, streamed | {key for key, _ in tables}).nbytes)


def _part_of(module: nn.Module, nbytes: dict[int, int], parts: dict[nn.Module, Part[nn.Module]]) -> Part[nn.Module]:
    """The part of a module for `layer_walk`, made once per module and kept in `parts`. No nested function: one that
    calls itself is a reference cycle, which would keep the modules alive."""
    module = unwrapped(module)
    if module not in parts:
        size = sum(nbytes[id(parameter)] for parameter in module.parameters())
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        part = parts[module] = Part(module, size, _only_contains(module), is_list)
        part.children = {name: _part_of(child, nbytes, parts) for name, child in called_children(module)}
    return parts[module]


def _outermost(units: Iterable[tuple[str, nn.Module]]) -> list[FoundLayer]:
    """One layer per unit. A module may have several names, and be inside another unit as well."""
    by_module: dict[nn.Module, str] = {}
    for name, module in units:
        by_module.setdefault(module, name)
    inner = {child for unit in by_module for child in unit.modules() if child is not unit}
    return [FoundLayer(name, module) for module, name in by_module.items() if module not in inner]


def _large_tables(root: nn.Module, shared: set[int]) -> list[FoundLayer]:
    """Embedding tables that stay on the host, one entry for each module that looks up rows.

    Several embeddings may share a table; one that another kind of module holds too (an output projection) is not kept
    there. A projection that only reads the table's weight when it runs is not seen here: see `tables.py`.
    """
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in root.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and stored_bytes(parameter) >= HOST_GATHER_BYTES:
                users.setdefault(id(parameter), []).append((plain_name(name), module))
    tables = []
    for key, places in users.items():
        first = places[0][1]
        table = first._parameters.get("weight")
        if table is None or id(table) != key or not is_plain(table):
            continue
        if not all(isinstance(module, nn.Embedding) for _, module in places) or _overlaps_another(table, root, shared):
            continue
        nbytes = table.numel() * table.element_size()
        tables += [FoundLayer(name, module, [table], nbytes) for name, module in places]
    return tables


def _is_read_by_row(table: torch.Tensor, module: nn.Module) -> bool:
    return stays_in_file(table, getattr(module, "max_norm", None))


def _overlaps_another(table: torch.Tensor, root: nn.Module, shared: set[int]) -> bool:
    """Whether a table shares bytes with another tensor. One tensor in several modules does not count."""
    if id(table) not in shared:
        return False
    start, end = table.data_ptr(), table.data_ptr() + span_bytes(table)
    tensors = (*root.parameters(), *root.buffers())
    others = (other for other in tensors if other is not table and other.numel() and is_plain(other))
    return any(other.data_ptr() < end and start < other.data_ptr() + span_bytes(other) for other in others)


def _only_contains(module: nn.Module) -> bool:
    """Whether `module` is a container: its call, if any, only calls its children.

    Not a plain Sequential of leaves (a projection, an MLP), which is called as one. A subclass of Sequential may be
    walked by its parent without being called, as UNets do, so it always counts as a container.
    """
    if type(module) is nn.Sequential:
        return any(True for child in module for _ in child.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return True
    return type(module).forward is nn.Module.forward and "forward" not in vars(module)


def _choose_parameters(layer: FoundLayer, shared: set[int], gathered: set[int], notes: list[str]) -> None:
    """Set the parameters that move with a layer, and its bytes; add notes on those that do not."""
    own = [(name, p) for name, p in layer.module.named_parameters() if id(p) not in gathered]
    small = small_tensor_bytes(sum(stored_bytes(p) for _, p in own))
    for name, parameter in own:
        full = f"{layer.name}.{name}"
        try:
            parts_of(parameter)
        except UnmovableTensor as error:
            notes.append(f"{full} is {error}: kept resident, for it cannot be moved as bytes")
            continue
        if id(parameter) in shared:
            notes.append(f"{full} shares its storage with another layer: kept resident")
        elif stored_bytes(parameter) >= small:
            layer.parameters.append(parameter)
    layer.nbytes = Flattened(layer.parameters).layout.nbytes


def _shared_tensors(root: nn.Module, layers: list[FoundLayer]) -> set[int]:
    """Ids of tensors whose bytes several layers, or a layer and the rest of the module, share. Judged by addresses, not
    by storages: neighbours in one mapped file share a storage and nothing else."""
    inside = {module: layer.name for layer in layers for module in layer.module.modules()}
    ranges: list[tuple[int, int, str, int]] = []
    for module in root.modules():
        owner = inside.get(module, "")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.numel():
                for start, end in _spans(tensor):
                    ranges.append((start, end, owner, id(tensor)))
    shared: set[int] = set()
    alive: list[tuple[int, int, str, int]] = []
    for entry in sorted(ranges):
        alive = [other for other in alive if other[1] > entry[0]]
        for other in alive:
            if other[2] != entry[2]:
                shared.update((other[3], entry[3]))
        alive.append(entry)
    return shared


def _spans(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    """The address ranges (start, end) of a tensor's bytes, if it can be taken apart."""
    try:
        leaves = [plain(leaf) for leaf in parts_of(tensor).leaves]
    except UnmovableTensor:
        return
    for leaf in leaves:
        if leaf.numel():
            yield leaf.data_ptr(), leaf.data_ptr() + span_bytes(leaf)


def _grouped(notes: list[str], limit: int = 12) -> list[str]:
    """The first `limit` notes, and how many more there are."""
    if len(notes) <= limit:
        return notes
    return [*notes[:limit], f"... and {len(notes) - limit} more of these kinds"]
