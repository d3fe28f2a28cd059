"""The engine as a library: layerwise offload for any torch module, in two calls.

    handle = attach(model, device="cuda", budget_bytes=6_000_000_000)
    model(...)            # as before; inputs on the device
    handle.detach()

Inference only: device parameters need no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ...errors import OffloadError, StateError
from ...files.layer_walk import MIN_LAYER_BYTES
from ...planning.inventory import Inventory
from ...planning.plan import Plan
from ...planning.plan_change import better_plan, demoted, several_passes
from ...planning.planner import make_plan, smallest_budget
from ...planning.request import PlanRequest
from ..device.device_port import is_unified
from ..device.device_queue import DeviceQueue
from ..device.peer_memory import can_reach
from ..device.ports import port_for
from ..host.host_parameter import is_adopted
from ..layers.discovery import discover, keep_in_memory
from .controller import Entry, LinkRates, OffloadController

_CALLERS_WORD = "given by the caller"
_LEFT_ON_PEER_BYTES = 1 << 30


class Attachment:
    """A module under layerwise offload, until `detach` or the end of a `with` block."""

    def __init__(self, controller: OffloadController, owned_queue: DeviceQueue | None) -> None:
        """`owned_queue` is closed after a detach."""
        self.controller = controller
        self._owned_queue = owned_queue

    @property
    def plan(self) -> Plan:
        """The plan in effect. Raises StateError after `detach`."""
        if self.controller.plan is None:
            raise StateError(f"{self.controller.component}: asked for the plan; found the module detached")
        return self.controller.plan

    def detach(self) -> None:
        """Release the device memory and restore the module. Idempotent; may be called again after an error."""
        self.controller.detach()
        if self._owned_queue is not None:
            self._owned_queue.close()
            self._owned_queue = None

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def attach(
    module: nn.Module,
    *,
    device: torch.device | str,
    budget_bytes: int | None = None,
    ring_bytes: int | None = None,
    passes: int = 1,
    h2d_bytes_per_s: float | None = None,
    component: str = "model",
    pinned: bool = True,
    min_layer_bytes: int = MIN_LAYER_BYTES,
    queue: DeviceQueue | None = None,
    entries: Sequence[Entry] | None = None,
    peer: torch.device | str | None = None,
    peer_budget_bytes: int | None = None,
) -> Attachment:
    """Stream the layers of `module`, whose parameters are on the CPU, through at most `budget_bytes` of `device`.

        budget_bytes     ring, residents and loose tensors together; None: a ring for the largest layer and for any
                         three ordinary ones. Cut to what the device has, with a note in the plan
        ring_bytes       None: the planner chooses
        passes           forwards to expect per use; residents pay from the second on
        pinned           False: no page-locked memory; streamed layers go through a small staging buffer
        h2d_bytes_per_s  the link's rate, if it was measured
        queue            shares a device's copy lane and ring with other modules; None: a queue of its own
        entries          the methods that run a pass, as (module, name); None: `module.forward`
        peer             another device of the same kind: copies of streamed layers lie in its memory, as far as
                         `peer_budget_bytes` go, and are copied from there as long as that is not measured to be slower
                         than from page-locked memory
        peer_budget_bytes  None: what is free there, less 1 GiB for what that device runs itself

    Raises BudgetError if the budget is too small, with the smallest that works, and OffloadError if the module cannot
    be offloaded. In either case the module is unchanged.
    """
    _check_module(module, component)
    with ExitStack() as undo:
        owned = None if queue is not None else DeviceQueue(port_for(device))
        queue = queue or owned
        assert queue is not None
        if owned is not None:
            undo.callback(owned.close)
        _check_device(queue, torch.device(device), component)
        discovery = keep_in_memory(module, discover(module, min_layer_bytes=min_layer_bytes))
        inventory = discovery.inventory(component, queue.port.segment_bytes)
        inventory, budget_bytes = _within_device(inventory, budget_bytes, queue)
        in_place = queue.port.shares_host_memory
        one_memory = in_place or is_unified(queue.port.device)
        peer_device, peer_bytes = _of_peer(peer, peer_budget_bytes, queue, component)
        request = PlanRequest(
            inventory,
            str(queue.port.device),
            budget_bytes,
            ring_bytes,
            passes=passes,
            pin_budget_bytes=None if pinned and not one_memory else 0,
            copies_budget_bytes=0 if one_memory else None,
            in_place=in_place,
            hold_spare=in_place,  # bytes kept in memory are not read again, and reading slows down compute
            peer_device=peer_device,
            peer_budget_bytes=peer_bytes,
        )
        if h2d_bytes_per_s is not None:
            request = replace(request, h2d_bytes_per_s=h2d_bytes_per_s, link_source=_CALLERS_WORD)
        plan = make_plan(request)
        controller = OffloadController(
            module, queue, component=component, discovery=discovery, entries=entries, pinned=pinned
        )
        undo.callback(controller.detach)
        controller.load(plan)
        several = several_passes(request)
        if passes > 1 or in_place:  # on a CPU, residents are read only after its speed was measured
            controller.replan_when_measured(partial(_replan, several))
        else:
            controller.replan_on_second_pass(partial(_replan, several))
        controller.when_full(partial(_less, request))
        controller.plan_for_tables_by(partial(_with_table, request))
        undo.pop_all()
        return Attachment(controller, owned)


def _replan(request: PlanRequest, current: Plan, measured: Inventory, rates: LinkRates) -> Plan | None:
    """A better plan within the same limits, with measured times and rates; None if there is none."""
    return better_plan(current, replace(_with_rates(request, rates), inventory=measured))


def _with_rates(request: PlanRequest, rates: LinkRates) -> PlanRequest:
    """The request with the measured rates of copies, unless the caller gave the link's."""
    if rates.from_host is not None and request.link_source != _CALLERS_WORD:
        request = replace(request, h2d_bytes_per_s=rates.from_host, link_source="measured")
    return replace(request, peer_bytes_per_s=rates.from_peer)


def _with_table(request: PlanRequest, controller: OffloadController, table: str) -> Plan | None:
    """A plan within the same limits with one more table on the device; None if there is no room for it."""
    assert controller.plan is not None
    request = _with_rates(request, controller.link_rates())
    plan = demoted(controller.plan, replace(request, inventory=controller.measured_inventory()))
    return plan if table in plan.tables else None


def _less(request: PlanRequest, current: Plan, layer: str, too_late: bool) -> Plan | None:
    """The smallest plan, for a device that is full; None if it needs no fewer bytes than the one in effect."""
    plan = make_plan(replace(request, budget_bytes=smallest_budget(request.inventory), ring_bytes=None))
    return plan if plan.device_bytes < current.device_bytes else None


def _check_module(module: nn.Module, component: str) -> None:
    """Raise StateError for a module that is attached already, OffloadError for one that is not on the CPU."""
    parameters = list(module.named_parameters())
    for name, parameter in parameters:
        if is_adopted(parameter):
            raise StateError(
                f"{component}: asked to offload a module; found {name} under layerwise offload already; "
                "detach the other attachment first"
            )
    for name, parameter in parameters:
        if parameter.device.type not in ("cpu", "meta"):
            raise OffloadError(
                f"{component}: asked to offload a module on the CPU; found {name} on {parameter.device}; "
                "move the module to the CPU first"
            )


def _check_device(queue: DeviceQueue, wanted: torch.device, component: str) -> None:
    actual = queue.port.device
    if wanted.type != actual.type or wanted.index not in (None, actual.index):
        raise OffloadError(f"{component}: asked for {wanted}; found a queue of {actual}; give the queue's device")


def _of_peer(
    peer: torch.device | str | None, budget_bytes: int | None, queue: DeviceQueue, component: str
) -> tuple[str | None, int]:
    """(name of the other device, bytes that copies of layers may take there). Raises OffloadError if it is none of the
    same kind, or cannot be reached from the queue's."""
    if peer is None:
        return None, 0
    device, other = queue.port.device, torch.device(peer)
    if other.type != device.type or other.index is None or other == device or not can_reach(device, other):
        raise OffloadError(
            f"{component}: asked for layers in the memory of {other}; found that {device} cannot copy from there "
            "without going through system memory; give another device of the same kind, with its number, that "
            "torch's can_device_access_peer says can be reached, or none"
        )
    if budget_bytes is None:
        budget_bytes = max(0, queue.port.peer_memory(str(other)).free_bytes() - _LEFT_ON_PEER_BYTES)
    return str(other), budget_bytes


def _within_device(inventory: Inventory, budget_bytes: int | None, queue: DeviceQueue) -> tuple[Inventory, int | None]:
    """The budget, cut to the device's total memory; the inventory then carries a note for the plan."""
    memory = queue.port.memory()
    if budget_bytes is None or memory is None or budget_bytes <= memory.total_bytes:
        return inventory, budget_bytes
    note = f"the budget of {budget_bytes} bytes was cut to the {memory.total_bytes} bytes of {queue.port.device}"
    return replace(inventory, notes=(*inventory.notes, note)), memory.total_bytes
