"""The zoo: what components live through, small enough to run under every fault. Used by the race and fault tests.

A `World` is one race-checking device with one queue; a `Component` in it is a toy model under layerwise offload, with a
plain twin that says what every output has to be. `Component.run` checks a pass in every way there is: output bit by bit,
every visit on the device and with its own bytes, budget, and afterwards the host parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from offload_core.errors import PlanError
from offload_core.plan import Plan, PlannedLayer, Prediction
from offload_core.runtime import DeviceQueue, OffloadController, discover
from tests.support.race_port import RacePort
from tests.support.tiny_torch_models import DIM, Block, Model, on_run


class Interrupt(BaseException):
    """As the app's: not an Exception."""


class World:
    """A device. Leaving the `with` block checks that it is quiet, empty and free of races."""

    def __init__(self, late: bool = False) -> None:
        self.port = RacePort(late=late)
        self.queue = DeviceQueue(self.port)
        self.components: list[Component] = []

    def add(self, kilobytes: Sequence[int], exotic: Sequence[int] = (), **options: Any) -> Component:
        component = Component(self, Model(kilobytes, exotic), **options)
        self.components.append(component)
        return component

    def __enter__(self) -> World:
        self._watch = self.port.watching()
        self._watch.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                for component in self.components:
                    component.detach()
                self.queue.close()
                assert self.port.live_bytes == 0, f"{self.port.live_bytes} bytes were not given back"
        finally:
            self._watch.__exit__(kind, error, trace)
        if error is None or not isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.port.check()

    def allowed_bytes(self) -> int:
        """What all components together may hold: they share the largest ring."""
        plans = [c.controller.plan for c in self.components if c.controller.plan is not None]
        return sum(p.device_bytes - p.ring_bytes for p in plans) + max((p.ring_bytes for p in plans), default=0)


class Component:
    """A model, its twin, and its controller."""

    def __init__(self, world: World, model: Model, pinned: bool = True) -> None:
        self.world = world
        self.model = model
        self.twin = copy.deepcopy(model)
        self.own = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
        self.strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
        found = discover(model, min_layer_bytes=1)
        self.controller = OffloadController(model, world.queue, discovery=found, pinned=pinned)
        self.attached = True

    # ------------------------------------------------------------------ doing

    def load(self, ring_bytes: int, residents: Sequence[int] = (), offsets: Sequence[int] | None = None) -> Plan:
        plan = hand_plan(self.controller, ring_bytes, residents, offsets)
        self.controller.load(plan)
        assert self.controller.device_bytes() == plan.device_bytes
        assert self.world.port.live_bytes <= self.world.allowed_bytes()
        return plan

    def run(
        self, order: Sequence[int] | None = None, inside: dict[int, Callable[[], None]] | None = None, **options: Any
    ) -> None:
        """A pass, checked in every way. `inside`: what to do in the middle of a block."""
        x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(7))

        def visited(block: Block) -> None:
            if inside is not None and block.number in inside:
                inside[block.number]()
            self._visited(block)

        with on_run(visited):
            given = self.model(x, order, **options)
        options.pop("between", None)
        with on_run(None):
            expected = self.twin(x, order, **options)
        assert torch.equal(given, expected), "another output than the plain module's"
        self.check_host()

    def fail(self, at: int, error: type[BaseException], order: Sequence[int] | None = None) -> None:
        """A pass in which visit number `at` raises. Afterwards nothing is in flight."""
        visits = 0

        def visited(block: Block) -> None:
            nonlocal visits
            visits += 1
            if visits > at:
                raise error("on purpose")

        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            with on_run(visited):
                self.model(torch.ones(2, DIM), order)
        except error:
            pass
        else:
            raise AssertionError("the error got lost")
        for name, buffer in self.model.named_buffers():  # the twin did not run: undo what visits before did
            buffer.copy_(buffers[name])
        self.check_nothing_in_flight("an error")
        assert not any(layer.in_use or layer.pending for layer in self.controller.layers)
        self.check_host()

    def write(self, number: int, value: float) -> None:
        """Change a weight, here and in the twin. The copies of it that are on their way must not see half of it."""
        weight = torch.full((DIM, DIM), value)
        self.controller.write_master(self.model.blocks[number].weight, weight)
        with torch.no_grad():
            self.twin.blocks[number].weight.copy_(weight)
        self.check_host()

    def detach(self) -> None:
        if not self.attached:
            return
        self.attached = False
        self.controller.detach()
        assert not self.world.port.in_flight(), "copies in flight after detach"
        now = {name: id(parameter) for name, parameter in self.model.named_parameters(remove_duplicate=False)}
        assert now == self.own, "other parameter objects than before"
        assert "forward" not in vars(self.model) and not any("forward" in vars(b) for b in self.model.blocks)
        self.check_state()
        for parameter in self.model.parameters():  # whoever gets the memory next
            with torch.no_grad(), torch.inference_mode(False):
                parameter.data = parameter.data.clone()
        self.strides = {name: tensor.stride() for name, tensor in self.model.state_dict().items()}

    # ------------------------------------------------------------------ checking

    def _visited(self, block: Block) -> None:
        port = self.world.port
        if self.controller.loaded:
            assert port.holds(block.tag) and port.holds(block.weight), f"block {block.number} ran from the host"
        everybody = [layer for component in self.world.components for layer in component.controller.layers]
        unplaced = sum(layer.nbytes for layer in everybody if layer.in_use and not layer.valid)
        allowed = self.world.allowed_bytes() + unplaced
        assert port.live_bytes <= allowed, f"{port.live_bytes} bytes on the device, {allowed} allowed"

    def check_nothing_in_flight(self, when: str) -> None:
        """Whoever is not loaded has nothing to wait for; what flies then is another component's."""
        assert not (self.controller.loaded and self.world.port.in_flight()), f"copies in flight after {when}"

    def check_host(self) -> None:
        """Between passes: streamed layers' parameters are the host's, and all values are right."""
        for layer in self.controller.layers:
            if not layer.keep_resident:
                for params, name, host in layer.host_bindings:
                    assert params[name] is host, f"{layer.name}.{name} is not the host's after the pass"
        self.check_state()

    def check_state(self) -> None:
        mine, theirs = self.model.state_dict(), self.twin.state_dict()
        for name in theirs:
            assert mine[name].dtype == theirs[name].dtype and mine[name].stride() == self.strides[name], name
            assert torch.equal(as_bytes(mine[name]), as_bytes(theirs[name])), f"{name} has another value"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def hand_plan(
    controller: OffloadController,
    ring_bytes: int,
    residents: Sequence[int] = (),
    offsets: Sequence[int] | None = None,
) -> Plan:
    """A plan without a planner: given offsets, or one layer after the other, cyclically."""
    layers, end = [], 0
    for index, layer in enumerate(controller.inventory.layers):
        if index in residents:
            layers.append(PlannedLayer(layer.name, layer.bytes, "resident", None, "pinned"))
            continue
        if offsets is not None:
            offset = offsets[index]
        else:
            offset = end if end + layer.bytes <= ring_bytes else 0
            end = -(-(offset + layer.bytes) // 256) * 256
        assert offset + layer.bytes <= ring_bytes
        layers.append(PlannedLayer(layer.name, layer.bytes, "streamed", offset, "pinned"))
    resident_bytes = sum(layer.bytes for layer in layers if layer.placement == "resident")
    if len(residents) == len(layers):
        ring_bytes = 0
    return Plan(
        "toy", "cpu", tuple(layers), tuple(range(len(layers))), ring_bytes, resident_bytes,
        controller.inventory.loose_bytes, Prediction(0, 0, 0, 0, 0),
    )  # fmt: skip


# ---------------------------------------------------------------------- the zoo

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
    """A pass was begun, its copies are on their way, nobody has waited for one."""
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
            with pytest.raises(PlanError, match="between passes"):
                one.load(8192, residents=(2,))
            with pytest.raises(PlanError, match="between passes"):
                one.write(1, 1.0)

    with on_run(ask):
        one.model(torch.ones(2, DIM))
    one.twin(torch.ones(2, DIM))
    one.run()


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
    """Somebody walks the blocks himself; another component takes the ring meanwhile."""
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
    unloaded_between, two_components,
    component_between_layers, component_inside_a_layer, without_an_entry, without_an_entry_and_failing,
)  # fmt: skip


@contextmanager
def a_world(late: bool = False) -> Iterator[World]:
    with torch.no_grad(), World(late) as world:
        yield world
