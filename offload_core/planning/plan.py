"""The plan: the placement of every layer, and the predicted times. Immutable, with a JSON form.

This module knows nothing about how a plan is made (`planner`), verified (`check`) or carried out (`runtime`). A `Plan`
may hold inconsistent values: `check_plan` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..errors import PlanError
from ..fields import MAX_ITEMS, MAX_NS, as_bytes, as_int, as_name
from .reserved import reserved_bytes

__all__ = ["SCHEMA", "HostTier", "Placement", "Plan", "PlannedLayer", "Prediction"]

SCHEMA = 1
Placement = Literal["streamed", "resident"]
HostTier = Literal["pinned", "pageable", "mapped"]

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
            "predicted": asdict(self.predicted),
            "decisions": list(self.decisions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan from the result of `to_json`. Raises PlanError naming the field if it is missing or malformed.

        Unknown fields are ignored, so that later versions of schema 1 may add some. Whether the values are consistent
        is checked by `check_plan`.
        """
        if not isinstance(data, Mapping):
            raise PlanError.bad_field("plan", data, "a JSON object")
        if as_int("schema", _get(data, "schema"), 0, 1 << 31) != SCHEMA:
            raise PlanError.bad_field("schema", data["schema"], str(SCHEMA))
        layers = _get_list(data, "layers")
        return cls(
            component=as_name("component", _get(data, "component")),
            device=as_name("device", _get(data, "device")),
            layers=tuple(_layer_from_json(f"layers[{index}]", layer) for index, layer in enumerate(layers)),
            visits=tuple(
                as_int(f"visits[{position}]", visit, 0, max(len(layers) - 1, 0))
                for position, visit in enumerate(_get_list(data, "visits"))
            ),
            ring_bytes=as_bytes("ring_bytes", _get(data, "ring_bytes")),
            resident_bytes=as_bytes("resident_bytes", _get(data, "resident_bytes")),
            loose_bytes=as_bytes("loose_bytes", _get(data, "loose_bytes")),
            segment_bytes=as_int("segment_bytes", data.get("segment_bytes", 1), 1, 1 << 30),
            tables=tuple(
                as_name(f"tables[{position}]", name)
                for position, name in enumerate(_get_list(data, "tables", default=()))
            ),
            predicted=_prediction_from_json(_get(data, "predicted")),
            decisions=tuple(
                _decision(f"decisions[{position}]", text)
                for position, text in enumerate(_get_list(data, "decisions", default=()))
            ),
        )


def _get(data: Mapping[str, Any], field: str, prefix: str = "") -> Any:
    if field not in data:
        raise PlanError(f"{prefix}{field}: missing; it is required")
    return data[field]


def _get_list(data: Mapping[str, Any], field: str, default: tuple[Any, ...] | None = None) -> Any:
    value = data.get(field, default) if default is not None else _get(data, field)
    if not isinstance(value, (list, tuple)):
        raise PlanError.bad_field(field, value, "a list")
    as_int(f"number of {field}", len(value), 0, MAX_ITEMS)
    return value


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
