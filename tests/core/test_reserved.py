"""What allocations take of a device, and that budgets are counted in it."""

from __future__ import annotations

import dataclasses

import pytest

from offload_core.errors import BudgetError
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.planning.reserved import SEGMENT_BYTES, reserved_bytes
from tests.core.shapes import MB, equal

MIB = 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "taken"),
    [(0, 0), (1, 1), (MIB, MIB), (MIB + 1, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB)],
)
def test_above_a_mebibyte_memory_is_taken_in_segments(nbytes: int, taken: int) -> None:
    assert reserved_bytes(nbytes, SEGMENT_BYTES) == taken
    assert reserved_bytes(nbytes, 1) == nbytes


def test_a_budget_is_for_what_is_taken_of_the_device() -> None:
    """Ten layers of 3 MiB take 4 MiB each."""
    inv = dataclasses.replace(equal(10, 3 * MIB, 1), segment_bytes=SEGMENT_BYTES)
    assert inv.total_bytes == 40 * MIB
    plan = make_plan(PlanRequest(inv, "cuda:0", 30 * MIB, passes=20))
    assert plan.resident_bytes == 4 * MIB * len(plan.residents)
    assert plan.ring_bytes % SEGMENT_BYTES == 0
    assert plan.device_bytes == plan.ring_bytes + plan.resident_bytes <= 30 * MIB


def test_the_smallest_budget_works_and_less_does_not() -> None:
    inv = dataclasses.replace(equal(4, 3 * MB, 1), loose_bytes=5 * MIB + 1, segment_bytes=SEGMENT_BYTES)
    smallest = smallest_budget(inv)
    assert smallest == 6 * MIB + 4 * MIB
    assert make_plan(PlanRequest(inv, "cuda:0", smallest)).device_bytes == smallest
    with pytest.raises(BudgetError) as refused:
        make_plan(PlanRequest(inv, "cuda:0", smallest - 1))
    assert refused.value.smallest_bytes == smallest
