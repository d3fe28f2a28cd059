"""Device memory given back: to the app when it asks for some, and to our own pass when the device turns out to be full.

Layers are given up in the order that costs least, then the ring shrinks, then all goes; nothing is copied back. Of a
ring that several components share, only what no other needs comes free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.plan_change import demoted
from ...offload_core.planning.planner import make_plan, smallest_budget
from ...offload_core.planning.request import PlanRequest
from ...offload_core.runtime import OffloadController
from ...offload_core.sentences import Sentence, sentence
from ..app.compat import apps_graph_is_active

UNLOAD_ORDER_BYTES = 4096
"""The app asks for room where most is missing on the device, first. What we give costs no copy back, so each of our
models says that this much is missing, divided by its passes a use: ours are asked before the app's own that are there
whole, and a layer of an encoder before one of a diffusion model, which is worth its bytes at every step."""

_CODE_OF_OTHERS = ("patches", "patches_replace", "optimized_attention_override")
"""Entries of `transformer_options` through which other nodes' code runs inside a layer."""


class HoldsMemory(Protocol):
    """What has to be known of a component, and done to it, for memory to be given back."""

    device: torch.device
    model_name: str

    @property
    def controller(self) -> OffloadController: ...
    @property
    def request(self) -> PlanRequest | None: ...
    @property
    def loaded(self) -> bool: ...
    def freeable_bytes(self) -> int: ...
    def put_into_effect(self, plan: Plan, request: PlanRequest) -> None: ...
    def planned(self, plan: Plan, request: PlanRequest) -> None: ...
    def leave_device(self) -> None: ...
    def ran_full(self, nbytes: int, needs_room: bool = False) -> None: ...
    def warn(self, what: Sentence, do: Sentence | None = None) -> None: ...


def give_back(component: HoldsMemory, nbytes: int) -> int:
    """Free at least `nbytes`, if the component holds them and may part with some only. Returns the bytes freed.

    In the middle of a pass of its own it gives nothing. What it gives counts until the app offers room again.
    """
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


class FullInTheAppsGraph(OffloadError, torch.OutOfMemoryError):
    """The device ran out of memory where a layer cannot be run again. The app then takes its models off the device."""


def _full_in_the_apps_graph(component: HoldsMemory, layer: str, given: int) -> FullInTheAppsGraph:
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


def idle_beside(component: HoldsMemory, others: Iterable[HoldsMemory]) -> list[HoldsMemory]:
    """Those of `others` on the same device that run nothing now."""
    return [
        other
        for other in others
        if other.loaded and other.device == component.device and not other.controller.in_pass()
    ]


def make_room(
    component: HoldsMemory, plan: Plan, layer: str, too_late: bool, others: Iterable[HoldsMemory]
) -> Plan | None:
    """The device is full in the middle of our own pass: idle components go, and this one keeps the least it needs.

    None if there is nothing to give. What is given up here stays given up while it runs on the same shape. Inside the
    app's memory graph it raises instead: nothing is moved before the app has cleaned up, and the next load makes room.
    """
    assert component.request is not None
    least = least_request(component.request)
    less = make_plan(least)
    given = max(0, plan.device_bytes - less.device_bytes)
    in_graph = apps_graph_is_active()
    for other in idle_beside(component, others):
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


def least_request(request: PlanRequest) -> PlanRequest:
    """The same component with a ring for one layer and what must stay."""
    return replace(request, budget_bytes=smallest_budget(request.inventory), ring_bytes=None, placement="layerwise")


def brings_no_user_code(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer's arguments bring no code of other nodes, which might count or collect something as it runs."""
    options = [value for value in (*args, *kwargs.values()) if isinstance(value, dict)]
    return not any(option.get(key) for option in options for key in _CODE_OF_OTHERS)
