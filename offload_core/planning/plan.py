"""The plan: the placement of every layer, and the predicted times. Immutable, with a JSON form.

A `Plan` may hold inconsistent values: `check_plan` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from ..errors import PlanError
from ..fields import MAX_ITEMS, MAX_NS, as_bytes, as_int, as_name
from .reserved import reserved_bytes

SCHEMA = 1
Placement = Literal["streamed", "resident"]
HostTier = Literal["peer", "pinned", "pageable", "mapped"]
"""Where the copies of a layer to the device come from. `peer`: a copy in the memory of another device; the master stays
where `mapped` has it, in its file or else in pageable memory, so nothing is lost when that memory is given back."""

T = TypeVar("T")

_MAX_SUM_NS = MAX_NS * MAX_ITEMS
_MAX_DECISION_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer of a plan. `offset` is its place in the ring in bytes; None for a resident."""

    name: str
    bytes: int
    placement: Placement
    offset: int | None
    host_tier: HostTier


@dataclass(frozen=True, slots=True)
class Prediction:
    """The simulator's figures for a plan, in nanoseconds and bytes.

    pass_ns         one pass in the steady state
    bound_ns        lower bound of `pass_ns` with these residents and this ring, whatever the schedule
    stall_ns        how long the compute waits for copies in a steady pass
    bytes_per_pass  bytes copied by a steady pass
    first_pass_ns   the first pass, which starts with an empty device and copies the residents too
    """

    pass_ns: int
    bound_ns: int
    stall_ns: int
    bytes_per_pass: int
    first_pass_ns: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The placement of every layer of one component on one device.

    visits          indices into `layers` in execution order of one pass
    ring_bytes      size of the ring, not rounded up to segments
    resident_bytes  device bytes of the residents, rounded up to multiples of `segment_bytes`
    loose_bytes     device bytes of the parameters outside any layer and of `tables`, rounded up likewise
    decisions       sentences for people: what was chosen and why
    tables          names of the embedding tables that are on the device
    peer_device     the device whose memory has the copies of the layers in tier `peer`; None: there are none
    """

    component: str
    device: str
    layers: tuple[PlannedLayer, ...]
    visits: tuple[int, ...]
    ring_bytes: int
    resident_bytes: int
    loose_bytes: int
    predicted: Prediction
    decisions: tuple[str, ...] = ()
    segment_bytes: int = 1
    tables: tuple[str, ...] = ()
    peer_device: str | None = None

    @property
    def streamed(self) -> tuple[int, ...]:
        """Indices of the streamed layers."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.placement == "streamed")

    @property
    def residents(self) -> tuple[int, ...]:
        """Indices of the resident layers."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.placement == "resident")

    @property
    def device_bytes(self) -> int:
        """Device bytes of the component while it is in use."""
        return self.reserved(self.ring_bytes) + self.resident_bytes + self.loose_bytes

    @property
    def peer_bytes(self) -> int:
        """Bytes of `peer_device` that the copies of layers there reserve."""
        return sum(self.reserved(layer.bytes) for layer in self.layers if layer.host_tier == "peer")

    def reserved(self, nbytes: int) -> int:
        """Device bytes that an allocation of `nbytes` reserves."""
        return reserved_bytes(nbytes, self.segment_bytes)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready objects, schema 1."""
        return {
            "schema": SCHEMA,
            "component": self.component,
            "device": self.device,
            "layers": [asdict(layer) for layer in self.layers],
            "visits": list(self.visits),
            "ring_bytes": self.ring_bytes,
            "resident_bytes": self.resident_bytes,
            "loose_bytes": self.loose_bytes,
            "tables": list(self.tables),
            "segment_bytes": self.segment_bytes,
            "peer_device": self.peer_device,
            "peer_bytes": self.peer_bytes,
            "predicted": asdict(self.predicted),
            "decisions": list(self.decisions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan from the result of `to_json`. Raises PlanError naming the field if it is missing or malformed.

        Unknown fields are ignored, so that later versions of schema 1 may add some.
        """
        if not isinstance(data, Mapping):
            raise PlanError.bad_field("plan", data, "a JSON object")
        if as_int("schema", _get(data, "schema"), 0, 1 << 31) != SCHEMA:
            raise PlanError.bad_field("schema", data["schema"], str(SCHEMA))
        return cls(
            component=as_name("component", _get(data, "component")),
            device=as_name("device", _get(data, "device")),
            layers=_items(data, "layers", _layer_from_json),
            visits=_items(data, "visits", partial(as_int, low=0, high=max(len(data["layers"]) - 1, 0))),
            ring_bytes=as_bytes("ring_bytes", _get(data, "ring_bytes")),
            resident_bytes=as_bytes("resident_bytes", _get(data, "resident_bytes")),
            loose_bytes=as_bytes("loose_bytes", _get(data, "loose_bytes")),
            segment_bytes=as_int("segment_bytes", data.get("segment_bytes", 1), 1, 1 << 30),
            tables=_items(data, "tables", as_name, optional=True),
            peer_device=None if data.get("peer_device") is None else as_name("peer_device", data["peer_device"]),
            predicted=_prediction_from_json(_get(data, "predicted")),
            decisions=_items(data, "decisions", _decision, optional=True),
        )


def _get(data: Mapping[str, Any], field: str, prefix: str = "") -> Any:
    if field not in data:
        raise PlanError(f"{prefix}{field}: missing; it is required")
    return data[field]


def _items(
    data: Mapping[str, Any], field: str, read: Callable[[str, object], T], optional: bool = False
) -> tuple[T, ...]:
    """The items of a list, each of them as `read` returns it for its name and value."""
    value = data.get(field, ()) if optional else _get(data, field)
    if not isinstance(value, (list, tuple)):
        raise PlanError.bad_field(field, value, "a list")
    as_int(f"number of {field}", len(value), 0, MAX_ITEMS)
    return tuple(read(f"{field}[{position}]", item) for position, item in enumerate(value))


def _choice(field: str, value: object, choices: tuple[str, ...]) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise PlanError.bad_field(field, value, " or ".join(choices))
    return value


def _decision(field: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_DECISION_CHARS:
        raise PlanError.bad_field(field, value, f"a text of at most {_MAX_DECISION_CHARS} characters")
    return value


def _layer_from_json(field: str, data: object) -> PlannedLayer:
    if not isinstance(data, Mapping):
        raise PlanError.bad_field(field, data, "a JSON object")
    for key in PlannedLayer.__slots__:
        _get(data, key, f"{field}.")
    offset = data["offset"]
    return PlannedLayer(
        name=as_name(f"{field}.name", data["name"]),
        bytes=as_bytes(f"{field}.bytes", data["bytes"]),
        placement=_choice(f"{field}.placement", data["placement"], get_args(Placement)),
        offset=None if offset is None else as_bytes(f"{field}.offset", offset),
        host_tier=_choice(f"{field}.host_tier", data["host_tier"], get_args(HostTier)),
    )


def _prediction_from_json(data: object) -> Prediction:
    if not isinstance(data, Mapping):
        raise PlanError.bad_field("predicted", data, "a JSON object")
    return Prediction(
        **{
            key: as_int(f"predicted.{key}", _get(data, key, "predicted."), 0, _MAX_SUM_NS)
            for key in Prediction.__slots__
        }
    )
