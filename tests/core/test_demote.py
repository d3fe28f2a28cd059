"""Giving device memory back: within the smaller budget always, and without fetching what need not be fetched."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.planning.check import check_plan
from offload_core.planning.inventory import Inventory
from offload_core.planning.plan import Plan
from offload_core.planning.plan_change import demoted
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.planning.simulate import copy_ns
from tests.core.shapes import GB, flux, inventories, qwen_image


def request(inventory: Inventory, budget: int, passes: int = 20) -> PlanRequest:
    return PlanRequest(inventory, "cuda:0", budget, passes=passes, h2d_bytes_per_s=25e9)


def cost_ns(plan: Plan, current: Plan, passes: int) -> int:
    """Of the passes of one use, with what has to be fetched before."""
    fetched = set(plan.residents) - set(current.residents)
    return passes * plan.predicted.pass_ns + sum(copy_ns(plan.layers[index].bytes, 25e9) for index in fetched)


def test_the_way_down_costs_no_more_than_the_best_plan_for_less() -> None:
    cheaper = 0
    for milliseconds in (700, 900, 1200):
        inventory = qwen_image(milliseconds)
        for budget, less in ((16 * GB, 12 * GB), (12 * GB, 11 * GB), (20 * GB, 6 * GB), (30 * GB, 29 * GB)):
            current = make_plan(request(inventory, budget))
            plan, best = demoted(current, request(inventory, less)), make_plan(request(inventory, less))
            assert check_plan(plan, inventory, less) == []
            assert cost_ns(plan, current, 20) <= cost_ns(best, current, 20)
            cheaper += cost_ns(plan, current, 20) < cost_ns(best, current, 20)
    assert cheaper >= 3, "otherwise this shows nothing"


def test_a_plan_that_fetches_nothing_is_left_alone() -> None:
    inventory = flux(551)
    budget = smallest_budget(inventory)
    assert demoted(make_plan(request(inventory, 20 * GB)), request(inventory, budget)) == make_plan(
        request(inventory, budget)
    )


@settings(max_examples=60, deadline=None)
@given(inventories(), st.floats(0, 1), st.floats(0, 1), st.integers(1, 30))
def test_it_is_a_plan_within_the_budget(inventory: Inventory, high: float, low: float, passes: int) -> None:
    smallest = smallest_budget(inventory)
    room = inventory.total_bytes - smallest
    budget = smallest + int(room * high)
    less = smallest + int(room * high * low)
    current = make_plan(request(inventory, budget, passes))
    plan = demoted(current, request(inventory, less, passes))
    best = make_plan(request(inventory, less, passes))
    assert check_plan(plan, inventory, less) == []
    assert plan.device_bytes == best.device_bytes
    had = set(current.residents)
    moved, would_move = (sum(p.layers[i].bytes for i in set(p.residents) - had) for p in (plan, best))
    assert moved <= would_move
