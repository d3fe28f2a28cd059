"""The zoo: what components live through, small enough to run under every fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from offload_core.errors import PlanError, StateError
from offload_core.planning.plan import Plan
from tests.runtime.world import Interrupt, World, hand_plan
from tests.runtime.zoo_hand_over import HAND_OVERS
from tests.runtime.zoo_patched import LIVES
from tests.runtime.zoo_walks import WALKS
from tests.support.tiny_torch_models import DIM, Block, on_run

UNEVEN = (4, 2, 7, 3, 5, 1, 6)


def in_order(world: World) -> None:
    one = world.add(UNEVEN)
    one.load(16_384)
    for _ in range(4):
        one.run()
    assert one.controller.counters.demand_loads == 0, "demand loads in passes that went as planned"


def ring_of_one_layer(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4))
    one.load(4096)
    for _ in range(3):
        one.run()


def scattered_places(world: World) -> None:
    """Places that overlap in all ways: partly, one inside the other, the same."""
    one = world.add((4, 2, 8, 3, 4, 1, 2))
    one.load(12_288, offsets=(2048, 4096, 0, 7168, 8192, 3072, 10_240))
    for _ in range(4):
        one.run()


def residents_between(world: World) -> None:
    one = world.add(UNEVEN, exotic=(1, 4))
    one.load(14_336, residents=(0, 3))
    for _ in range(3):
        one.run()


def other_orders(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(12_288)
    forward, back = [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]
    for order in (forward, forward, back, back, back, [0, 2, 4], [0, 2, 4], forward, [0, 0, 1, 1, 5, 0, 3, 3], forward):
        one.run(order)


def repeats(world: World) -> None:
    one = world.add((4, 4, 4, 4))
    one.load(8192)
    for _ in range(4):
        one.run([0, 1, 0, 2, 0, 3, 3])


def errors(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(12_288)
    one.run()
    for at, error in ((0, ValueError), (3, Interrupt), (5, torch.OutOfMemoryError), (1, KeyboardInterrupt)):
        one.fail(at, error)
        one.run()
    one.fail(2, Interrupt)
    one.write(3, 0.25)
    one.run()


def layer_inside_layer(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(8192)
    for _ in range(3):
        one.run(nested={1: 3, 2: 2, 4: 1})
    one.write(3, 0.5)
    one.run(nested={1: 3})
    one.load(8192, offsets=(0, 4096, 0, 4096, 0, 4096))
    for value in (0.25, 0.75):
        one.run([0, 1], nested={1: 3})
        one.run([0, 1], nested={1: 3})
        one.write(3, value)  # its last copy was on the compute lane


def weights_change(world: World) -> None:
    one = world.add((4, 4, 4, 4), exotic=(2,))
    one.load(14_000, residents=(1,))
    for number in (0, 1, 2, 3, 0):
        one.run()
        one.write(number, number / 8)
    one.run()


def detached_in_full_flight(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4))
    one.load(12_288, residents=(4,))
    one.run()
    one.detach()
    two = world.add((3, 3, 3, 3))
    two.load(9216)
    two.run()
    two.run()


def detached_before_it_ran(world: World) -> None:
    """A pass is begun and its copies are in flight; none is waited for."""
    one = world.add((4, 4, 4, 4))
    one.load(8192, residents=(2, 3))
    one.controller.prefetcher.begin_pass()
    one.controller.prefetcher.in_pass = False
    one.detach()


def plans_change(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4, 4))
    for ring, residents in ((12_288, ()), (8192, (1, 4)), (12_288, (0,)), (8192, ()), (4096, (2, 3)), (0, range(6))):
        one.load(ring, list(residents))
        one.run()
        one.run()
    one.load(12_288)
    one.run()


def planned_again(world: World) -> None:
    """Between two passes, with the head of the next one in flight, as soon as the layers have been measured."""
    world.port.measures_ns = 1000
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(12_288, residents=(0,))
    asked: list[Plan] = []
    for ring, residents in ((8192, (1, 4)), (12_288, (1,)), (4096, (2, 3)), (0, range(6)), (8192, (5,))):
        new, old, before = hand_plan(one.controller, ring, residents), one.controller.plan, len(asked)
        assert old is not None
        world.port.peak_bytes = world.port.live_bytes
        one.controller.replan_when_measured(lambda plan, inventory, link, new=new: (asked.append(plan), new)[1])
        for _ in range(4):
            one.run()
        assert one.controller.plan is new and len(asked) == before + 1, "not planned again once"
        assert one.controller.device_bytes() == world.port.live_bytes == new.device_bytes
        assert world.port.peak_bytes <= max(old.device_bytes, new.device_bytes), "more for a moment than was given"


def planned_again_without_room(world: World) -> None:
    world.port.measures_ns = 1000
    one = world.add((4, 4, 4, 4, 4, 4))
    old = one.load(8192, residents=(1, 4))
    one.run()
    one.run()
    world.port.limit_bytes = world.port.live_bytes
    new = hand_plan(one.controller, 8192, residents=(1, 2, 3))
    one.controller.replan_when_measured(lambda plan, inventory, link: new)
    copied = world.port.copied_bytes
    for _ in range(3):
        one.run()
        assert one.controller.plan is old and world.port.live_bytes == old.device_bytes, "not the old plan"
    assert world.port.copied_bytes - copied <= (3 * 4 + 2 + 1) * 4096, "layers that stayed were copied again"


def second_pass(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4))
    one.load(8192)
    held = hand_plan(one.controller, 8192, residents=(0, 2))
    one.controller.replan_on_second_pass(lambda plan, inventory, link: held)
    one.run()
    assert one.controller.plan is not held, "planned again for one pass"
    one.run()
    assert one.controller.plan is held, "not planned again"
    one.run()


def another_plan_meanwhile(world: World) -> None:
    """Memory is given back before the layers are measured: the old limits are void."""
    world.port.measures_ns = 1000
    one = world.add((4, 4, 4, 4))
    one.load(8192, residents=(1,))
    new = hand_plan(one.controller, 12_288, residents=(1,))
    one.controller.replan_when_measured(lambda plan, inventory, link: new)
    one.run()
    less = one.load(8192)
    for _ in range(3):
        one.run()
        assert one.controller.plan is less, "planned again by limits that are void"


def unloaded_between(world: World) -> None:
    one = world.add((4, 4, 4, 4))
    for _ in range(3):
        one.load(8192, residents=(1,))
        one.run()
        one.controller.unload()
        assert world.port.live_bytes == 0
        one.run()


def plan_asked_for_inside_a_layer(world: World) -> None:
    """Refused: what would be moved is in use."""
    one = world.add((4, 4, 4, 4))
    one.load(8192, residents=(1, 2))
    one.run()

    def ask(block: Block) -> None:
        if block.number == 1:
            with pytest.raises(StateError, match="between passes"):
                one.load(8192, residents=(2,))
            with pytest.raises(StateError, match="between passes"):
                one.write(1, 1.0)

    with on_run(ask):
        one.model(torch.ones(2, DIM))
    one.twin(torch.ones(2, DIM))
    one.run()


def wrong_plans(world: World) -> None:
    """Refused, whatever made them; the plan before stays in effect, and what is on the device stays there."""
    one = world.add((4, 4, 4, 4))
    plan = one.load(8192, residents=(1,))
    one.run()
    new = hand_plan(one.controller, 8192, residents=(2,))
    outside = (*new.layers[:3], replace(new.layers[3], offset=6144))
    for wrong in (replace(new, layers=outside), replace(new, resident_bytes=0), replace(new, visits=(0, 4))):
        copied = world.port.copied_bytes
        with pytest.raises(PlanError, match="asked to obey a plan"):
            one.controller.load(wrong)
        assert one.controller.plan is plan and world.port.live_bytes == plan.device_bytes
        one.run()
        assert world.port.copied_bytes - copied <= 4 * 4096, "layers that stayed were copied again"


def two_components(world: World) -> None:
    one, two = world.add((4, 4, 4, 4)), world.add((3, 6, 3, 2, 5))
    one.load(12_288)
    one.run()
    two.load(9216, residents=(4,))
    for _ in range(3):
        two.run()
        one.run()
    one.controller.unload()
    two.run()
    one.load(16_384)  # all of it fits: nothing is copied after the last layer has been read
    for _ in range(3):
        two.run()
        one.run()


def component_between_layers(world: World) -> None:
    one, two = world.add((4, 4, 4, 4)), world.add((3, 6, 3, 2, 5))
    one.load(8192)
    two.load(9216)
    for at in (2, 0, 3):
        one.run(between=lambda position, at=at: position == at and two.run())
    assert one.controller.counters.unplaced_visits == two.controller.counters.unplaced_visits == 0
    two.run()
    one.run()


def component_inside_a_layer(world: World) -> None:
    one, two = world.add((4, 4, 4, 4)), world.add((3, 6, 3))
    one.load(8192)
    two.load(9216)
    for number in (1, 3, 0):
        one.run(inside={number: two.run})
    two.run()
    assert two.controller.counters.unplaced_visits == 9


def without_an_entry(world: World) -> None:
    """Blocks are called directly; another component takes the ring meanwhile."""
    one, two = world.add((4, 4, 4, 4)), world.add((5, 3, 6))
    one.load(8192)
    two.load(9216)

    def walk(numbers: Sequence[int]) -> None:
        x = y = torch.ones(2, DIM)
        for number in numbers:
            with on_run(one._visited):
                x = one.model.blocks[number](x)
            y = one.twin.blocks[number](y)
        assert torch.equal(x, y)

    walk([0, 1, 2, 3, 0, 1])
    two.run()
    walk([2, 3])
    two.run()
    walk([2, 3, 0, 1, 2])
    two.run()
    one.run()


def without_an_entry_and_failing(world: World) -> None:
    one = world.add((4, 4, 4, 4))
    one.load(8192)

    def strike(block: Block) -> None:
        if block.number == 2:
            raise Interrupt

    for _ in range(2):
        try:
            with on_run(strike):
                for number in range(4):
                    one.model.blocks[number](torch.ones(2, DIM))
        except Interrupt:
            pass
        assert not world.port.in_flight(), "copies in flight after an error"
        one.check_host()
    one.run()


ZOO: tuple[Callable[[World], None], ...] = (
    in_order, ring_of_one_layer, scattered_places, residents_between, other_orders, repeats, errors, layer_inside_layer,
    weights_change, detached_in_full_flight, detached_before_it_ran, plans_change, plan_asked_for_inside_a_layer,
    wrong_plans, planned_again, planned_again_without_room, second_pass, another_plan_meanwhile, unloaded_between,
    two_components, component_between_layers, component_inside_a_layer, without_an_entry,
    without_an_entry_and_failing, *LIVES, *WALKS, *HAND_OVERS,
)  # fmt: skip
