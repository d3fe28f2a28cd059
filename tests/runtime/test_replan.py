"""Planning again while a model runs: when it is asked for, what it costs, what it may never do.

On the virtual clock: moments, host waits and bytes. On the race port: order, memory and numbers, also in the zoo.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offload_core.planning.plan_change import better_plan, several_passes
from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.runtime import DeviceQueue, OffloadController, attach
from tests.runtime.world import World, hand_plan
from tests.support.tiny_torch_models import DIM, Block, Model, on_run
from tests.support.virtual_clock import VirtualClockPort

RATE = 1e9
SIZES = [8, 8, 8, 8, 2, 2, 2, 2, 2, 2]
COMPUTE = [4000] * 10
"""The large layers are bound by the link, the small ones by compute: guessing from bytes gets that wrong."""


class Toy:
    """A model on a virtual clock whose layers take what `compute_ns` says."""

    def __init__(self, kilobytes=SIZES, compute_ns=COMPUTE) -> None:
        self.port = VirtualClockPort(RATE)
        self.model = Model(kilobytes)
        self.compute_ns = list(compute_ns)
        self.queue = DeviceQueue(self.port)

    def attach(self, **options):
        options.setdefault("h2d_bytes_per_s", RATE)
        self.handle = attach(self.model, device="cpu", queue=self.queue, min_layer_bytes=1, **options)
        self.controller = self.handle.controller
        self.asked = watch(self.controller)
        return self

    def pass_(self, order=None) -> int:
        """Runs a pass; how long the compute lane took for it."""
        before = self.port.compute_ns
        with torch.no_grad(), on_run(self._visited):
            self.output = self.model(torch.ones(1, DIM), order)
        return self.port.compute_ns - before

    def _visited(self, block: Block) -> None:
        self.port.compute(self.compute_ns[block.number], block.tag)

    def steady(self, passes: int = 8) -> int:
        return [self.pass_() for _ in range(passes)][-1]


def watch(controller: OffloadController) -> list:
    """Every question from now on: the plan in effect, the inventory, the rates, and the passes run so far."""
    asked, ask = [], controller._ask_for_plan

    def noted(plan, inventory, rates):
        assert not controller.prefetcher.in_pass and not controller.is_running()
        asked.append((plan, inventory, rates, controller.counters.passes))
        return ask(plan, inventory, rates)

    controller._ask_for_plan = noted
    return asked


# ---------------------------------------------------------------------- when


def test_the_plan_is_made_again_once_layers_have_been_measured():
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    guess = toy.handle.plan
    before = toy.steady(2)
    after = toy.steady()
    ((plan, inventory, rates, passes),) = toy.asked
    assert plan is guess and passes == 2, "the first pass is no measure: kernels are loaded in it"
    assert [layer.compute_ns for layer in inventory.layers] == COMPUTE
    assert rates.from_host == pytest.approx(RATE, rel=0.001)
    assert toy.handle.plan is not guess and "measured" in toy.handle.plan.decisions[-1]
    assert after == toy.handle.plan.predicted.pass_ns < before
    assert toy.handle.plan.device_bytes <= 30_000


def test_asked_once_and_not_again():
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    toy.steady(40)
    assert len(toy.asked) == 1
    assert not toy.controller.plan_may_change


def test_until_a_plan_changes_the_host_waits_for_nothing():
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    toy.controller.replan_when_measured(lambda plan, inventory, link: None)
    toy.asked = watch(toy.controller)
    waits, allocations = toy.port.host_waits, toy.port.allocations
    toy.steady(20)
    assert len(toy.asked) == 1
    assert (toy.port.host_waits, toy.port.allocations) == (waits, allocations)


def test_not_before_the_device_has_got_that_far(monkeypatch):
    """Events that have not happened yet are asked about again later, never waited for."""
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    with monkeypatch.context() as patch:
        patch.setattr(VirtualClockPort, "elapsed_ns", lambda self, start, end: None)
        toy.pass_()
        waits = toy.port.host_waits
        toy.steady(6)
        assert not toy.asked and toy.port.host_waits == waits
    toy.steady(3)
    assert len(toy.asked) == 1
    assert [layer.compute_ns for layer in toy.asked[0][1].layers] == COMPUTE


def test_a_slow_first_pass_is_no_measure():
    toy = Toy(compute_ns=[400_000] * 10).attach(budget_bytes=30_000, passes=50)
    toy.pass_()
    toy.compute_ns = COMPUTE
    toy.steady()
    assert [layer.compute_ns for layer in toy.asked[0][1].layers] == COMPUTE


def test_after_a_change_of_shape_layers_are_measured_and_planned_again():
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    toy.steady()
    small = toy.handle.plan
    controller = toy.controller
    controller.measure_again()
    assert {layer.times.compute_ns for layer in controller.layers} == {None}
    limits = PlanRequest(controller.inventory, "cpu", 30_000, h2d_bytes_per_s=RATE, passes=50)
    controller.replan_when_measured(lambda plan, measured, link: better_plan(plan, replace(limits, inventory=measured)))
    toy.asked = watch(controller)
    toy.compute_ns = [9000] * 10  # four times the tokens: everything hides
    after = toy.steady()
    assert len(toy.asked) == 1
    assert [layer.compute_ns for layer in toy.asked[0][1].layers] == [9000] * 10
    assert after == 90_000 == toy.handle.plan.predicted.pass_ns
    assert toy.handle.plan.device_bytes < small.device_bytes, "what no longer has to stay is given back"


def test_old_shapes_times_that_arrive_late_are_dropped(monkeypatch):
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    with monkeypatch.context() as patch:
        patch.setattr(VirtualClockPort, "elapsed_ns", lambda self, start, end: None)
        toy.steady(3)
    toy.controller.measure_again()
    toy.compute_ns = [9000] * 10
    toy.steady(4)
    assert [layer.compute_ns for layer in toy.asked[0][1].layers] == [9000] * 10


def test_loading_another_plan_ends_the_wish_to_plan_again():
    """Memory was taken away: a plan by the old limits must not take it back."""
    toy = Toy().attach(budget_bytes=30_000, passes=50)
    toy.pass_()
    less = hand_plan(toy.controller, 16_384)
    toy.controller.load(less)
    toy.steady()
    assert not toy.asked and toy.handle.plan is less


def test_a_component_that_runs_inside_anothers_layer_is_planned_again_later():
    outer, inner = Toy(), Toy()
    inner.port = outer.port
    inner.queue = outer.queue
    outer.attach(budget_bytes=30_000, passes=1)
    outer.controller.replan_when_measured(None)
    inner.attach(budget_bytes=24_000, passes=50)
    with torch.no_grad(), on_run(lambda block: inner.pass_() if block is outer.model.blocks[3] else None):
        for _ in range(5):
            outer.model(torch.ones(1, DIM))
    assert inner.controller.counters.passes == 5 and not inner.asked
    inner.steady()
    assert len(inner.asked) == 1


# ---------------------------------------------------------------------- what it costs


def test_what_stays_resident_is_not_copied_again():
    toy = Toy().attach(budget_bytes=60_000, passes=50)
    new = hand_plan(toy.controller, 16_384, residents=(0, 1, 4))
    toy.controller.load(hand_plan(toy.controller, 16_384, residents=(0, 1, 2)))
    toy.controller.replan_when_measured(lambda plan, inventory, link: new)
    toy.steady(2)
    before, waits = toy.port.copied_bytes, toy.port.host_waits
    toy.pass_()  # the change, and the pass that brings what has become resident
    assert toy.handle.plan is new
    sizes = [layer.nbytes for layer in toy.controller.layers]
    ahead = sum(layer.nbytes for layer in toy.controller.layers if layer.pending and not layer.keep_resident)
    assert toy.port.copied_bytes - before == sum(sizes) - sizes[0] - sizes[1] + ahead
    assert toy.port.host_waits > waits, "the old ring's last copies are let arrive, once"
    before, waits = toy.port.copied_bytes, toy.port.host_waits
    toy.pass_()
    assert toy.port.copied_bytes - before == sum(size for index, size in enumerate(sizes) if index not in (0, 1, 4))
    assert toy.port.host_waits == waits


@pytest.mark.parametrize("budget", [18_000, 24_000, 30_000, 40_000, 48_000])
@pytest.mark.parametrize("ring", [None, 8192, 16_384])
def test_never_beyond_what_was_set(budget, ring):
    if ring is not None and budget < ring + 1000:
        pytest.skip("no such plan")
    toy = Toy().attach(budget_bytes=budget, ring_bytes=ring, passes=50)
    toy.steady()
    plan = toy.handle.plan
    assert len(toy.asked) == 1
    assert plan.device_bytes <= budget and toy.controller.device_bytes() <= budget
    if ring is not None:
        assert plan.ring_bytes in (0, ring)


# ---------------------------------------------------------------------- a second pass within a use


def test_a_component_that_makes_a_second_pass_holds_its_layers():
    toy = Toy().attach(budget_bytes=32_000, passes=1)
    one_pass = toy.handle.plan
    assert one_pass.residents == ()
    toy.pass_()
    assert not toy.asked
    toy.pass_()
    ((plan, _, _, passes),) = toy.asked
    assert plan is one_pass and passes == 1
    held = toy.handle.plan
    assert held.residents and held.device_bytes <= 32_000
    toy.pass_()
    copied = toy.port.copied_bytes
    toy.pass_()
    assert toy.port.copied_bytes - copied == held.predicted.bytes_per_pass < one_pass.predicted.bytes_per_pass


def test_a_component_that_makes_one_pass_is_left_alone():
    toy = Toy().attach(budget_bytes=32_000, passes=1)
    toy.pass_()
    assert not toy.asked and toy.handle.plan.residents == ()


def test_what_was_asked_not_to_stay_does_not():
    """By the policy or the user: a request with `keep_residents=False` has no residents, however many passes."""
    toy = Toy().attach(budget_bytes=32_000, passes=1)
    request = PlanRequest(toy.controller.inventory, "cpu", 32_000, h2d_bytes_per_s=RATE, keep_residents=False)
    current = make_plan(request)
    again = better_plan(current, several_passes(request))
    assert again is None or again.residents == ()


# ---------------------------------------------------------------------- on the race port


@pytest.fixture(params=[False, True], ids=["early", "late"])
def world(request):
    with torch.no_grad(), World(late=request.param) as world:
        world.port.measures_ns = 1000
        yield world


def test_back_to_the_old_plan_where_there_is_no_memory_for_the_new(world):
    one = world.add((4, 4, 4, 4, 4, 4))
    old = one.load(8192, residents=(1, 4))
    one.run()
    one.run()
    world.port.limit_bytes = world.port.live_bytes
    new = hand_plan(one.controller, 8192, residents=(1, 2, 3))
    one.controller.replan_when_measured(lambda plan, inventory, link: new)
    copied = world.port.copied_bytes
    one.controller.before_pass()
    assert one.controller.plan is old and one.controller.device_bytes() == old.device_bytes
    assert world.port.live_bytes == old.device_bytes and not world.port.in_flight()
    one.run()
    assert world.port.copied_bytes - copied <= 5 * 4096 + 2 * 4096, "resident 1 has stayed all the time"
    for _ in range(3):
        one.run()


def test_nothing_is_left_where_there_is_no_memory_for_the_old_plan_either(world):
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(8192, residents=(1, 4))
    one.run()
    one.run()
    one.controller.replan_when_measured(lambda plan, inventory, link: (taken(), bigger)[1])
    bigger = hand_plan(one.controller, 16_384, residents=(0, 2))

    def taken():
        world.port.limit_bytes = 1024

    with pytest.raises(torch.OutOfMemoryError):
        one.run()
    assert not one.controller.loaded and not world.port.in_flight() and world.port.live_bytes == 0
    one.check_host()
    world.port.limit_bytes = 1 << 24
    one.load(8192)
    one.run()


def test_memory_during_a_change_is_never_more_than_either_plan_takes(world):
    one = world.add((4, 4, 4, 4, 4, 4))
    plans = [(8192, (0, 1)), (12_288, (5,)), (4096, (2, 3, 4)), (0, range(6)), (8192, ()), (16_384, (1,))]
    one.load(*plans[0])
    for ring, residents in plans[1:]:
        one.run()
        one.run()
        new, old = hand_plan(one.controller, ring, list(residents)), one.controller.plan
        one.controller.replan_when_measured(lambda plan, inventory, link, new=new: new)
        world.port.peak_bytes = world.port.live_bytes
        one.run()
        one.run()
        one.run()
        assert one.controller.plan is new
        assert world.port.peak_bytes <= max(old.device_bytes, new.device_bytes)


def test_outputs_are_the_same_to_the_bit_across_a_change(world):
    """`Component.run` compares every output with the plain module's."""
    one = world.add((4, 2, 7, 3, 5, 1, 6), exotic=(1, 4))
    one.load(14_336, residents=(0, 3))
    for ring, residents in ((18_432, (1,)), (14_336, (2, 5, 6)), (0, range(7)), (14_336, ())):
        new = hand_plan(one.controller, ring, list(residents))
        one.controller.replan_when_measured(lambda plan, inventory, link, new=new: new)
        for _ in range(4):
            one.run()
        assert one.controller.plan is new
