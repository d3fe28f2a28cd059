"""Finds the layers of a module: `layer_walk.py` chooses them, from what this module tells of its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from ...files.layer_walk import HOST_GATHER_BYTES, MIN_LAYER_BYTES, Part, small_tensor_bytes, units
from ...planning.inventory import Inventory, LayerSpec, TableSpec
from ..files.weight_file import keep_what_was_written
from ..host.host_layer import lies_whole_in_file
from ..host.host_parameter import become_value
from ..tensors.file_rows import stays_in_file
from ..tensors.layout import Flattened, overlapping, span_bytes
from ..tensors.parts import (
    UnmovableTensor,
    bring_into_memory,
    is_plain,
    leaves_of,
    parts_of,
    plain,
    stored_bytes,
)
from .call_order import in_call_order
from .loose import LooseTensors
from .wrapped import LISTS, called_children, plain_name, unwrapped

MAX_NOTES = 12


@dataclass(frozen=True, slots=True)
class DiscoveredLayer:
    """A module that moves as one, and the parameters that move with it."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter]
    nbytes: int


@dataclass(frozen=True, slots=True)
class DiscoveredTable:
    """An embedding table that stays on the host, and the modules that look up rows in it. `name`: of the first."""

    name: str
    weight: nn.Parameter
    modules: list[nn.Module]

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.weight)

    @property
    def read_by_row(self) -> bool:
        """Whether rows can be read from its file, for every module that looks them up."""
        return all(stays_in_file(self.weight, getattr(module, "max_norm", None)) for module in self.modules)


@dataclass(frozen=True, slots=True)
class Discovery:
    """The layers of a module in registration order, with notes on what was left out and why."""

    layers: tuple[DiscoveredLayer, ...]
    tables: tuple[DiscoveredTable, ...]
    loose_bytes: int
    notes: tuple[str, ...]
    order: tuple[int, ...]
    """Indices into `layers` in the guessed order of visits (`call_order.py`)."""

    def inventory(self, component: str, segment_bytes: int) -> Inventory:
        """The inventory for the planner, on a device that allocates memory in multiples of `segment_bytes`."""
        specs = tuple(
            LayerSpec(layer.name, layer.nbytes, in_file=lies_whole_in_file(layer.parameters)) for layer in self.layers
        )
        tables = tuple(TableSpec(table.name, table.nbytes, table.read_by_row) for table in self.tables)
        return Inventory(component, specs, self.order, self.loose_bytes, self.notes, segment_bytes, tables)


def discover(root: nn.Module, *, min_layer_bytes: int = MIN_LAYER_BYTES) -> Discovery:
    """The layers of `root`. For a module without repeated blocks: none, and a note. Snapshots among the parameters
    (`host_parameter.py`) are given their values first, which may raise."""
    for parameter in root.parameters():
        become_value(parameter)
    nbytes = {id(parameter): stored_bytes(parameter) for parameter in root.parameters()}
    walked = units(_part_of(root, nbytes, {}))
    modules = _outermost((name, part.held) for name, part in walked)
    shared = _shared_tensors(root, modules)
    notes: list[str] = []
    layers, tables = [], _large_tables(root, shared)
    gathered = {id(table.weight) for table in tables}
    for module, name in modules.items():
        moved = _moved_with(module, name, shared, gathered, notes)
        layer = DiscoveredLayer(name, module, moved, Flattened(moved).layout.nbytes)
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
    if len(notes) > MAX_NOTES:
        notes[MAX_NOTES:] = [f"... and {len(notes) - MAX_NOTES} more of these kinds"]
    streamed = {id(p) for layer in layers for p in layer.parameters}
    places = {module: place for place, module in enumerate(in_call_order(root))}
    order = sorted(range(len(layers)), key=lambda index: places[layers[index].module])
    loose_bytes = LooseTensors(root, streamed | gathered).nbytes
    return Discovery(tuple(layers), tuple(tables), loose_bytes, tuple(notes), tuple(order))


def keep_in_memory(root: nn.Module, discovery: Discovery) -> Discovery:
    """Copy into memory what lies in a file and is neither streamed nor read by row, because a file may change, and what
    was written to since it was loaded. Returns the discovery with `loose_bytes` recomputed."""
    for parameter in root.parameters():
        for leaf in leaves_of(parameter):
            keep_what_was_written(leaf)
    streamed = {id(parameter) for layer in discovery.layers for parameter in layer.parameters}
    stay = streamed | {id(table.weight) for table in discovery.tables if table.read_by_row}
    moved = [bring_into_memory(parameter) for parameter in root.parameters() if id(parameter) not in stay]
    if not any(moved):
        return discovery
    gathered = {id(table.weight) for table in discovery.tables}
    return replace(discovery, loose_bytes=LooseTensors(root, streamed | gathered).nbytes)


def _part_of(module: nn.Module, nbytes: dict[int, int], parts: dict[nn.Module, Part[nn.Module]]) -> Part[nn.Module]:
    """The part of a module for `layer_walk`, made once per module and kept in `parts`. No nested function: one that
    calls itself is a reference cycle, which would keep the modules alive."""
    module = unwrapped(module)
    if module not in parts:
        size = sum(nbytes[id(parameter)] for parameter in module.parameters())
        part = parts[module] = Part(module, size, _only_contains(module), isinstance(module, LISTS))
        part.children = {name: _part_of(child, nbytes, parts) for name, child in called_children(module)}
    return parts[module]


def _outermost(units: Iterable[tuple[str, nn.Module]]) -> dict[nn.Module, str]:
    """The units, each under its first name, without those that are inside another one."""
    by_module: dict[nn.Module, str] = {}
    for name, module in units:
        by_module.setdefault(module, name)
    inner = {child for unit in by_module for child in unit.modules() if child is not unit}
    return {module: name for module, name in by_module.items() if module not in inner}


def _large_tables(root: nn.Module, shared: Mapping[int, set[int]]) -> list[DiscoveredTable]:
    """Embedding tables that stay on the host.

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
        table = places[0][1]._parameters.get("weight")
        overlaps_another = shared.get(key, set()) - {key}
        if table is None or id(table) != key or not is_plain(table) or overlaps_another:
            continue
        if all(isinstance(module, nn.Embedding) for _, module in places):
            tables.append(DiscoveredTable(places[0][0], table, [module for _, module in places]))
    return tables


def _only_contains(module: nn.Module) -> bool:
    """Whether the call of `module`, if any, only calls its children. Not a plain Sequential of leaves (an MLP): it is
    called as one. A subclass may be walked by its parent without being called, as UNets do."""
    if type(module) is nn.Sequential:
        return any(True for child in module for _ in child.children())
    if isinstance(module, LISTS):
        return True
    return type(module).forward is nn.Module.forward and "forward" not in vars(module)


def _moved_with(
    layer: nn.Module, layer_name: str, shared: Collection[int], gathered: Collection[int], notes: list[str]
) -> list[nn.Parameter]:
    """The parameters that move with a layer; notes are added on those that cannot."""
    own = [(name, p) for name, p in layer.named_parameters() if id(p) not in gathered]
    small = small_tensor_bytes(sum(stored_bytes(p) for _, p in own))
    moved = []
    for name, parameter in own:
        full = f"{layer_name}.{name}"
        try:
            parts_of(parameter)
        except UnmovableTensor as error:
            notes.append(f"{full} is {error}: kept resident, for it cannot be moved as bytes")
            continue
        if id(parameter) in shared:
            notes.append(f"{full} shares its storage with another layer: kept resident")
        elif stored_bytes(parameter) >= small:
            moved.append(parameter)
    return moved


def _shared_tensors(root: nn.Module, layers: Mapping[nn.Module, str]) -> dict[int, set[int]]:
    """By the id of each tensor that shares bytes with a tensor of another layer, or of the rest of the module: the ids
    of those (its own, if several layers hold it). Judged by addresses, not by storages: neighbours in one mapped file
    share a storage and nothing else."""
    inside = {module: name for layer, name in layers.items() for module in layer.modules()}
    ranges: list[tuple[int, int, tuple[str, int]]] = []
    for module in root.modules():
        owner = inside.get(module, "")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            for leaf in map(plain, () if tensor is None else leaves_of(tensor)):
                if leaf.numel():
                    ranges.append((leaf.data_ptr(), leaf.data_ptr() + span_bytes(leaf), (owner, id(tensor))))
    shared: defaultdict[int, set[int]] = defaultdict(set)
    for (owner, tensor_id), (other_owner, other_id) in overlapping(ranges):
        if owner != other_owner:
            shared[tensor_id].add(other_id)
            shared[other_id].add(tensor_id)
    return shared
