"""Whether a plan is worth moving layers for: pure arithmetic, over random inventories."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.planning.check import check_plan
from offload_core.planning.cost_model import compute_times
from offload_core.planning.inventory import Inventory
from offload_core.planning.plan_change import FASTER, FEWER, SMALLER, better_plan, several_passes
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.planning.simulate import simulate
from tests.core.shapes import GB, equal, flux, inventories


def unmeasured(inventory: Inventory) -> Inventory:
    return replace(inventory, layers=tuple(replace(layer, compute_ns=None) for layer in inventory.layers))


def request(inventory: Inventory, budget: int | None, **changes: object) -> PlanRequest:
    return PlanRequest(inventory, "cuda:0", budget, **{"passes": 20, "h2d_bytes_per_s": 25e9, **changes})  # type: ignore[arg-type]


def test_a_guess_that_was_too_cautious_is_put_right() -> None:
    """Unmeasured, the allowed memory is used. Measured on a slow device, everything hides in a ring."""
    slow = flux(9100)
    guess = make_plan(request(unmeasured(slow), 12 * GB))
    assert guess.residents
    better = better_plan(guess, request(slow, 12 * GB))
    assert better is not None and better.predicted.stall_ns == 0
    assert better.device_bytes < 3 * GB and "given back" in better.decisions[-1]


def test_a_plan_that_is_as_good_stays() -> None:
    measured = flux(551)
    plan = make_plan(request(measured, 8 * GB))
    assert better_plan(plan, request(measured, 8 * GB)) is None


def test_times_of_another_shape_lead_to_another_plan() -> None:
    small, large = flux(150), flux(9100)
    plan = make_plan(request(large, 12 * GB))
    better = better_plan(plan, request(small, 12 * GB))
    assert better is not None and "of the time it took" in better.decisions[-1]
    assert better.predicted.pass_ns < 0.97 * simulate(plan, compute_times(small)[0], 25e9).pass_ns


def test_a_second_pass_holds_layers_and_one_pass_does_not() -> None:
    encoder = equal(24, 386_000_000, 1_500_000)
    one = request(encoder, 4 * GB, passes=1)
    plan = make_plan(one)
    assert plan.residents == () and better_plan(plan, one) is None
    held = better_plan(plan, several_passes(one))
    assert held is not None and held.residents and held.device_bytes <= 4 * GB
    assert better_plan(plan, several_passes(replace(one, keep_residents=False))) is None
    tight = better_plan(plan, several_passes(replace(one, budget_bytes=plan.device_bytes)))
    assert tight is None or tight.device_bytes <= plan.device_bytes, "a smaller ring, and a layer instead"


def test_spare_memory_is_used_where_it_is_to_be_held() -> None:
    """Copies hide either way; where reading disturbs computing, fewer of them are better."""
    measured = equal(12, 67_108_864, 36_000_000)
    asked = request(measured, 4 * 67_108_864, h2d_bytes_per_s=2.5e9, keep_residents=False)
    plan = make_plan(asked)
    asked = replace(asked, keep_residents=None)
    assert plan.residents == () and better_plan(plan, asked) is None
    held = better_plan(plan, replace(asked, hold_spare=True))
    assert held is not None and held.residents and held.predicted.pass_ns <= plan.predicted.pass_ns
    assert held.device_bytes <= 4 * 67_108_864 and "of what it copied" in held.decisions[-1]
    assert better_plan(held, replace(asked, hold_spare=True)) is None


def test_several_passes_takes_none_away() -> None:
    assert several_passes(request(flux(551), GB, passes=50)).passes == 50


def test_the_order_that_was_seen_counts() -> None:
    """The old plan is judged in the order that was recorded, not in the one it was made for."""
    shape = equal(8, 400_000_000, 2_000_000)
    guess = make_plan(request(shape, int(2.5 * GB)))
    seen = replace(shape, visits=(0, 1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7))
    better = better_plan(guess, request(seen, int(2.5 * GB)))
    assert better is None or better.visits == seen.visits
    assert make_plan(request(seen, int(2.5 * GB))).visits == seen.visits


def test_a_plan_over_the_budget_never_stays() -> None:
    """Memory was taken away: the smaller plan comes although it is slower."""
    measured = flux(551)
    plan = make_plan(request(measured, 8 * GB))
    smaller = better_plan(plan, request(measured, 4 * GB))
    assert smaller is not None and smaller.device_bytes <= 4 * GB
    assert smaller.predicted.pass_ns > plan.predicted.pass_ns and "over the budget" in smaller.decisions[-1]


@settings(max_examples=150, deadline=None)
@given(st.data(), inventories(max_layers=10))
def test_what_is_offered_is_sound_within_the_limits_and_better(data: st.DataObject, measured: Inventory) -> None:
    least = smallest_budget(measured)
    budget = data.draw(st.integers(least, max(least, measured.total_bytes)))
    largest = max((layer.bytes for layer in measured.layers if layer.keep is None), default=0)
    room = budget - measured.loose_bytes - sum(layer.bytes for layer in measured.layers if layer.keep is not None)
    ring = data.draw(st.sampled_from([None, -(-largest // 512) * 512]))
    if ring is not None and not 0 < ring <= room:
        ring = None
    passes = data.draw(st.sampled_from([1, 20]))
    first = request(unmeasured(measured), budget, ring_bytes=ring, passes=passes)
    current = make_plan(first)
    again = several_passes(replace(first, inventory=measured, hold_spare=data.draw(st.booleans())))
    better = better_plan(current, again)
    if better is None:
        return
    assert check_plan(better, measured, budget) == []
    assert ring is None or better.ring_bytes in (0, ring)
    times, _ = compute_times(measured)
    before = simulate(current, times, 25e9).pass_ns
    faster = better.predicted.pass_ns <= before * FASTER
    smaller = better.predicted.pass_ns <= before and better.device_bytes <= current.device_bytes * SMALLER
    copied = simulate(current, times, 25e9).bytes_per_pass
    fewer = better.predicted.pass_ns <= before and better.predicted.bytes_per_pass <= copied * FEWER
    assert faster or smaller or (again.hold_spare and fewer)
    assert better_plan(better, again) is None, "and then it stays"
