"""Measured times that outlive the process: under which key they are kept, and the document that holds them.

The document is a JSON text (`docs/formats.md`). Nothing in it is trusted: a text that is damaged, or of another schema,
is refused as a whole, and times that do not fit an inventory are not put into it. Arithmetic on plain data; where the
text lies is for others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PlanError
from ..fields import MAX_ITEMS, MAX_NS, as_bytes, as_int, as_name, as_rate, no_duplicates
from .inventory import Inventory
from .request import PlanRequest

SCHEMA = 2

MAX_ENTRIES = 200
"""Entries that are kept. The least recently measured goes first."""

MAX_DOCUMENT_BYTES = 8_000_000
"""Of the text, which is ASCII. A longer one is not read; entries that would make it longer are not written."""

_MAX_FILES = 64
_MAX_PEERS = 64
_MAX_MTIME_NS = 1 << 63
_MAX_DIMENSIONS = 16
_MAX_EXTENT = 1 << 40

TIMES_NOTE = "compute times were measured earlier, on this shape and device"


@dataclass(frozen=True, slots=True)
class FileState:
    """One state of a file: its name without folders, its size, and when it was last changed."""

    name: str
    bytes: int
    mtime_ns: int

    def __post_init__(self) -> None:
        as_name("name of a file", self.name)
        as_bytes("bytes of a file", self.bytes)
        as_int("mtime_ns of a file", self.mtime_ns, -_MAX_MTIME_NS, _MAX_MTIME_NS)


@dataclass(frozen=True, slots=True)
class TimesKey:
    """What times were measured on. They hold for nothing else.

    files     the files of the weights
    kind      the kind of component ("dit")
    device    name of the device, as the app shows it
    shape     the input shape that the passes ran on
    versions  of torch, of the app and of the pack
    layers    digest of the layers' names and bytes (`layers_digest`)

    Raises PlanError for values of a wrong type or out of range.
    """

    files: tuple[FileState, ...]
    kind: str
    device: str
    shape: tuple[int, ...]
    versions: tuple[str, str, str]
    layers: str

    def __post_init__(self) -> None:
        as_int("number of files", len(self.files), 1, _MAX_FILES)
        as_int("number of dimensions", len(self.shape), 1, _MAX_DIMENSIONS)
        as_int("number of versions", len(self.versions), 3, 3)
        for extent in self.shape:
            as_int("shape", extent, 0, _MAX_EXTENT)
        for member, value in (("kind", self.kind), ("device", self.device), ("layers", self.layers)):
            as_name(member, value)
        for version in self.versions:
            as_name("version", version)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [{"name": file.name, "bytes": file.bytes, "mtime_ns": file.mtime_ns} for file in self.files],
            "kind": self.kind,
            "device": self.device,
            "shape": list(self.shape),
            "versions": dict(zip(("torch", "app", "pack"), self.versions)),
            "layers": self.layers,
        }


@dataclass(frozen=True, slots=True)
class MeasuredTimes:
    """What was measured of a component.

    compute_ns        nanoseconds of one visit of each layer; None: the layer was not visited
    visits            indices of layers in the order of one pass
    h2d_bytes_per_s   rate of copies from host memory; None: none was measured
    peer_bytes_per_s  rates of copies from other devices, by their names, as far as they were measured

    Raises PlanError for values of a wrong type or out of range.
    """

    compute_ns: tuple[int | None, ...]
    visits: tuple[int, ...]
    h2d_bytes_per_s: float | None
    peer_bytes_per_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        as_int("number of layers", len(self.compute_ns), 1, MAX_ITEMS)
        as_int("number of visits", len(self.visits), 1, MAX_ITEMS)
        for time_ns in self.compute_ns:
            if time_ns is not None:
                as_int("compute_ns", time_ns, 0, MAX_NS)
        for visit in self.visits:
            as_int("visit", visit, 0, len(self.compute_ns) - 1)
            if self.compute_ns[visit] is None:
                raise PlanError.bad_field("compute_ns", None, "an integer, for a layer that is visited")
        if self.h2d_bytes_per_s is not None:
            as_rate("h2d_bytes_per_s", self.h2d_bytes_per_s)
        as_int("number of other devices", len(self.peer_bytes_per_s), 0, _MAX_PEERS)
        for device, rate in self.peer_bytes_per_s.items():
            as_name("device of peer_bytes_per_s", device)
            as_rate("peer_bytes_per_s", rate)

    @classmethod
    def of(
        cls, inventory: Inventory, h2d_bytes_per_s: float | None, peer_bytes_per_s: Mapping[str, float] | None = None
    ) -> MeasuredTimes | None:
        """Those of a measured inventory; None where a layer that is visited was not measured."""
        times = tuple(layer.compute_ns for layer in inventory.layers)
        if not inventory.visits or any(times[visit] is None for visit in inventory.visits):
            return None
        return cls(times, inventory.visits, h2d_bytes_per_s, peer_bytes_per_s or {})

    def to_json(self) -> dict[str, Any]:
        return {
            "compute_ns": list(self.compute_ns),
            "visits": list(self.visits),
            "h2d_bytes_per_s": self.h2d_bytes_per_s,
            "peer_bytes_per_s": dict(self.peer_bytes_per_s),
        }


Entries = Mapping[TimesKey, MeasuredTimes]
"""The least recently measured first."""


def layers_digest(inventory: Inventory) -> str:
    """A digest of the names and bytes of the layers, in order."""
    names = [[layer.name, layer.bytes] for layer in inventory.layers]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def with_earlier_times(request: PlanRequest, times: MeasuredTimes) -> PlanRequest:
    """The request with times and link that were measured earlier, and a note that says so; unchanged if the times are
    those of another number of layers."""
    inventory = request.inventory
    if len(times.compute_ns) != len(inventory.layers):
        return request
    layers = tuple(replace(layer, compute_ns=ns) for layer, ns in zip(inventory.layers, times.compute_ns))
    notes = (*inventory.notes, TIMES_NOTE)
    request = replace(request, inventory=replace(inventory, layers=layers, visits=times.visits, notes=notes))
    if times.h2d_bytes_per_s is None:
        return request
    source = f"measured earlier on {request.device}"
    return replace(request, h2d_bytes_per_s=times.h2d_bytes_per_s, link_source=source)


def with_earlier_rate(request: PlanRequest, times: MeasuredTimes, peer: str) -> PlanRequest:
    """The request with the rate of copies from the device named `peer` that was measured earlier; none if none was."""
    return replace(request, peer_bytes_per_s=times.peer_bytes_per_s.get(peer), peer_source="measured earlier")


def with_entry(entries: Entries, key: TimesKey, times: MeasuredTimes) -> dict[TimesKey, MeasuredTimes]:
    """The entries with this one as the most recently measured, and `MAX_ENTRIES` of them at most."""
    kept = [(other, value) for other, value in entries.items() if other != key]
    return dict([*kept, (key, times)][-MAX_ENTRIES:])


def to_text(entries: Entries) -> str:
    """The document: as many of the most recently measured entries as fit into it."""
    texts: list[str] = []
    room = MAX_DOCUMENT_BYTES - len('{"schema": 1, "entries": [\n\n]}\n')
    for key, times in reversed(list(entries.items())):
        text = json.dumps({"key": key.to_json(), "measured": times.to_json()})
        room -= len(text) + len(",\n")
        if room < 0:
            break
        texts.append(text)
    lines = ",\n".join(reversed(texts))
    return f'{{"schema": {SCHEMA}, "entries": [\n{lines}\n]}}\n'


def from_text(text: str) -> dict[TimesKey, MeasuredTimes]:
    """The entries of a document. Raises PlanError if anything in it is not well formed."""
    try:
        document = json.loads(text, object_pairs_hook=no_duplicates(_twice))
    except PlanError:
        raise
    except (ValueError, RecursionError):
        raise PlanError.bad_field("document", text[:40], "JSON") from None
    schema = _member(document, "schema", int)
    if schema != SCHEMA or isinstance(schema, bool):
        raise PlanError.bad_field("schema", schema, str(SCHEMA))
    entries: dict[TimesKey, MeasuredTimes] = {}
    for entry in _member(document, "entries", list):
        key, times = _key(_member(entry, "key", dict)), _times(_member(entry, "measured", dict))
        entries = with_entry(entries, key, times)
    return entries


def _twice(key: str) -> PlanError:
    return PlanError.bad_field("member", key, "each member once")


def _key(members: Any) -> TimesKey:
    versions = _member(members, "versions", dict)
    files = tuple(
        FileState(_member(file, "name", str), _member(file, "bytes", int), _member(file, "mtime_ns", int))
        for file in _member(members, "files", list)
    )
    torch, app, pack = (_member(versions, name, str) for name in ("torch", "app", "pack"))
    return TimesKey(
        files,
        _member(members, "kind", str),
        _member(members, "device", str),
        tuple(_member(members, "shape", list)),
        (torch, app, pack),
        _member(members, "layers", str),
    )


def _times(members: Any) -> MeasuredTimes:
    rate = _member(members, "h2d_bytes_per_s", (int, float, type(None)))
    rates = _member(members, "peer_bytes_per_s", dict)
    compute_ns, visits = (tuple(_member(members, name, list)) for name in ("compute_ns", "visits"))
    times = MeasuredTimes(compute_ns, visits, rate, rates)  # which judges the numbers, true and false among them
    by_peer = {device: float(rate) for device, rate in rates.items()}
    return replace(times, h2d_bytes_per_s=None if rate is None else float(rate), peer_bytes_per_s=by_peer)


def _member(members: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The member of that name. Raises PlanError if there is none, or one of another type."""
    value = members.get(name) if isinstance(members, dict) else None
    if not isinstance(value, kind) or not isinstance(members, dict) or name not in members:
        raise PlanError.bad_field(name, value, "what docs/formats.md says of it")
    return value
