"""Device memory given back: to the app when it asks for some, and to our own pass when the device turns out to be full.

Layers are given up in the order that costs least, then the ring shrinks, then all goes; nothing is copied back. Of a
ring that several components share, only what no other needs comes free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.plan_change import demoted
from ...offload_core.planning.planner import make_plan, smallest_budget
from ...offload_core.planning.request import PlanRequest
from ...offload_core.sentences import sentence
from ...offload_core.settings.component_settings import Setting
from ...offload_core.settings.policy import role_of
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


def give_back(component: Component, requested: Requested, nbytes: int, may_leave: bool = True) -> int:
    """Free at least `nbytes`, if the component holds them and may part with some only. Returns the bytes freed.
    may_leave: it leaves the device if it cannot free so much otherwise.

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
    # Layers that are streamed from now on take nothing on another device: this may be on behalf of what runs there.
    request = replace(request, peer_budget_bytes=min(request.peer_budget_bytes, plan.peer_bytes))
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
    if not may_leave:
        return 0
    component.leave_device()
    return before


def make_way(component: Component, plan: Plan, request: PlanRequest, number_bytes: int) -> tuple[Plan, PlanRequest]:
    """Before `plan` of `component`, made for `request`, is loaded: idle components on its device give back what all of
    ours would hold there beyond `number_bytes`, those of few passes a use first. Returns the plan to load and its
    request: a smaller one where what others keep leaves less.

    Raises BudgetError if not even the smallest plan has room beside what was asked to be resident. Where what runs at
    this moment leaves no room, the number is exceeded, and that is said: to refuse would end the run.
    """
    beside, own_role = component.others_on_device(), role_of(component.name)
    loaded_with_it = {id(patcher.model) for patcher in mm.loaded_models(only_currently_used=True)}
    in_a_step = any(other.controller.in_pass() for other in beside)
    idle = sorted(component.idle_beside(), key=lambda other: (other.kind.passes, other.name, other.id))
    for other in idle:
        over = _held_with(component, plan, beside) - number_bytes
        if over <= 0:
            break
        role, runs = role_of(other.name), other.is_of_running_prompt()
        if role is not None and in_a_step:  # it may be in the middle of that step
            continue
        if runs and _is_resident(other):
            continue
        runs_in_step = runs and role is not None and own_role is not None
        if runs_in_step or id(other.controller.root) in loaded_with_it:  # it may be called without being loaded again
            _lend(other, over)
        else:
            _give_up_to(component, other, plan, beside, number_bytes)
    over = _held_with(component, plan, beside) - number_bytes
    if over <= 0 or component.controller.in_pass():
        return plan, request
    plan, request = _smaller(plan, request, over)
    held = _held_with(component, plan, beside)
    if held > number_bytes:
        staying = [other for other in idle if other.loaded and _is_resident(other) and other.is_of_running_prompt()]
        if not in_a_step and (staying or request.placement == "resident"):
            raise _too_much(component, plan, held, number_bytes)
        _warn_of_too_much(component, plan, held, number_bytes)
    return plan, request


def _requested_of(component: Component) -> Requested:
    return next((patcher.requested for patcher in list(component.patchers)), Requested())


def _is_resident(component: Component) -> bool:
    return _requested_of(component).value("placement") == "resident"


def _give_up_to(component: Component, other: Component, plan: Plan, beside: Sequence[Component], number: int) -> None:
    """`other` gives back what is more than `number` bytes with `plan` of `component`, and leaves the device if need be;
    nothing if all that it holds is a ring that others need as well."""
    requested, rest = _requested_of(other), [neighbour for neighbour in beside if neighbour is not other]
    while other.loaded and (over := _held_with(component, plan, beside) - number) > 0:
        all_of_it = _held_with(component, plan, beside) - _held_with(component, plan, rest)
        if not all_of_it:
            break
        if all_of_it <= over or not give_back(other, requested, over):
            other.leave_device()


def _lend(other: Component, over: int) -> None:
    """`other` gives back what it can part with, up to `over` bytes, and stays on the device."""
    if other.request is None or not other.loaded:
        return
    spare = other.controller.freed_by(make_plan(least_request(other.request)))
    if (nbytes := min(over, spare)) > 0:
        give_back(other, _requested_of(other), nbytes, may_leave=False)


def _smaller(plan: Plan, request: PlanRequest, over: int) -> tuple[Plan, PlanRequest]:
    """A plan of `over` bytes less, or else the smallest, and its request; the same if it was asked to be resident."""
    if request.placement == "resident":
        return plan, request
    least = least_request(request)
    assert least.budget_bytes is not None
    smaller = replace(request, budget_bytes=max(least.budget_bytes, plan.device_bytes - over))
    try:
        return make_plan(smaller), smaller
    except BudgetError:  # a ring whose size was set leaves no room for less
        return make_plan(least), least


def _too_much(component: Component, plan: Plan, held_bytes: int, number_bytes: int) -> BudgetError:
    number, own, held = (format_bytes(size) for size in (number_bytes, plan.device_bytes, held_bytes))
    return BudgetError(
        f"asked {number} for the weights of the workflow; found that {component.name} needs {own} beside what others "
        f"keep, {held} together; give at least {gb_at_least(held_bytes)}, or leave the placement of the others on auto",
        asked_bytes=number_bytes,
        smallest_bytes=held_bytes,
        setting=Setting.WORKFLOW_BUDGET_BYTES,
    )


def _warn_of_too_much(component: Component, plan: Plan, held_bytes: int, number_bytes: int) -> None:
    number, own, held = (format_bytes(size) for size in (number_bytes, plan.device_bytes, held_bytes))
    what = sentence("beyond_workflow", component=component.name, own=own, held=held, number=number)
    component.warn(what, do=sentence("do_set_workflow_budget", budget=gb_at_least(held_bytes)))


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
