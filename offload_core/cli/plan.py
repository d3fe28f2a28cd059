"""`python3 -m offload_core plan < request.json`: one plan, as JSON or, with --text, as text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import PlanError
from ..fields import MAX_ITEMS, as_int, as_name
from ..planning.inventory import Inventory, LayerSpec
from ..planning.plan_text import plan_to_text
from ..planning.planner import make_plan
from ..planning.request import PlanRequest
from .json_io import read_json, write_json

_SCHEMA = 1
_LAYER_FIELDS = ("name", "bytes", "compute_ns", "keep", "touched_bytes", "in_file")
_INVENTORY_FIELDS = ("component", "layers", "visits", "loose_bytes", "notes", "segment_bytes")
_REQUEST_FIELDS = (
    *("device", "budget_bytes", "ring_bytes", "h2d_bytes_per_s", "link_source", "passes", "placement", "alignment"),
    *("keep_residents", "pin_budget_bytes", "copies_budget_bytes", "host_tier", "in_place"),
    *("peer_device", "peer_budget_bytes", "peer_bytes_per_s"),
)
_FIELDS = ("schema", *_INVENTORY_FIELDS, *_REQUEST_FIELDS)


def add_parser(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="read a request as JSON on stdin, write the plan as JSON",
        description="Read a planning request (JSON, schema 1) on stdin and write the plan to stdout.",
        epilog='Example: {"schema":1,"component":"dit","layers":[{"name":"b.0","bytes":679500000,"compute_ns":'
        '6900000}],"budget_bytes":8000000000,"h2d_bytes_per_s":54000000000,"passes":50}',
    )
    parser.add_argument("--text", action="store_true", help="write the plan as text for people instead of JSON")


def run(args: argparse.Namespace) -> int:
    """Returns exit code 0. Raises OffloadError for bad input."""
    plan = make_plan(request_from_json(read_json(sys.stdin.buffer, "request")))
    if args.text:
        print(plan_to_text(plan))
    else:
        write_json(plan.to_json())
    return 0


def request_from_json(data: object) -> PlanRequest:
    """The request in a JSON object of schema 1.

    Raises PlanError naming the field, its value and what is allowed; also for an unknown field, which may be a
    misspelt known one.
    """
    request = _object("request", data, _FIELDS)
    for field in ("schema", "component", "layers"):
        if field not in request:
            raise PlanError(f"{field}: missing; it is required")
    if as_int("schema", request["schema"], 0, 1 << 31) != _SCHEMA:
        raise PlanError.bad_field("schema", request["schema"], str(_SCHEMA))
    layers = _list("layers", request["layers"])
    given = {field: value for field, value in request.items() if value is not None}
    inventory = Inventory(
        component=as_name("component", request["component"]),
        layers=tuple(_layer(f"layers[{index}]", layer) for index, layer in enumerate(layers)),
        visits=tuple(_list("visits", given.get("visits", []))),
        loose_bytes=given.get("loose_bytes", 0),
        segment_bytes=given.get("segment_bytes", 1),
        notes=tuple(as_name(f"notes[{i}]", note) for i, note in enumerate(_list("notes", given.get("notes", [])))),
    )
    options = {field: given[field] for field in _REQUEST_FIELDS if field in given}
    options.setdefault("device", "cuda:0")
    options.setdefault("budget_bytes", None)
    if "h2d_bytes_per_s" in options:
        options.setdefault("link_source", "as requested")
    else:
        options.pop("link_source", None)  # the source of a rate, which is not given
    return PlanRequest(inventory=inventory, **options)


def _layer(field: str, data: object) -> LayerSpec:
    layer = _object(field, data, _LAYER_FIELDS)
    for key in ("name", "bytes"):
        if key not in layer:
            raise PlanError(f"{field}.{key}: missing; it is required")
    try:
        return LayerSpec(**layer)
    except PlanError as error:
        raise PlanError(f"{field}: {error}") from None


def _object(field: str, data: object, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise PlanError.bad_field(field, data, "a JSON object")
    for key in data:
        if key not in known:
            raise PlanError.bad_field(f"{field} field", key, ", ".join(known))
    return data


def _list(field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError.bad_field(field, value, "a list")
    as_int(f"number of {field}", len(value), 0, MAX_ITEMS)
    return value
