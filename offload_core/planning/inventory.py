"""The layers of one component, their bytes and times, and the order in which they are visited: plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from ..errors import PlanError
from ..fields import MAX_ITEMS, MAX_NS, as_bytes, as_int, as_name
from .reserved import reserved_bytes


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer, the unit of movement.

    name           dotted name, unique within the component
    bytes          bytes moved by one copy of the layer
    compute_ns     compute time of one visit in nanoseconds; None: not measured
    keep           why the layer may never be streamed ("under 1 MB", "unknown tensor type X"); None: it may
    touched_bytes  bytes that a visit reads, if less than `bytes` (a table of which a few rows are gathered)
    in_file        its bytes lie in a file and need no copy in host memory

    Raises PlanError for values of a wrong type or out of range.
    """

    name: str
    bytes: int
    compute_ns: int | None = None
    keep: str | None = None
    touched_bytes: int | None = None
    in_file: bool = False

    def __post_init__(self) -> None:
        as_name("layer name", self.name)
        as_bytes(f"bytes of layer {self.name}", self.bytes)
        if self.compute_ns is not None:
            as_int(f"compute_ns of layer {self.name}", self.compute_ns, 0, MAX_NS)
        if self.keep is not None:
            as_name(f"keep of layer {self.name}", self.keep)
        if self.touched_bytes is not None:
            as_bytes(f"touched_bytes of layer {self.name}", self.touched_bytes)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """An embedding table that stays on the host, where its rows are looked up.

    name        dotted name, unique among the tables of the component
    bytes       bytes of the whole table
    in_file     its rows are read from a file
    used_whole  it is also used as a whole, by an output projection tied to it: on the device it need not be copied
                for each such use
    """

    name: str
    bytes: int
    in_file: bool = False
    used_whole: bool = False

    def __post_init__(self) -> None:
        as_name("table name", self.name)
        as_bytes(f"bytes of table {self.name}", self.bytes)


@dataclass(frozen=True, slots=True)
class Inventory:
    """The layers of one component.

    component    its name ("dit", "text_encoder", "vae", ...)
    layers       every layer that can be placed
    visits       indices into `layers` in execution order of one pass; a layer may come more than once, or never.
                 Empty means each layer once, in order.
    loose_bytes  bytes of the parameters outside any layer: on the device whenever the component is in use
    notes        sentences for people from discovery; copied into the plan's decisions
    segment_bytes  the device's memory is reserved in multiples of this (`reserved.py`)
    tables       tables that stay on the host, in no layer and not loose

    Raises PlanError if names of layers repeat or a visit is not an index of a layer.
    """

    component: str
    layers: tuple[LayerSpec, ...]
    visits: tuple[int, ...] = ()
    loose_bytes: int = 0
    notes: tuple[str, ...] = ()
    segment_bytes: int = 1
    tables: tuple[TableSpec, ...] = ()

    def __post_init__(self) -> None:
        as_name("component", self.component)
        as_bytes("loose_bytes", self.loose_bytes)
        as_int("segment_bytes", self.segment_bytes, 1, 1 << 30)
        layers = tuple(self.layers)
        visits = tuple(self.visits) or tuple(range(len(layers)))
        as_int("number of layers", len(layers), 0, MAX_ITEMS)
        as_int("number of visits", len(visits), 0, MAX_ITEMS)
        if len({layer.name for layer in layers}) != len(layers):
            name = next(name for name, count in Counter(layer.name for layer in layers).items() if count > 1)
            raise PlanError.bad_field("layer name", name, "each name once")
        for position, visit in enumerate(visits):
            as_int(f"visits[{position}]", visit, 0, len(layers) - 1)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "visits", visits)
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "tables", tuple(self.tables))

    def with_tables_used_whole(self, names: Collection[str]) -> Inventory:
        """The inventory with exactly these tables used as a whole."""
        tables = tuple(replace(table, used_whole=table.name in names) for table in self.tables)
        return replace(self, tables=tables)

    @property
    def total_bytes(self) -> int:
        """Device bytes of the component with every layer resident: the layers and the loose bytes, but no table."""
        return self.reserved(self.loose_bytes) + sum(self.reserved(layer.bytes) for layer in self.layers)

    def reserved(self, nbytes: int) -> int:
        """Device bytes that an allocation of `nbytes` reserves."""
        return reserved_bytes(nbytes, self.segment_bytes)

    def visit_counts(self) -> tuple[int, ...]:
        """How often one pass visits each layer."""
        counts = Counter(self.visits)
        return tuple(counts[index] for index in range(len(self.layers)))
