"""Who gets page-locked memory, who a copy, and who is read from its file."""

import json
from dataclasses import replace

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from offload_core.planning.check import check_plan
from offload_core.planning.cost_model import compute_times
from offload_core.planning.evaluate import Problem
from offload_core.planning.host_tiers import host_tiers, out_of_tier
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.plan import Plan
from offload_core.planning.plan_change import better_plan, demoted
from offload_core.planning.plan_text import plan_to_text
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.planning.search import Search
from offload_core.planning.simulate import simulate
from tests.core.shapes import GB, inventories, long_run, qwen_image

MB = 10**6


def request(*sizes_mb, in_file=True, visits=(), **options):
    layers = tuple(LayerSpec(f"b.{i}", size * MB, in_file=in_file) for i, size in enumerate(sizes_mb))
    return PlanRequest(Inventory("dit", layers, visits), "cuda:0", None, **options)


def tiers(given, residents=()):
    return host_tiers(given, frozenset(residents))


def test_without_limits_everything_streamed_is_pinned_and_residents_stay_in_the_file():
    assert tiers(request(100, 100, 100), residents=[1]) == ["pinned", "mapped", "pinned"]


def test_what_is_in_no_file_has_a_copy_anyway():
    assert tiers(request(100, 100, in_file=False), residents=[1]) == ["pinned", "pinned"]
    assert tiers(request(100, 100, in_file=False, copies_budget_bytes=0, pin_budget_bytes=100 * MB)) == [
        "pinned", "pageable"
    ]  # fmt: skip


def test_pins_then_copies_then_the_file_by_bytes_times_visits():
    given = request(100, 300, 200, 100, pin_budget_bytes=300 * MB, copies_budget_bytes=500 * MB)
    assert tiers(given) == ["mapped", "pinned", "pageable", "mapped"]
    twice = request(100, 300, 200, 100, visits=(0, 0, 0, 0, 1, 2, 3), pin_budget_bytes=100 * MB)
    assert tiers(twice) == ["pinned", "pageable", "pageable", "pageable"]


def test_streamed_layers_come_before_larger_residents():
    given = request(900, 100, in_file=False, pin_budget_bytes=900 * MB)
    assert tiers(given, residents=[0]) == ["pageable", "pinned"]


@pytest.mark.parametrize(
    "asked, expected", [("mapped", "mapped"), ("pageable", "pageable"), ("pinned", "pinned"), (None, "pinned")]
)
def test_a_tier_that_was_asked_for(asked, expected):
    assert set(tiers(request(100, 200, host_tier=asked))) == {expected}


def test_in_place_residents_are_in_memory():
    assert tiers(request(100, 100, in_place=True, copies_budget_bytes=0), residents=[0]) == ["pageable", "mapped"]


def test_the_plan_says_so_and_the_checker_agrees():
    given = replace(
        request(*[100] * 8), budget_bytes=400 * MB, pin_budget_bytes=300 * MB, copies_budget_bytes=400 * MB,
        host_source="for a test", passes=20,
    )  # fmt: skip
    plan = make_plan(given)
    assert check_plan(plan, given.inventory, given.budget_bytes, pin_budget_bytes=300 * MB) == []
    assert any("read from the file" in line and "for a test" in line for line in plan.decisions)
    assert check_plan(plan, given.inventory, pin_budget_bytes=299 * MB) != []


def test_layers_in_another_tier_than_was_asked_for_are_told() -> None:
    for given, missed in (
        (request(100, 100, host_tier="pinned"), []),
        (request(100, 100, host_tier="pinned", pin_budget_bytes=100 * MB), [1]),
        (request(100, 100, host_tier="pageable", copies_budget_bytes=100 * MB), [1]),
        (request(100, 100, host_tier="mapped", in_file=False), [0, 1]),
        (request(100, 100, pin_budget_bytes=100 * MB), []),
    ):
        assert out_of_tier(make_plan(given), given) == missed, given


@pytest.mark.parametrize(
    "limits, words",
    [
        ({}, "copied from page-locked system memory, where they stay: no pass reads their file (64 GB available)"),
        ({"pin_budget_bytes": 0}, "copied from pageable memory through a staging buffer (64 GB available)"),
        ({"copies_budget_bytes": 0}, "read from the file in every pass"),
        ({"host_tier": "pageable"}, "through a staging buffer (host_tier = pageable, as asked; 64 GB available)"),
    ],
)
def test_the_plan_says_of_each_tier_where_layers_are_copied_from_and_why(limits, words):
    sizes = [100] * 8
    plan = make_plan(replace(request(*sizes, **limits), budget_bytes=400 * MB, host_source="64 GB available"))
    said = [line for line in plan.decisions if "streamed layers, " in line]
    assert len(said) == 1 and words in said[0]


def test_nothing_is_said_of_page_locked_layers_where_nothing_is_known_of_the_host():
    plan = make_plan(replace(request(*[100] * 8), budget_bytes=400 * MB))
    assert not any("page-locked" in line for line in plan.decisions)


def test_the_checker_finds_a_file_that_is_not_there():
    plan = make_plan(request(100, 100, host_tier="mapped"))
    other = request(100, 100, in_file=False).inventory
    assert any("lies in none" in finding for finding in check_plan(plan, other))


def test_an_unknown_tier_is_refused():
    with pytest.raises(ValueError, match="host_tier: got 'disk'"):
        request(100, host_tier="disk")


# ---- the memory of another device


def beside(*sizes_mb, peer_mb=200, rate=None, **options):
    """A request for layers of which some may be copied from another device; the link to the host was measured."""
    options = {"link_source": "measured"} | options
    options |= {"peer_device": "cuda:1", "peer_budget_bytes": peer_mb * MB, "peer_bytes_per_s": rate}
    return request(*sizes_mb, **options)


@pytest.mark.parametrize(
    "given, expected",
    [
        (beside(100, 100, 100), ["peer", "peer", "pinned"]),
        (beside(100, 300, 200, 100), ["pinned", "pinned", "peer", "pinned"]),  # the largest does not fit
        (beside(150, 120, 50, 40), ["peer", "pinned", "peer", "pinned"]),
        (beside(100, 100, 100, rate=40e9), ["peer", "peer", "pinned"]),
        (beside(100, 100, 100, rate=25e9), ["peer", "peer", "pinned"]),
        (beside(100, 100, 100, rate=24.5e9), ["peer", "peer", "pinned"]),  # no more than rates differ from run to run
        (beside(100, 100, 100, rate=24e9), ["pinned"] * 3),
        (beside(100, 100, 100, rate=9e9, link_source=request(1).link_source), ["peer", "peer", "pinned"]),
        (beside(100, 100, 100, rate=24e9, pin_budget_bytes=100 * MB), ["pinned", "peer", "peer"]),
        (beside(100, 100, 100, rate=24e9, pin_budget_bytes=0), ["peer", "peer", "pageable"]),
        (beside(100, 100, 100, rate=24e9, host_tier="pinned"), ["pinned"] * 3),
        (beside(100, 100, 100, rate=40e9, host_tier="pinned"), ["peer", "peer", "pinned"]),
        (beside(100, 100, 100, rate=24e9, host_tier="pageable"), ["peer", "peer", "pageable"]),
        (beside(100, 100, 100, rate=24e9, host_tier="mapped"), ["peer", "peer", "mapped"]),
        (beside(100, 100, 100, in_place=True), ["pinned"] * 3),
        (beside(100, 100, 100, peer_mb=0), ["pinned"] * 3),
    ],
)
def test_the_order_of_stores(given, expected):
    assert tiers(given) == expected


def test_a_copy_on_another_device_takes_nothing_of_the_host():
    given = beside(100, 100, 100, 100, pin_budget_bytes=100 * MB, copies_budget_bytes=100 * MB)
    assert tiers(given) == ["peer", "peer", "pinned", "mapped"]
    given = beside(100, 100, 100, 100, in_file=False, pin_budget_bytes=100 * MB)
    assert tiers(given) == ["peer", "peer", "pinned", "pageable"]


def test_residents_are_never_on_the_other_device():
    assert tiers(beside(100, 100, 100), residents=[0, 1]) == ["mapped", "mapped", "peer"]
    assert tiers(beside(100, 100, 100, in_file=False), residents=[0, 1]) == ["pinned", "pinned", "peer"]


def test_the_budget_there_is_in_segments():
    whole = request(3, 3, peer_device="cuda:1", peer_budget_bytes=8 << 20)
    given = replace(whole, inventory=replace(whole.inventory, segment_bytes=1 << 21))
    assert tiers(given) == ["peer", "peer"]
    assert tiers(replace(given, peer_budget_bytes=(8 << 20) - 1)) == ["peer", "pinned"]


def test_layers_on_the_other_device_are_not_out_of_the_tier_that_was_asked_for():
    for tier in ("pinned", "pageable", "mapped"):
        given = beside(100, 100, 100, host_tier=tier)
        plan = make_plan(given)
        assert [layer.host_tier for layer in plan.layers] == ["peer", "peer", tier] and out_of_tier(plan, given) == []
    given = beside(100, 100, 100, host_tier="pageable", copies_budget_bytes=0)
    assert out_of_tier(make_plan(given), given) == [2]


@pytest.mark.parametrize(
    "given, words",
    [
        (beside(100, 100, 100, rate=40e9), "2 streamed layers, 200.0 MB, are copied from the memory of cuda:1 (measu"),
        (beside(100, rate=40e9), "from the memory of cuda:1 (measured: 40.0 GB/s)"),
        (beside(100), "from the memory of cuda:1 (not measured: predicted with the link's 25.0 GB/s)"),
        (beside(100, rate=9e9), "copies from system memory run at 25.0 GB/s, those from cuda:1 at 9.0 GB/s"),
    ],
)
def test_the_plan_says_what_lies_there_and_at_which_rate(given, words):
    assert any(words in line for line in make_plan(given).decisions)


def test_residents_are_chosen_by_the_rate_of_each_tier():
    """Half of the layers come at four times the link's rate: a pass of the others' copies hides behind compute, so
    nothing has to stay that stays without the other device."""
    layers = tuple(LayerSpec(f"b.{i}", 100 * MB, 3 * MB) for i in range(10))
    alone = PlanRequest(Inventory("dit", layers), "cuda:0", 800 * MB, passes=50)
    with_peer = replace(alone, peer_device="cuda:1", peer_budget_bytes=500 * MB, peer_bytes_per_s=100e9)
    before, after = make_plan(alone), make_plan(with_peer)
    assert after.predicted.pass_ns <= before.predicted.pass_ns
    assert len(after.residents) < len(before.residents) and after.predicted.stall_ns == 0


def peer_options(total):
    return st.fixed_dictionaries(
        {
            "peer_budget_bytes": st.integers(0, total + 100),
            "peer_bytes_per_s": st.none() | st.sampled_from([1e9, 24e9, 25e9, 60e9, 400e9]),
            "pin_budget_bytes": st.none() | st.integers(0, total),
            "copies_budget_bytes": st.none() | st.integers(0, total),
            "host_tier": st.sampled_from([None, "pinned", "pageable", "mapped"]),
        }
    )


@settings(max_examples=100, deadline=None)
@drawn(inventories(max_layers=12), st.data())
def test_every_plan_with_another_device_is_sound(inv, data):
    low, high = smallest_budget(inv), max(smallest_budget(inv), inv.total_bytes)
    options = data.draw(peer_options(high))
    given = PlanRequest(
        inv,
        "cuda:0",
        data.draw(st.none() | st.integers(low, high)),
        passes=data.draw(st.sampled_from([1, 20])),
        peer_device="cuda:1",
        **options,
    )
    plan = make_plan(given)
    budgets = (given.budget_bytes, 512, options["pin_budget_bytes"], options["peer_budget_bytes"])
    assert check_plan(plan, inv, *budgets) == []
    assert plan.peer_bytes <= options["peer_budget_bytes"]
    assert (plan.peer_device == "cuda:1") == any(layer.host_tier == "peer" for layer in plan.layers)
    assert not any(plan.layers[index].host_tier == "peer" for index in plan.residents)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan and plan_to_text(plan)
    without = make_plan(replace(given, peer_device=None, peer_budget_bytes=0, peer_bytes_per_s=None))
    assert make_plan(replace(given, peer_budget_bytes=0)) == without
    if given.bytes_per_s("peer") >= given.h2d_bytes_per_s:
        pinned = replace(plan, layers=tuple(replace(layer, host_tier="pinned") for layer in plan.layers))
        times, rates = compute_times(inv)[0], (given.h2d_bytes_per_s, given.peer_bytes_per_s)
        slower = simulate(pinned, times, rates[0])
        assert plan.predicted == simulate(plan, times, *rates)
        assert plan.predicted.first_pass_ns <= slower.first_pass_ns
        (slow_ns, slow_steady), (fast_ns, fast_steady) = (
            long_run(pinned, times, rates[0]),
            long_run(plan, times, *rates),
        )
        assert fast_ns <= slow_ns
        assert plan.predicted.pass_ns <= slower.pass_ns or not (slow_steady and fast_steady)


def test_a_smaller_or_better_plan_has_its_copies_on_the_other_device_too():
    layers = tuple(LayerSpec(f"b.{i}", 100 * MB, MB) for i in range(10))
    options = {"peer_device": "cuda:1", "peer_budget_bytes": 300 * MB, "peer_bytes_per_s": 50e9, "passes": 20}
    given = PlanRequest(Inventory("dit", layers), "cuda:0", 900 * MB, **options)
    less = replace(given, budget_bytes=600 * MB)
    current = make_plan(given)
    for plan in (demoted(current, less), better_plan(current, less)):
        assert plan.peer_device == "cuda:1" and plan.peer_bytes == 300 * MB
        assert check_plan(plan, given.inventory, 600 * MB, peer_budget_bytes=300 * MB) == []
        assert plan.predicted == simulate(plan, [MB] * 10, 25e9, 50e9)
    better = better_plan(make_plan(replace(less, peer_budget_bytes=0)), less)
    assert better is not None and better.peer_bytes == 300 * MB
    assert better_plan(better, less) is None


def test_residents_given_up_for_a_smaller_plan_leave_the_others_copies_where_they_are():
    inv = qwen_image(700)
    given = PlanRequest(
        inv, "cuda:0", 20 * GB, passes=20, peer_device="cuda:1", peer_budget_bytes=5 * GB, peer_bytes_per_s=50e9
    )
    less = replace(given, budget_bytes=6 * GB)
    plan, best = demoted(make_plan(given), less), make_plan(less)
    assert plan != best and plan.decisions[-1] == "residents were given up, none was fetched"
    assert (plan.peer_device, plan.peer_bytes) == ("cuda:1", best.peer_bytes) and plan.peer_bytes > 4 * GB
    assert check_plan(plan, inv, 6 * GB, peer_budget_bytes=5 * GB) == []
    assert plan.predicted == simulate(plan, compute_times(inv)[0], 25e9, 50e9)


def test_the_bound_of_the_search_is_that_of_the_slowest_layers_resident():
    """Half of the bytes fit. With the slow half resident a pass copies the fast half in 4 ms, not half of all 40."""
    problem = Problem(
        visits=tuple(range(4)),
        sizes=(MB,) * 4,
        link_ns=(18 * MB, 2 * MB, 18 * MB, 2 * MB),
        compute_ns=(0,) * 4,
        keep=frozenset(),
        room_bytes=3 * MB + 512,
        alignment=512,
    )
    chosen = Search(problem).steady()
    assert chosen.residents == {0, 2} and chosen.pass_ns == 4 * MB
