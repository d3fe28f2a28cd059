"""Finds the layers of a module: the repeated blocks that hold most of its bytes, without anybody declaring them.

`layer_walk.py` says which modules are layers; here is what it is told about a module: which only *contain* (module
lists and dictionaries, sequentials, modules without a forward of their own), and what stands under a wrapper. The rest
of the module is *loose*: resident while the component is in use.
The module reads shapes and types only; it moves nothing and knows nothing about devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..inventory import Inventory, LayerSpec, TableSpec
from ..layer_walk import (
    HOST_GATHER_BYTES,
    MIN_LAYER_BYTES,
    MIN_SINGLE_LAYER_BYTES,
    SPLIT_LAYER_BYTES,
    Limits,
    Part,
    small_tensor_bytes,
    units,
)
from .call_order import in_call_order
from .file_rows import stays_in_file
from .host_parameter import become_value
from .host_store import lies_whole_in_file
from .layout import Flattened, span_bytes
from .loose import LooseTensors
from .parts import (
    UnmovableTensor,
    bring_into_memory,
    bring_written_into_memory,
    is_plain,
    parts_of,
    plain,
    stored_bytes,
)
from .wrapped import called_children, plain_name, unwrapped


@dataclass(slots=True)
class FoundLayer:
    """A module that will be moved as one, and which of its parameters move with it."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter] = field(default_factory=list)
    nbytes: int = 0
    keep: str | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """The layers of a module in registration order, and what was left out and why."""

    layers: tuple[FoundLayer, ...]
    tables: tuple[FoundLayer, ...]
    loose_bytes: int
    notes: tuple[str, ...]
    order: tuple[int, ...]
    """Indices into `layers` as they will be visited, as far as that can be told before (`call_order.py`)."""

    def inventory(self, component: str, segment_bytes: int) -> Inventory:
        """The same as plain data, for the planner, on a device whose memory is taken in multiples of `segment_bytes`.

        The first guess of the order in which they are visited is told by the code of the modules' methods.
        """
        specs = tuple(
            LayerSpec(layer.name, layer.nbytes, keep=layer.keep, in_file=lies_whole_in_file(layer.parameters))
            for layer in self.layers
        )
        tables: dict[int, TableSpec] = {}
        for table in self.tables:
            by_row = all(_is_read_by_row(table.parameters[0], other.module) for other in self._sharing(table))
            tables.setdefault(id(table.parameters[0]), TableSpec(table.name, stored_bytes(table.parameters[0]), by_row))
        return Inventory(
            component, specs, self.order, self.loose_bytes, self.notes, segment_bytes, tuple(tables.values())
        )

    def _sharing(self, table: FoundLayer) -> list[FoundLayer]:
        """The entries of the modules that look something up in the same table."""
        return [other for other in self.tables if other.parameters[0] is table.parameters[0]]


def discover(root: nn.Module, *, min_layer_bytes: int = MIN_LAYER_BYTES) -> Discovery:
    """The layers of `root`. A module without repeated blocks yields none, and a note that says so.

    Parameters that were read from a streamed model, and are to be computed, are computed now. Raises what that raises.
    """
    for parameter in root.parameters():
        become_value(parameter)
    walked = units(_tree(root), Limits(MIN_SINGLE_LAYER_BYTES, SPLIT_LAYER_BYTES))
    found = _outermost((name, part.held) for name, part in walked)
    shared = _shared_tensors(root, found)
    notes: list[str] = []
    layers, tables = [], _large_tables(root, shared)
    gathered = {id(table.parameters[0]) for table in tables}
    for layer in found:
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
    """Take whatever is not streamed, but lies in a file, into memory: it is used where it is, and a file may change.

    But for tables of which rows can be read. What is streamed comes into memory if it was written to since it was
    loaded. The same discovery, with the bytes that this makes of the loose tensors.
    """
    for parameter in root.parameters():
        bring_written_into_memory(parameter)
    streamed = {id(parameter) for layer in found.layers for parameter in layer.parameters}
    tables = [(id(table.parameters[0]), _is_read_by_row(table.parameters[0], table.module)) for table in found.tables]
    left = {key for key, _ in tables} - {key for key, by_row in tables if not by_row}
    resting = streamed | left
    moved = False
    for parameter in root.parameters():
        if id(parameter) not in resting:
            moved |= bring_into_memory(parameter)
    if not moved:
        return found
    streamed |= {id(parameter) for table in found.tables for parameter in table.parameters}
    return replace(found, loose_bytes=LooseTensors(root, streamed).nbytes)


def _tree(root: nn.Module) -> Part[nn.Module]:
    """The module as the walk sees it; a module that hangs in several places is one part."""
    nbytes = {id(parameter): stored_bytes(parameter) for parameter in root.parameters()}
    return _part_of(root, nbytes, {})


def _part_of(module: nn.Module, nbytes: dict[int, int], parts: dict[nn.Module, Part[nn.Module]]) -> Part[nn.Module]:
    """The part of a module, made once and noted in `parts`. No function inside another: one that calls itself is a
    reference cycle, which would hold the modules."""
    module = unwrapped(module)
    if module not in parts:
        size = sum(nbytes[id(parameter)] for parameter in module.parameters())
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        part = parts[module] = Part(module, size, _only_contains(module), is_list)
        part.children = {name: _part_of(child, nbytes, parts) for name, child in called_children(module)}
    return parts[module]


def _outermost(units: Iterable[tuple[str, nn.Module]]) -> list[FoundLayer]:
    """One layer for each unit. A module may hang in several places, and inside of another unit as well."""
    by_module: dict[nn.Module, str] = {}
    for name, module in units:
        by_module.setdefault(module, name)
    inner = {child for unit in by_module for child in unit.modules() if child is not unit}
    return [FoundLayer(name, module) for module, name in by_module.items() if module not in inner]


def _large_tables(root: nn.Module, shared: set[int]) -> list[FoundLayer]:
    """Embedding tables that stay on the host, one entry for each module that looks something up in one.

    Several embeddings may share a table; one that hangs in another module as well (an output projection) is not kept
    there. A projection that only takes the table's weight when it runs is not seen here: see `tables.py`.
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
    """Whether bytes of a table are also those of another tensor: being one object in several places is no matter."""
    if id(table) not in shared:
        return False
    start, end = table.data_ptr(), table.data_ptr() + span_bytes(table)
    others = (other for other in _tensors(root) if other is not table and other.numel() and is_plain(other))
    return any(other.data_ptr() < end and start < other.data_ptr() + span_bytes(other) for other in others)


def _only_contains(module: nn.Module) -> bool:
    """Whether `module` is a container: its own call does nothing but call its children, if it is ever called.

    Not a plain Sequential of leaves (a projection, an MLP): that is called as one. A subclass of Sequential may be
    walked by its parent without ever being called, as UNets do with theirs, so it is always gone through.
    """
    if type(module) is nn.Sequential:
        return any(True for child in module for _ in child.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return True
    return type(module).forward is nn.Module.forward and "forward" not in vars(module)


def _choose_parameters(layer: FoundLayer, shared: set[int], gathered: set[int], notes: list[str]) -> None:
    """Fill in which parameters of a layer move with it."""
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


def _shared_tensors(root: nn.Module, found: list[FoundLayer]) -> set[int]:
    """Ids of tensors whose bytes more than one layer, or a layer and the rest of the module, look at.

    Told by addresses, not by storages: tensors that lie side by side in one mapped file share a storage and nothing
    else.
    """
    inside = {module: layer.name for layer in found for module in layer.module.modules()}
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
    """The addresses that the bytes of a tensor lie at, as far as it can be taken apart."""
    try:
        leaves = [plain(leaf) for leaf in parts_of(tensor).leaves]
    except UnmovableTensor:
        return
    for leaf in leaves:
        if leaf.numel():
            yield leaf.data_ptr(), leaf.data_ptr() + span_bytes(leaf)


def _tensors(root: nn.Module) -> Iterator[torch.Tensor]:
    yield from root.parameters()
    yield from root.buffers()


def _grouped(notes: list[str], limit: int = 12) -> list[str]:
    """The notes, cut where one reason repeats for hundreds of tensors."""
    if len(notes) <= limit:
        return notes
    return [*notes[:limit], f"... and {len(notes) - limit} more of these kinds"]
