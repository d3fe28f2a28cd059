"""Verifies a plan, independently of the planner: it shares no code with it and trusts no figure of the plan.

Recomputes from the plan alone: that each layer is resident or has one place inside the ring, the sums of bytes, whether
budgets are kept, and how many bytes a pass copies. Never raises for a malformed plan: a wrong type is a finding too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from .inventory import Inventory
from .plan import Plan, PlannedLayer

_MAX_FINDINGS = 100


def check_places(plan: Plan, inventory: Inventory | None = None, alignment: int | None = None) -> list[str]:
    """What keeps an engine from carrying out a plan: errors in its form, places and sums. Empty if there are none.

    Neither the prediction nor the order of visits is checked; an engine learns the order from the passes it observes.
    With `inventory` also whether the plan has its layers, tables and loose bytes, and keeps resident the layers that
    may not be streamed; with `alignment` whether every offset is a multiple of it. At most 100 findings.
    """
    return _limited(list(_form(plan)) or _obeyable(plan, inventory, alignment))


def check_plan(
    plan: Plan,
    inventory: Inventory | None = None,
    budget_bytes: int | None = None,
    alignment: int | None = None,
    pin_budget_bytes: int | None = None,
    peer_budget_bytes: int | None = None,
) -> list[str]:
    """All errors of a plan, each naming the layer or field; at most 100. Empty if there are none.

    Besides what `check_places` finds: whether the prediction fits the plan; with `inventory` whether component and
    order of visits are the inventory's and only layers that lie in a file are read from one; and whether the device
    bytes keep within `budget_bytes`, the page-locked bytes within `pin_budget_bytes` and those of copies on another
    device within `peer_budget_bytes`.
    """
    findings = chain(
        _obeyable(plan, inventory, alignment),
        _budgets(plan, budget_bytes, pin_budget_bytes),
        _peer_budget(plan, peer_budget_bytes),
        _made_for(plan, inventory) if inventory is not None else (),
        _prediction(plan),
    )
    return _limited(list(_form(plan)) or findings)  # sums and places of values of the wrong type mean nothing


def _limited(findings: Iterable[str]) -> list[str]:
    limited = list(islice(findings, _MAX_FINDINGS + 1))
    return limited if len(limited) <= _MAX_FINDINGS else [*limited[:_MAX_FINDINGS], "... and more"]


def _obeyable(plan: Plan, inventory: Inventory | None, alignment: int | None) -> Iterator[str]:
    """The findings of `check_places` beyond those of `_form`."""
    yield from _places(plan, alignment)
    yield from _peer(plan)
    resident = sum(_taken(plan, layer.bytes) for layer in plan.layers if layer.placement == "resident")
    if plan.resident_bytes != resident:
        yield f"resident_bytes is {plan.resident_bytes}, the residents take {resident}"
    if inventory is not None:
        yield from _against_inventory(plan, inventory)


# ---- form: types and ranges


def _form(plan: Plan) -> Iterator[str]:
    for field in ("ring_bytes", "resident_bytes", "loose_bytes"):
        if not _is_count(getattr(plan, field)):
            yield f"{field} is {getattr(plan, field)!r}, not a number of bytes"
    if not _is_count(plan.segment_bytes) or not plan.segment_bytes:
        yield f"segment_bytes is {plan.segment_bytes!r}, not a number of bytes above 0"
    for field in ("component", "device"):
        if not isinstance(getattr(plan, field), str) or not getattr(plan, field):
            yield f"{field} is {getattr(plan, field)!r}, not a name"
    if plan.peer_device is not None and (not isinstance(plan.peer_device, str) or not plan.peer_device):
        yield f"peer_device is {plan.peer_device!r}, neither a name nor None"
    for index, layer in enumerate(plan.layers):
        yield from _layer_form(index, layer)
    for position, layer_index in enumerate(plan.visits):
        if not _is_count(layer_index) or layer_index >= len(plan.layers):
            yield f"visit {position} is to layer {layer_index!r}; there are {len(plan.layers)} layers"
    for field in ("pass_ns", "bound_ns", "stall_ns", "bytes_per_pass", "first_pass_ns"):
        if not _is_count(getattr(plan.predicted, field, None)):
            yield f"predicted.{field} is {getattr(plan.predicted, field, None)!r}, not a count"


def _layer_form(index: int, layer: PlannedLayer) -> Iterator[str]:
    if not isinstance(layer.name, str) or not layer.name:
        yield f"layer {index} has the name {layer.name!r}"
    if not _is_count(layer.bytes):
        yield f"layer {index} ({layer.name}) has {layer.bytes!r} bytes"
    if layer.placement not in ("streamed", "resident"):
        yield f"layer {index} ({layer.name}) has the placement {layer.placement!r}"
    if layer.host_tier not in ("peer", "pinned", "pageable", "mapped"):
        yield f"layer {index} ({layer.name}) has the host tier {layer.host_tier!r}"
    if layer.offset is not None and not _is_count(layer.offset):
        yield f"layer {index} ({layer.name}) has the offset {layer.offset!r}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# ---- places


def _places(plan: Plan, alignment: int | None) -> Iterator[str]:
    seen: set[str] = set()
    for layer in plan.layers:
        if layer.name in seen:
            yield f"{layer.name} is in the plan twice"
        seen.add(layer.name)
        if layer.placement == "resident":
            if layer.offset is not None:
                yield f"{layer.name} is resident and has the ring offset {layer.offset}"
        elif layer.offset is None:
            yield f"{layer.name} is streamed and has no ring offset"
        else:
            if layer.offset + layer.bytes > plan.ring_bytes:
                yield f"{layer.name} ends at byte {layer.offset + layer.bytes} of a ring of {plan.ring_bytes}"
            if alignment and layer.offset % alignment:
                yield f"{layer.name} has the offset {layer.offset}, not a multiple of {alignment}"


def _peer(plan: Plan) -> Iterator[str]:
    """What keeps layers from being copied from another device's memory."""
    if plan.peer_device == plan.device:
        yield f"peer_device is {plan.peer_device}, the plan's own device"
    for layer in plan.layers:
        if layer.host_tier == "peer":
            if plan.peer_device is None:
                yield f"{layer.name} is to be copied from another device, and the plan names none"
            if layer.placement == "resident":
                yield f"{layer.name} is resident and is to be copied from another device"


def _taken(plan: Plan, nbytes: int) -> int:
    """Device bytes of one allocation: up to 1 MiB its own size, above that a multiple of the segment size."""
    if nbytes <= 1_048_576:
        return nbytes
    left_over = nbytes % plan.segment_bytes
    return nbytes + (plan.segment_bytes - left_over if left_over else 0)


# ---- against the inventory


def _outside_layers(plan: Plan, inventory: Inventory) -> Iterator[str]:
    sizes = {table.name: table.bytes for table in inventory.tables}
    unknown = [name for name in plan.tables if name not in sizes]
    if unknown:
        yield f"tables on the device that the inventory does not have: {', '.join(unknown)}"
    if len(set(plan.tables)) != len(plan.tables):
        yield "a table is on the device twice"
    taken = _taken(plan, inventory.loose_bytes) + sum(_taken(plan, sizes.get(name, 0)) for name in plan.tables)
    if plan.loose_bytes != taken:
        yield f"loose_bytes is {plan.loose_bytes}, the inventory's take {taken}"


def _against_inventory(plan: Plan, inventory: Inventory) -> Iterator[str]:
    if plan.segment_bytes != inventory.segment_bytes:
        yield f"segment_bytes is {plan.segment_bytes}, the inventory has {inventory.segment_bytes}"
    else:
        yield from _outside_layers(plan, inventory)
    if len(plan.layers) != len(inventory.layers):
        yield f"the plan has {len(plan.layers)} layers, the inventory {len(inventory.layers)}"
        return
    for index, (planned, spec) in enumerate(zip(plan.layers, inventory.layers)):
        if planned.name != spec.name:
            yield f"layer {index} is {planned.name} in the plan and {spec.name} in the inventory"
        if planned.bytes != spec.bytes:
            yield f"{planned.name} has {planned.bytes} bytes in the plan and {spec.bytes} in the inventory"
        if spec.keep is not None and planned.placement != "resident":
            yield f"{planned.name} may not be streamed ({spec.keep}) and is {planned.placement}"


def _made_for(plan: Plan, inventory: Inventory) -> Iterator[str]:
    """Differences to the inventory with which an engine can still carry out the plan."""
    if plan.component != inventory.component:
        yield f"the plan is for {plan.component}, the inventory for {inventory.component}"
    if plan.visits != inventory.visits:
        yield "the visits are not the inventory's"
    for planned, spec in zip(plan.layers, inventory.layers):
        if planned.host_tier == "mapped" and not spec.in_file:
            yield f"{planned.name} is to be read from a file and lies in none"


# ---- budgets and prediction


def _budgets(plan: Plan, budget_bytes: int | None, pin_budget_bytes: int | None) -> Iterator[str]:
    device = _taken(plan, plan.ring_bytes) + plan.resident_bytes + plan.loose_bytes
    if budget_bytes is not None and device > budget_bytes:
        yield f"ring, residents and loose bytes are {device} bytes, over the budget of {budget_bytes}"
    pinned = sum(layer.bytes for layer in plan.layers if layer.host_tier == "pinned")
    if pin_budget_bytes is not None and pinned > pin_budget_bytes:
        yield f"{pinned} bytes are to be page-locked, over the budget of {pin_budget_bytes}"


def _peer_budget(plan: Plan, budget_bytes: int | None) -> Iterator[str]:
    taken = sum(_taken(plan, layer.bytes) for layer in plan.layers if layer.host_tier == "peer")
    if budget_bytes is not None and taken > budget_bytes:
        yield f"{taken} bytes are to lie on {plan.peer_device}, over the budget of {budget_bytes}"


def _prediction(plan: Plan) -> Iterator[str]:
    predicted = plan.predicted
    if predicted.pass_ns < predicted.bound_ns:
        yield f"predicted.pass_ns {predicted.pass_ns} is below predicted.bound_ns {predicted.bound_ns}"
    if predicted.stall_ns > predicted.pass_ns:
        yield f"predicted.stall_ns {predicted.stall_ns} is more than predicted.pass_ns {predicted.pass_ns}"
    yield from _copies(plan)


def _copies(plan: Plan) -> Iterator[str]:
    """Replays two passes by the engine's rules; `bytes_per_pass` must be what the second one copies.

    Overlapping places are no error: a copy waits for the last visit of every layer whose bytes it overwrites, so
    overlaps only cause more copies.
    """
    spans: dict[int, tuple[int, int]] = {}
    for index, layer in enumerate(plan.layers):
        if layer.placement == "streamed":
            if layer.offset is None:
                return  # reported already
            spans[index] = (layer.offset, layer.offset + layer.bytes)
    present: set[int] = set()  # layers that are completely in the ring
    copied = 0
    for visit, index in enumerate((*plan.visits, *plan.visits)):
        if index in spans and index not in present:
            start, end = spans[index]
            present = {other for other in present if spans[other][1] <= start or end <= spans[other][0]} | {index}
            copied += plan.layers[index].bytes if visit >= len(plan.visits) else 0
    if copied != plan.predicted.bytes_per_pass:
        yield f"predicted.bytes_per_pass is {plan.predicted.bytes_per_pass}, a pass copies {copied}"
