"""The plan: where every layer lives, and what that is predicted to cost. Immutable, printable, JSON.

Everything before a plan is arithmetic, everything after it is obedience. This module knows nothing about how a plan is
made (`planner`), verified (`check`) or carried out: it holds the figures and turns them into JSON and text. A `Plan`
can hold nonsense, on purpose: `check_plan` is what says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import PlanError
from .fields import MAX_ITEMS, MAX_NS, as_bytes, as_int, as_name
from .reserved import reserved_bytes

__all__ = ["SCHEMA", "HostTier", "Placement", "Plan", "PlannedLayer", "Prediction"]

SCHEMA = 1
Placement = Literal["streamed", "resident"]
HostTier = Literal["pinned", "pageable", "mapped"]

_MAX_SUM_NS = MAX_NS * MAX_ITEMS
_MAX_DECISION_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer of a plan. `offset` is its fixed place in the ring in bytes; a resident has none."""

    name: str
    bytes: int
    placement: Placement
    offset: int | None
    host_tier: HostTier


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulator says of a plan, in nanoseconds and bytes.

    pass_ns         one pass in the steady state (the tenth step of a sampler, say)
    bound_ns        what no engine can beat with these residents and this ring
    stall_ns        how long the compute waits for copies in a steady pass
    bytes_per_pass  what a steady pass copies
    first_pass_ns   the first pass, which starts with an empty device and brings the residents too
    """

    pass_ns: int
    bound_ns: int
    stall_ns: int
    bytes_per_pass: int
    first_pass_ns: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every layer of one component lives on one device, and why.

    `visits` are indices into `layers` in execution order. `decisions` are sentences for people: what was chosen, on
    whose word. `device_bytes` never exceeds the component's device budget. `resident_bytes` and `loose_bytes` are what
    these take of a device whose memory is taken in multiples of `segment_bytes`; `ring_bytes` is the ring itself.
    `tables` names the embedding tables that are on the device; they are among the loose bytes.
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
        """Indices of the layers that pass through the ring."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.placement == "streamed")

    @property
    def residents(self) -> tuple[int, ...]:
        """Indices of the layers that stay on the device."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.placement == "resident")

    @property
    def device_bytes(self) -> int:
        """What the component occupies on the device while in use, in bytes."""
        return self.reserved(self.ring_bytes) + self.resident_bytes + self.loose_bytes

    def reserved(self, nbytes: int) -> int:
        """What an allocation of so many bytes takes of the device."""
        return reserved_bytes(nbytes, self.segment_bytes)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready objects, schema 1."""
        return {
            "schema": SCHEMA,
            "component": self.component,
            "device": self.device,
            "layers": [
                {
                    "name": layer.name,
                    "bytes": layer.bytes,
                    "placement": layer.placement,
                    "offset": layer.offset,
                    "host_tier": layer.host_tier,
                }
                for layer in self.layers
            ],
            "visits": list(self.visits),
            "ring_bytes": self.ring_bytes,
            "resident_bytes": self.resident_bytes,
            "loose_bytes": self.loose_bytes,
            "tables": list(self.tables),
            "segment_bytes": self.segment_bytes,
            "predicted": {
                "pass_ns": self.predicted.pass_ns,
                "bound_ns": self.predicted.bound_ns,
                "stall_ns": self.predicted.stall_ns,
                "bytes_per_pass": self.predicted.bytes_per_pass,
                "first_pass_ns": self.predicted.first_pass_ns,
            },
            "decisions": list(self.decisions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan `to_json` made. Raises PlanError naming the field when the data have the wrong shape.

        Fields this version does not know are ignored, so that a later schema-1 writer may add some. Whether the plan
        makes sense is `check_plan`'s business.
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


def _get(data: Mapping[str, Any], field: str) -> Any:
    if field not in data:
        raise PlanError(f"{field}: missing; it is required")
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
    for key in ("name", "bytes", "placement", "offset", "host_tier"):
        if key not in data:
            raise PlanError(f"{field}.{key}: missing; it is required")
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
    values = {}
    for key in Prediction.__slots__:
        if key not in data:
            raise PlanError(f"predicted.{key}: missing; it is required")
        values[key] = as_int(f"predicted.{key}", data[key], 0, _MAX_SUM_NS)
    return Prediction(**values)
