"""Device memory given back: to the app when it asks for some, and to our own pass when the device turns out to be full.

Layers are given up in the order that costs least, then the ring shrinks, then all goes; nothing is copied back. Of a
ring that several components share, only what no other needs comes free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.plan_change import demoted
from ...offload_core.planning.planner import make_plan, smallest_budget
from ...offload_core.sentences import sentence
from ...offload_core.settings.component_settings import Setting
from ...offload_core.units import format_bytes, gb_at_least
from ..app.compat import apps_graph_is_active
from ..requests.requested import Requested
from .component import Component, least_request

UNLOAD_ORDER_BYTES = 4096
"""The app asks for room where most is missing on the device, first. What we give costs no copy back, so each of our
models says that this much is missing, divided by its passes a use: ours are asked before the app's own that are there
whole, and a layer of an encoder before one of a diffusion model, which is worth its bytes at every step."""

_CODE_OF_OTHERS = ("patches", "patches_replace", "optimized_attention_override")
"""Entries of `transformer_options` through which other nodes' code runs inside a layer."""


def give_back(component: Component, requested: Requested, nbytes: int) -> int:
    """Free at least `nbytes`, if the component holds them and may part with some only. Returns the bytes freed.

    It gives nothing if it is to be resident, or in the middle of a pass of its own. What it gives counts until the app
    offers room again.
    """
    if requested.value("placement") == "resident":
        return 0
    component.plan_afresh()
    controller = component.controller
    before, plan, request = component.freeable_bytes(), controller.plan, component.request
    if plan is None or request is None or nbytes > before or controller.in_pass():
        return 0
    smallest = smallest_budget(request.inventory)
    budget = plan.device_bytes - nbytes
    while budget >= smallest:
        smaller = replace(request, budget_bytes=budget)
        try:
            less = demoted(plan, smaller)
        except BudgetError:  # a ring whose size was set leaves no room for less
            break
        freed = controller.freed_by(less)
        if freed >= nbytes:
            try:
                component.put_into_effect(less, smaller)
            except OffloadError:  # the ring would have to grow under another component that is running
                break
            return before - component.freeable_bytes()
        budget -= nbytes - freed  # another component still needs the ring that this one could do without
    component.leave_device()
    return before


def make_way(component: Component, plan: Plan, number_bytes: int) -> None:
    """Before `plan` of `component` is loaded: idle components on its device give back what all of ours would hold there
    beyond `number_bytes`, those of few passes a use first. Raises BudgetError if that is not enough."""
    beside = component.others_on_device()
    idle = sorted(component.idle_beside(), key=lambda other: (other.kind.passes, other.name, other.id))
    for other in idle:
        requested = next((patcher.requested for patcher in list(other.patchers)), Requested())
        if requested.value("placement") == "resident":
            continue
        while other.loaded and (over := _held_with(component, plan, beside) - number_bytes) > 0:
            rest = [neighbour for neighbour in beside if neighbour is not other]
            all_of_it = _held_with(component, plan, beside) - _held_with(component, plan, rest)
            if not all_of_it:  # a ring that others need as well
                break
            if all_of_it <= over or not give_back(other, requested, over):
                other.leave_device()
    held = _held_with(component, plan, beside)
    if held > number_bytes:
        raise BudgetError(
            f"asked {format_bytes(number_bytes)} for the weights of the workflow; found that {component.name} needs "
            f"{format_bytes(plan.device_bytes)} beside what others keep, {format_bytes(held)} together; give at least "
            f"{gb_at_least(held)}, or leave the placement of the others on auto",
            asked_bytes=number_bytes,
            smallest_bytes=held,
            setting=Setting.WORKFLOW_BUDGET_BYTES,
        )


def _held_with(component: Component, plan: Plan, beside: Sequence[Component]) -> int:
    """Device bytes of weights of `component` under `plan` and of those `beside` it: the ring they share counts once."""
    own = component.controller.inventory.reserved(plan.ring_bytes)
    ring = max((own, *(other.leased_bytes() for other in beside)))
    return plan.device_bytes - own + sum(other.held_beside_rings() for other in beside) + ring


class FullInTheAppsGraph(OffloadError, torch.OutOfMemoryError):
    """The device ran out of memory where a layer cannot be run again. The app then takes its models off the device."""


def _full_in_the_apps_graph(component: Component, layer: str, given: int) -> FullInTheAppsGraph:
    """What ends a run in which the app's memory graph has failed. `given`: bytes that are given up before the next."""
    memory = component.controller.queue.port.memory()
    free = "" if memory is None else f"{memory.free_bytes / 1e9:.2f} of {memory.total_bytes / 1e9:.2f} GB free and "
    problem = (
        f"asked for memory in the layer {layer} of {component.model_name}; found {component.device} full, {free}"
        "ComfyUI's compiler memory graph active, in which a layer cannot be run again"
    )
    component.warn(sentence("full_in_graph", device=str(component.device)))
    return FullInTheAppsGraph(
        f"{problem}; {given / 1e9:.2f} GB are given up before the next run: run the prompt again"
        if given
        else f"{problem}; there is nothing left to give up: use a smaller picture or batch, or start ComfyUI with "
        "--disable-comfy-compiler"
    )


def make_room(component: Component, plan: Plan, layer: str, too_late: bool) -> Plan | None:
    """The device is full in the middle of our own pass: idle components go, and this one keeps the least it needs.

    None if there is nothing to give. What is given up here stays given up while it runs on the same shape. Inside the
    app's memory graph it raises instead: nothing is moved before the app has cleaned up, and the next load makes room.
    """
    assert component.request is not None
    least = least_request(component.request)
    less = make_plan(least)
    given = max(0, plan.device_bytes - less.device_bytes)
    in_graph = apps_graph_is_active()
    for other in component.idle_beside():
        given += other.freeable_bytes()
        if not in_graph:
            other.leave_device()
    if in_graph:
        component.ran_full(less.device_bytes, needs_room=True)
        raise _full_in_the_apps_graph(component, layer, given)
    if not given:
        return None
    name, size = str(component.device), f"{given / 1e9:.2f} GB"
    what = sentence("full_too_late" if too_late else "full_run_again", device=name, given=size)
    component.warn(what, do=sentence("do_run_again") if too_late else None)
    component.ran_full(less.device_bytes)
    if less.device_bytes >= plan.device_bytes:
        return plan
    component.planned(less, least)
    return less


def brings_no_user_code(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer's arguments bring no code of other nodes, which might count or collect something as it runs."""
    options = [value for value in (*args, *kwargs.values()) if isinstance(value, dict)]
    return not any(option.get(key) for option in options for key in _CODE_OF_OTHERS)
