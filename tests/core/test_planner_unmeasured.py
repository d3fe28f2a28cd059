"""Without measured compute times, allowed memory is used: a wrong guess must not leave it idle."""

from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.planner import PlanRequest, make_plan

LAYERS = tuple(LayerSpec(f"blocks.{index}", 100_000_000) for index in range(40))


def plan_for(budget_bytes: int, layers=LAYERS):
    inventory = Inventory("dit", layers, (), 10_000_000)
    return make_plan(PlanRequest(inventory, "cuda:0", budget_bytes, h2d_bytes_per_s=25e9, passes=20))


def test_the_budget_is_used_for_residents():
    plan = plan_for(2_000_000_000)
    assert plan.resident_bytes >= 1_500_000_000
    assert plan.device_bytes <= 2_000_000_000
    assert any("no compute times were known" in decision for decision in plan.decisions)


def test_measured_times_that_hide_the_copies_leave_it_free():
    layers = tuple(LayerSpec(layer.name, layer.bytes, compute_ns=40_000_000) for layer in LAYERS)
    plan = plan_for(2_000_000_000, layers)
    assert plan.resident_bytes == 0
    assert plan.predicted.stall_ns == 0


def test_one_tiny_slow_layer_does_not_outlaw_the_guess_for_the_others():
    layers = (LayerSpec("blocks.0", 1, compute_ns=40_000_000), *LAYERS[1:])
    assert plan_for(2_000_000_000, layers).device_bytes <= 2_000_000_000


def test_on_the_cpu_the_guess_is_of_a_processor_and_a_disk():
    """Compute is slow there: the ring reads one layer while another computes, whatever else there is room for."""
    size = 1 << 26
    inventory = Inventory("model", tuple(LayerSpec(f"blocks.{index}", size) for index in range(12)), (), 0)
    plan = make_plan(PlanRequest(inventory, "cpu", 4 * size, passes=20, in_place=True, hold_spare=True))
    assert plan.ring_bytes >= 2 * size and plan.residents
    assert any("a file on a solid state disk" in decision for decision in plan.decisions)
    assert any("0.4 TFLOPS" in decision for decision in plan.decisions)
    accelerators = make_plan(PlanRequest(inventory, "cuda:0", 4 * size, passes=20))
    assert accelerators.ring_bytes < 2 * size, "by an accelerator's guess nothing would be read meanwhile"


def test_what_was_measured_of_a_disk_stays():
    inventory = Inventory("dit", LAYERS, (), 10_000_000)
    request = PlanRequest(inventory, "cpu", None, h2d_bytes_per_s=7e8, link_source="measured", in_place=True)
    assert (request.h2d_bytes_per_s, request.link_source) == (7e8, "measured")
