"""Who gets page-locked memory, who a copy, and who is read from its file."""

from dataclasses import replace

import pytest

from offload_core.planning.check import check_plan
from offload_core.planning.host_tiers import host_tiers, out_of_tier
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.planner import PlanRequest, make_plan

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
        ({}, "copied from page-locked host memory, where they stay: no pass reads their file (64 GB available)"),
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
