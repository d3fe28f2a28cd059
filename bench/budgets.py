"""Ours at a budget: plans for a model that is attached already, by the times that are known by now.

To attach page-locks the model, which takes as long for every budget: a bench does it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget

WARM_UP_STEPS = 3
"""One records the order, two are measured."""


def load_at(controller: Any, budget_bytes: int, link: float | None, step: Callable[[], Any]) -> dict[str, Any]:
    """Put a plan for this budget into effect, twice: without times, and from those of the first steps, as in real use.

    A model of few large layers has no plan for a quarter of its bytes: it gets the least that works. `link` in bytes a
    second. Returns what a row says of the plan.
    """
    budget = max(budget_bytes, smallest_budget(controller.inventory))
    controller.unload()
    controller.load(_plan(controller, budget, link))
    for _ in range(WARM_UP_STEPS + 1):  # the last one reads the times of those before
        step()
    controller.load(_plan(controller, budget, link))
    plan = controller.plan
    kept = {"ring_bytes": plan.ring_bytes, "resident_bytes": plan.resident_bytes, "loose_bytes": plan.loose_bytes}
    return {
        "budget_bytes": budget,
        "predicted_s": plan.predicted.pass_ns / 1e9,
        "streamed_bytes_per_step": sum(plan.layers[index].bytes for index in plan.streamed),
        "plan": {**kept, "streamed": len(plan.streamed), "residents": len(plan.residents)},
    }


def _plan(controller: Any, budget_bytes: int, link: float | None) -> Any:
    pairs = zip(controller.inventory.layers, (layer.times.compute_ns for layer in controller.layers))
    inventory = replace(controller.inventory, layers=tuple(replace(layer, compute_ns=ns) for layer, ns in pairs))
    request = PlanRequest(inventory, str(controller.queue.port.device), budget_bytes, passes=1000)
    return make_plan(request if link is None else replace(request, h2d_bytes_per_s=link, link_source="measured"))
