"""Passes that take turns in the order of their visits, exactly: sixteen equal layers, room for a third, virtual clock.

What real models do: a first step that fills a key/value cache calls each block twice, step caches and skip-layer
guidance leave blocks out, conditionings of several kinds take turns. That nothing races is the zoo's business.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offload_core.planning.look_ahead import LookAhead
from offload_core.planning.plan_change import better_plan
from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.planning.simulate import simulate
from offload_core.planning.walks import KEPT, Walks
from tests.runtime.test_replan import Toy, watch
from tests.runtime.test_virtual_clock import RATE, Bench
from tests.runtime.world import check_look_ahead, hand_plan
from tests.support.tiny_torch_models import DIM, on_run

LAYERS, PLACES, COMPUTE_NS = 16, 5, 5000
LAYER_BYTES = 4096
"""4096 ns on the link: copies hide behind compute if they are issued ahead of their visit."""

ONCE = list(range(LAYERS))
TWICE = [number for number in ONCE for _ in range(2)]
THREE_TIMES = [number for number in ONCE for _ in range(3)]
SKIPPING = [*range(4), *range(12, 16)]
SHORT = ONCE[8:]
"""It begins elsewhere: what the passes before it fetch ahead decides whether its first layers wait."""


def sixteen_layers(residents=()) -> Bench:
    bench = Bench([4] * LAYERS, [COMPUTE_NS] * LAYERS, in_step=True)
    bench.controller.load(hand_plan(bench.controller, (PLACES - len(residents)) * LAYER_BYTES, residents))
    return bench


def demand_loads(bench: Bench, run: list[list[int]]) -> list[int]:
    counted = []
    for walk in run:
        before = bench.controller.counters.demand_loads
        bench.pass_(walk)
        check_look_ahead(bench.controller.prefetcher)
        counted.append(bench.controller.counters.demand_loads - before)
    return counted


RUNS = {
    "each block twice in the first step": ([TWICE, *[ONCE] * 5], [1, 0, 0, 0, 0, 0]),
    "each block twice, few steps": ([TWICE, *[ONCE] * 3], [1, 0, 0, 0]),
    "each block twice, two passes a step": ([TWICE, TWICE, *[ONCE] * 6], [1, 0, 0, 0, 0, 0, 0, 0]),
    "each block twice and the whole walk again": ([TWICE + ONCE, *[ONCE] * 4], [1, 0, 0, 0, 0]),
    "a step cache on every second step": ([ONCE, SKIPPING] * 4, [0, 1, 0, 0, 0, 0, 0, 0]),
    "a step cache on two of three steps": ([ONCE, SKIPPING, SKIPPING] * 3, [0, 1, 1, 1, 0, 0, 0, 0, 0]),
    "skip-layer guidance": ([ONCE, ONCE, SKIPPING] * 3, [0, 0, 1, 0, 0, 0, 0, 0, 0]),
    "two image conditionings in a step": ([TWICE, THREE_TIMES, *[ONCE] * 4], [1, 1, 0, 0, 0, 0]),
    "three kinds in rotation": ([ONCE, SKIPPING, SHORT] * 3, [0, 1, 1, 2, 0, 0, 0, 0, 0]),
}
"""A run, and the demand loads of the first run of all."""


@pytest.mark.parametrize("residents", [(), (2, 7, 13)], ids=["no residents", "residents"])
@pytest.mark.parametrize("name", RUNS)
def test_demand_loads(name, residents):
    """At most one in the first step of a run, none later; the first run of all is the shorter for what it can guess."""
    run, first_run = RUNS[name]
    bench = sixteen_layers(residents)
    waits = bench.port.host_waits
    counted = demand_loads(bench, run)
    assert all(loads <= allowed for loads, allowed in zip(counted, first_run)), counted
    for number in range(1, 6):
        counted = demand_loads(bench, run)
        assert counted[0] <= 1 and not any(counted[1:]), f"{counted} demand loads in run {number}"
    assert bench.port.host_waits == waits


@pytest.mark.parametrize(
    "name", ["skip-layer guidance", "three kinds in rotation", "a step cache on every second step"]
)
def test_as_fast_as_one_long_walk_that_is_known(name):
    """A run takes what the simulator says of all its visits as one pass: passes end without a copy that is late."""
    run, _ = RUNS[name]
    bench = sixteen_layers()
    plan = bench.controller.plan
    visits = tuple(number for walk in run for number in walk)
    simulated = simulate(replace(plan, visits=visits), bench.compute_ns, RATE)
    for _ in range(2):
        demand_loads(bench, run)
    before, copied = bench.port.compute_ns, bench.port.copied_bytes
    demand_loads(bench, run)
    assert bench.port.compute_ns - before == simulated.pass_ns
    assert bench.port.copied_bytes - copied == simulated.bytes_per_pass


def test_two_conditionings_that_take_turns_from_run_to_run():
    """Which one comes is known by the third visit, and the bytes of the first layer have been kept until then."""
    bench = sixteen_layers()
    one, other = [TWICE, *[ONCE] * 3], [THREE_TIMES, *[ONCE] * 3]
    demand_loads(bench, one + other)
    for _ in range(4):
        for run in (one, other):
            counted = demand_loads(bench, run)
            assert counted[0] <= 1 and not any(counted[1:]), counted


ENCODER, DECODER = ONCE[:8], ONCE[8:]


@pytest.mark.parametrize(
    "turns, first",
    [
        ("ed" * 4, [0, 1]),
        ("edd" * 4, [0, 1, 0]),
        ("eddeeeddde" * 2, [0, 1, 0]),
        ("dedeeddddedd", [1, 0]),
    ],
)
def test_an_autoencoders_two_ways_are_told_by_the_entry(turns, first):
    """Encoding and decoding in any order: what was looked ahead for is the other way's, and that is all that is lost.

    Its first layer waits where the turn could not be foreseen. By the visits alone all layers of a first decoding did.
    """
    bench = Bench([4] * LAYERS, [COMPUTE_NS] * LAYERS, in_step=True, entries=("encode", "decode"))
    bench.controller.load(hand_plan(bench.controller, PLACES * LAYER_BYTES, ()))
    counters = bench.controller.counters
    counted = []
    for turn in turns:
        before = counters.demand_loads
        entry, walk = ("encode", ENCODER) if turn == "e" else ("decode", DECODER)
        bench.pass_(walk, entry)
        check_look_ahead(bench.controller.prefetcher)
        counted.append(counters.demand_loads - before)
    assert counted[: len(first)] == first, counted
    assert max(counted) <= 1, counted


CONNECTOR, STEP = [14, 15], ONCE[:14]
"""Text goes through the last two layers once for each conditioning, before the steps."""


def connected(plan_visits=(), residents=()) -> Bench:
    bench = Bench([4] * LAYERS, [COMPUTE_NS] * LAYERS, in_step=True)
    plan = hand_plan(bench.controller, (PLACES - len(residents)) * LAYER_BYTES, residents)
    bench.controller.load(replace(plan, visits=tuple(plan_visits) or plan.visits))
    return bench


@pytest.mark.parametrize("residents", [(), (2, 7, 13)], ids=["no residents", "residents"])
@pytest.mark.parametrize("conditionings", [1, 2, 3])
def test_layers_that_are_called_before_the_steps(conditionings, residents):
    """A connector's layers are the begin of the first step: nothing waits in it.

    In later runs one layer waits where they begin, because a step was expected; with more than two conditionings, which
    are not told from two until they come, another one.
    """
    bench = connected((*CONNECTOR, *STEP), residents)
    counters = bench.controller.counters
    for number in range(6):
        counted = []
        for step in range(4):
            before = counters.demand_loads
            for _ in range(0 if step else conditionings):
                bench.call(CONNECTOR)
            counted += demand_loads(bench, [STEP])
            counted[-1] = counters.demand_loads - before
        assert counted[0] <= (max(1, conditionings - 1) if number else 0) and not any(counted[1:]), (number, counted)


def test_a_plan_is_made_by_the_steps_and_not_by_what_goes_before_them():
    """However often a connector was called and measured before the first step; which is no measure itself."""
    toy = Toy([4] * LAYERS, [COMPUTE_NS] * LAYERS).attach(budget_bytes=PLACES * LAYER_BYTES + 4096, passes=50)
    prefetcher = toy.controller.prefetcher
    for number in range(4):
        with torch.no_grad(), on_run(toy._visited):
            for block in CONNECTOR * (0 if number else 5):
                toy.model.blocks[block](torch.ones(1, DIM))
        assert number or prefetcher.recorded_order() == ()
        toy.pass_(STEP)
    ((_, inventory, _, passes),) = toy.asked
    assert list(inventory.visits)[-len(STEP) :] == STEP
    assert passes == 4 + 2, "four times the connector, once with the first step; the second step is the first measure"


def test_a_whole_walk_that_was_called_by_itself_is_a_pass():
    """As by a pack that calls an autoencoder's decoder: what an entry is called for afterwards is another pass."""
    bench = sixteen_layers()
    bench.call(ONCE)
    assert demand_loads(bench, [ONCE, ONCE]) == [0, 0]
    assert bench.controller.prefetcher.recorded_order() == tuple(ONCE)
    assert bench.controller.counters.passes == 3


def test_layers_that_are_only_ever_called_by_themselves_are_planned_by_in_time():
    """A walk shorter than the plan's says nothing until it has been made so often that it has as many visits."""
    bench = sixteen_layers()
    orders = []
    for _ in range(4):
        bench.call(SHORT)
        orders.append(bench.controller.prefetcher.recorded_order())
    assert orders == [(), (), tuple(SHORT), tuple(SHORT)]


def test_a_walk_made_up_wrongly_is_left_at_once():
    """The first block comes twice, and nothing else does."""
    bench = sixteen_layers()
    counted = demand_loads(bench, [[0, *ONCE]])
    assert counted == [1] and bench.controller.counters.order_misses == 2


def test_a_wrong_guess_costs_no_more_than_the_ring_holds():
    """The first pass of a run cannot be foreseen. What was fetched for another is all that is copied in vain."""
    bench = sixteen_layers()
    run = [SHORT[::-1], *[ONCE] * 5]
    for _ in range(2):
        demand_loads(bench, run)
    for _ in range(3):
        copied = bench.port.copied_bytes
        counted = demand_loads(bench, run)
        assert counted == [1, 0, 0, 0, 0, 0]
        assert bench.port.copied_bytes - copied <= (sum(map(len, run)) + PLACES) * LAYER_BYTES


walks = st.lists(st.integers(0, 7), min_size=1, max_size=20)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(st.lists(walks, min_size=1, max_size=3), st.integers(1, 5))
def test_whatever_takes_turns_is_foreseen(rotation, places):
    """Up to three walks, each always followed by the same: by the third round every visit is the expected one."""
    bench = Bench([4] * 8, [COMPUTE_NS] * 8, in_step=True)
    bench.controller.load(hand_plan(bench.controller, places * LAYER_BYTES))
    demand_loads(bench, rotation * 2)
    before = bench.controller.counters.order_misses
    assert not any(demand_loads(bench, rotation * 2))
    assert bench.controller.counters.order_misses == before


# ---------------------------------------------------------------------- what is planned by


def toy_of_sixteen() -> Toy:
    return Toy([4] * LAYERS, [COMPUTE_NS] * LAYERS).attach(budget_bytes=PLACES * LAYER_BYTES + 4096, passes=50)


@pytest.mark.parametrize(
    ("run", "typical"),
    [
        ([TWICE, *[ONCE] * 4], ONCE),
        ([ONCE, SKIPPING], ONCE),
        ([ONCE, ONCE, SKIPPING], ONCE),
        ([SKIPPING, ONCE, ONCE], ONCE),
        ([TWICE, TWICE, TWICE, ONCE], TWICE),
    ],
)
def test_planned_once_and_by_the_walk_that_stands_for_the_others(run, typical):
    toy = toy_of_sixteen()
    for walk in run * 6:
        toy.pass_(walk)
    ((_, inventory, _, passes),) = toy.asked
    assert list(inventory.visits) == typical and passes <= 3
    assert {layer.compute_ns for layer in inventory.layers} == {COMPUTE_NS}
    assert not toy.controller.plan_may_change


def test_planned_once_for_each_change_of_shape():
    """What was made most often before the change does not count after it."""
    toy = toy_of_sixteen()
    controller = toy.controller
    limits = PlanRequest(controller.inventory, "cpu", PLACES * LAYER_BYTES + 4096, h2d_bytes_per_s=RATE, passes=50)

    def ask(plan, measured, link):
        return better_plan(plan, replace(limits, inventory=measured))

    for walk in [TWICE, *[ONCE] * 8]:
        toy.pass_(walk)
    for run, typical in (([TWICE] * 6, TWICE), ([TWICE, ONCE, ONCE, ONCE], ONCE)):
        controller.measure_again()
        controller.replan_when_measured(ask)
        asked = watch(controller)
        for walk in run:
            toy.pass_(walk)
        ((_, inventory, _, _),) = asked
        assert list(inventory.visits) == typical
        assert make_plan(replace(limits, inventory=inventory)).visits == inventory.visits


# ---------------------------------------------------------------------- what is kept


def test_the_walk_made_longest_ago_goes_and_its_forecasts_with_it():
    layers = [object() for _ in range(KEPT + 3)]
    known = Walks(layers)
    for _ in range(3):
        for number in range(KEPT + 3):
            known.add(layers[number:])
    assert len(known._kept) == KEPT and known.last is known._kept[0]
    assert [len(walk.visits) for walk in known._kept] == list(range(1, KEPT + 1))
    used = {walk for context, walk in known._forecasts for walk in (*context, walk)}
    assert used <= {None, *known._kept}


def test_the_plans_guess_is_taken_up_though_no_pass_has_made_it_yet():
    bench = sixteen_layers()
    demand_loads(bench, [TWICE])
    assert demand_loads(bench, [ONCE]) == [0]
    assert bench.controller.prefetcher.recorded_order() == tuple(ONCE)


def test_a_visit_that_is_expected_asks_for_nothing(monkeypatch):
    """The work is done where visits do not come as expected, and once a pass."""
    bench = sixteen_layers()
    for _ in range(3):
        demand_loads(bench, RUNS["skip-layer guidance"][0])
    called = []
    for method in ("explaining", "add", "after"):
        original = getattr(Walks, method)

        def counted(self, *args, original=original, method=method):
            called.append(method)
            return original(self, *args)

        monkeypatch.setattr(Walks, method, counted)
    monkeypatch.setattr(LookAhead, "forget_pending", lambda self: called.append("forget_pending"))
    bench.pass_(ONCE)
    assert called == ["after", "add", "after", "after"]
