"""The simulator: hand-worked cases, a naive byte-by-byte engine as a second opinion, and the laws that bound it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.errors import PlanError
from offload_core.planning.plan import Plan, PlannedLayer, Prediction
from offload_core.planning.simulate import simulate, steady_events
from tests.core.shapes import long_run
from tests.support.simulated import simulate_in_detail

RATE = 1e9  # one byte takes one nanosecond


def plan_of(layers: list[tuple[int, int | None]], ring_bytes: int, visits: tuple[int, ...] = ()) -> Plan:
    """A plan from (bytes, offset) pairs; an offset of None is a resident."""
    planned = tuple(
        PlannedLayer(f"b.{i}", size, "resident" if offset is None else "streamed", offset, "pinned")
        for i, (size, offset) in enumerate(layers)
    )
    resident = sum(size for size, offset in layers if offset is None)
    visits = visits or tuple(range(len(layers)))
    return Plan("dit", "cuda:0", planned, visits, ring_bytes, resident, 0, Prediction(0, 0, 0, 0, 0))


def naive(plan: Plan, compute: list[int], passes: int) -> tuple[list[int], list[int]]:
    """The engine's rules on single bytes: pass end times and copied bytes per pass. Slow, obvious, unrelated code."""
    owner: dict[int, int] = {}
    last_read: dict[int, int] = {}  # by layer: when its latest visit ended
    copy_free = compute_free = 0
    armed: set[int] = set()
    ends, copied = [], []
    for _ in range(passes):
        moved = 0
        for layer_index in plan.visits:
            layer = plan.layers[layer_index]
            arrived = 0
            if layer.placement == "resident":
                if layer_index not in armed:
                    armed.add(layer_index)
                    copy_free += layer.bytes
                    arrived, moved = copy_free, moved + layer.bytes
            else:
                assert layer.offset is not None
                mine = range(layer.offset, layer.offset + layer.bytes)
                if any(owner.get(byte) != layer_index for byte in mine):
                    for other in plan.streamed:
                        span = plan.layers[other]
                        assert span.offset is not None
                        if span.offset < mine.stop and mine.start < span.offset + span.bytes:
                            copy_free = max(copy_free, last_read.get(other, 0))
                    copy_free += layer.bytes
                    arrived, moved = copy_free, moved + layer.bytes
                    owner.update(dict.fromkeys(mine, layer_index))
            compute_free = max(compute_free, arrived) + compute[layer_index]
            last_read[layer_index] = compute_free
        ends.append(compute_free)
        copied.append(moved)
    return ends, copied


def test_one_slot_is_serial() -> None:
    result = simulate_in_detail(plan_of([(10, 0), (10, 0)], 10), [3, 4], RATE)
    assert (result.first_pass_ns, result.pass_ns, result.bound_ns) == (27, 27, 27)
    assert result.stall_ns == (10, 10)
    assert (result.bytes_per_pass, result.peak_ring_bytes) == (20, 10)


def test_two_slots_hide_the_shorter_of_copy_and_compute() -> None:
    plan = plan_of([(10, 0), (10, 10)], 20)
    assert simulate(plan, [10, 10], RATE).pass_ns == 20  # each layer keeps its own half: nothing is copied again
    plan = plan_of([(10, 0), (10, 10), (10, 0), (10, 10)], 20)
    link_bound, compute_bound = (simulate_in_detail(plan, [ns] * 4, RATE) for ns in (4, 25))
    assert (link_bound.pass_ns, link_bound.bound_ns, link_bound.first_pass_ns) == (40, 40, 44)
    assert (compute_bound.pass_ns, compute_bound.bound_ns, compute_bound.first_pass_ns) == (100, 100, 110)
    assert compute_bound.stall_ns == (0, 0, 0, 0)


def test_a_ring_that_does_not_divide_the_layers_stalls_at_the_wrap() -> None:
    # Three equal layers on two slots: the last and the first of the next pass share a slot.
    result = simulate_in_detail(plan_of([(10, 0), (10, 10), (10, 0)], 20), [10, 10, 10], RATE)
    assert result.pass_ns == 40
    assert result.stall_ns[0] == 10


def on_peer(plan: Plan, *indices: int) -> Plan:
    """The same placement with these layers in another device's memory."""
    layers = list(plan.layers)
    for index in indices:
        layers[index] = replace(layers[index], host_tier="peer")
    return replace(plan, layers=tuple(layers), peer_device="cuda:1")


def test_copies_from_another_device_take_its_rate_on_the_same_lane() -> None:
    plan = on_peer(plan_of([(10, 0), (10, 10), (10, 0), (10, 10)], 20), 1, 2)
    times = [4] * 4
    assert simulate(plan, times, RATE) == simulate(plan, times, RATE, RATE)
    for rate, link_ns in ((2 * RATE, 5), (RATE / 2, 20)):
        result = simulate(plan, times, RATE, rate)
        assert result.pass_ns == result.bound_ns == 2 * 10 + 2 * link_ns
        assert (result.bytes_per_pass, result.stall_ns) == (40, 4 + 2 * link_ns)
        copies = [event for event in steady_events(plan, times, RATE, "dit", rate) if event.kind == "copy"]
        assert {(event.layer, event.end_ns - event.start_ns) for event in copies} == {
            (0, 10), (1, link_ns), (2, link_ns), (3, 10)
        }  # fmt: skip


def test_the_bound_of_a_ring_of_one_layer_has_the_rate_of_each_tier() -> None:
    plan = on_peer(plan_of([(10, 0), (10, 0)], 10), 1)
    result = simulate(plan, [3, 4], RATE, 2 * RATE)
    assert (result.first_pass_ns, result.pass_ns, result.bound_ns) == (22, 22, 22)


def test_residents_come_once_in_visit_order() -> None:
    result = simulate_in_detail(plan_of([(10, 0), (30, None), (10, 10)], 20), [5, 5, 5], RATE)
    assert result.first_pass_ns == 55  # 50 of copies, then the last layer
    assert (result.first_pass_bytes, result.bytes_per_pass) == (50, 0)
    assert result.pass_ns == 15


def test_a_layer_still_in_the_ring_is_a_hit() -> None:
    plan = plan_of([(10, 0), (10, 10), (10, 0)], 20, visits=(0, 1, 0, 2))
    result = simulate_in_detail(plan, [1, 1, 1], RATE)
    assert result.bytes_per_pass == 20  # layer 1 stays for ever, layer 0 is read twice for one copy
    assert result.peak_ring_bytes == 20


def test_steady_state_is_found_when_look_ahead_builds_up_slowly() -> None:
    # A long copy that only several passes of small credit could hide: the third pass is not yet the steady one.
    sizes = [(100, 0)] + [(10, 100 + 10 * (i % 4)) for i in range(20)]
    result = simulate_in_detail(plan_of(sizes, 140), [14] * 21, RATE, passes=200)
    assert (result.passes_simulated, result.pass_ns) == (200, result.last_pass_ns)


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_a_byte_by_byte_engine(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 7)
    ring = rng.randint(8, 40)
    layers: list[tuple[int, int | None]] = []
    for _ in range(count):
        size = rng.randint(1, ring)
        layers.append((size, None if rng.random() < 0.2 else rng.randint(0, ring - size)))
    visits = tuple(rng.randrange(count) for _ in range(rng.randint(1, 12)))
    plan = plan_of(layers, ring, visits)
    compute = [rng.randint(0, 30) for _ in range(count)]
    result = simulate_in_detail(plan, compute, RATE)
    ends, copied = naive(plan, compute, max(result.passes_simulated, 2))
    assert result.first_pass_ns == ends[0]
    assert (result.first_pass_bytes, result.bytes_per_pass) == (copied[0], copied[-1])
    if result.passes_simulated < 50:
        assert result.pass_ns == ends[-1] - ends[-2]
    assert result.peak_ring_bytes <= ring


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_faster_device_to_copy_from_never_makes_a_pass_longer(data: st.DataObject) -> None:
    ring = data.draw(st.integers(10, 100))
    sizes = data.draw(st.lists(st.integers(1, ring), min_size=1, max_size=8))
    plan = plan_of([(size, data.draw(st.integers(0, ring - size))) for size in sizes], ring)
    compute = data.draw(st.lists(st.integers(0, 100), min_size=len(sizes), max_size=len(sizes)))
    peer = on_peer(plan, *(index for index in range(len(sizes)) if data.draw(st.booleans())))
    rate = RATE * data.draw(st.floats(1, 10))
    slower, faster = simulate(plan, compute, RATE), simulate(peer, compute, RATE, rate)
    assert faster.pass_ns >= faster.bound_ns and faster.bound_ns <= slower.bound_ns
    assert faster.first_pass_ns <= slower.first_pass_ns
    (slow_ns, slow_steady), (fast_ns, fast_steady) = long_run(plan, compute, RATE), long_run(peer, compute, RATE, rate)
    assert fast_ns <= slow_ns
    assert faster.pass_ns <= slower.pass_ns or not (slow_steady and fast_steady)  # else it is a mean of some passes


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_never_below_the_bound_and_stalls_add_up(data: st.DataObject) -> None:
    ring = data.draw(st.integers(10, 100))
    layers = data.draw(
        st.lists(
            st.integers(1, ring).flatmap(
                lambda size: st.tuples(st.just(size), st.one_of(st.none(), st.integers(0, ring - size)))
            ),
            min_size=1,
            max_size=8,
        )
    )
    compute = data.draw(st.lists(st.integers(0, 100), min_size=len(layers), max_size=len(layers)))
    result = simulate_in_detail(plan_of(layers, ring), compute, RATE)
    assert result.pass_ns >= result.bound_ns
    assert result.pass_ns - sum(compute) == pytest.approx(sum(result.stall_ns), abs=1)
    assert result.first_pass_ns >= max(sum(compute), sum(size for size, _ in layers))


def test_refuses_figures_that_do_not_fit() -> None:
    plan = plan_of([(10, 0)], 10)
    with pytest.raises(PlanError, match="compute_ns"):
        simulate(plan, [], RATE)
    with pytest.raises(PlanError, match="compute_ns of layer b.0: got -1"):
        simulate(plan, [-1], RATE)
    with pytest.raises(PlanError, match="h2d_bytes_per_s: got nan"):
        simulate(plan, [1], float("nan"))
    with pytest.raises(PlanError, match="peer_bytes_per_s: got 0"):
        simulate(plan, [1], RATE, 0)
    with pytest.raises(PlanError, match="offset of layer b.0: got 1"):
        simulate(plan_of([(10, 1)], 10), [1], RATE)


def test_nothing_to_do() -> None:
    result = simulate(plan_of([], 0), [], RATE)
    assert (result.pass_ns, result.bound_ns, result.first_pass_ns, result.bytes_per_pass) == (0, 0, 0, 0)
