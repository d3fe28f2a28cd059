"""While nobody has measured compute times, allowed memory is used: a wrong guess must not leave it idle."""

from offload_core.inventory import Inventory, LayerSpec
from offload_core.planner import PlanRequest, make_plan

LAYERS = tuple(LayerSpec(f"blocks.{index}", 100_000_000) for index in range(40))


def plan_for(budget_bytes: int, layers=LAYERS):
    inventory = Inventory("dit", layers, (), 10_000_000)
    return make_plan(PlanRequest(inventory, "cuda:0", budget_bytes, h2d_bytes_per_s=25e9, passes=20))


def test_the_budget_is_used_for_residents():
    plan = plan_for(2_000_000_000)
    assert plan.resident_bytes >= 1_500_000_000
    assert plan.device_bytes <= 2_000_000_000
    assert any("no compute times were measured" in decision for decision in plan.decisions)


def test_measured_times_that_hide_the_copies_leave_it_free():
    layers = tuple(LayerSpec(layer.name, layer.bytes, compute_ns=40_000_000) for layer in LAYERS)
    plan = plan_for(2_000_000_000, layers)
    assert plan.resident_bytes == 0
    assert plan.predicted.stall_ns == 0


def test_one_tiny_slow_layer_does_not_outlaw_the_guess_for_the_others():
    layers = (LayerSpec("blocks.0", 1, compute_ns=40_000_000), *LAYERS[1:])
    assert plan_for(2_000_000_000, layers).device_bytes <= 2_000_000_000
