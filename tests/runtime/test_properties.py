"""Random lives of two components on one device, under the race check: whatever happens in whatever order, every output
is the plain module's to the bit, every visit sees its own bytes, no budget is passed, and nothing is left behind.

A life is a list of events. Each is carried out on real toy modules and on their plain twins (see `world`).
"""

from __future__ import annotations

import contextlib
import copy
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.runtime.world import Component, Interrupt, World
from tests.support.tiny_torch_models import DIM, Block, Model, on_run

ERRORS = (ValueError, Interrupt, torch.OutOfMemoryError, KeyboardInterrupt)

blocks = st.integers(0, 5)
orders = st.one_of(
    st.none(),
    st.lists(blocks, min_size=1, max_size=9),
    st.permutations(range(6)).map(list),
    st.sampled_from([[5, 4, 3, 2, 1, 0], [0, 2, 4], [0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 3]]),
)
sizes = st.lists(st.sampled_from([1, 2, 3, 4, 4, 4, 8]), min_size=1, max_size=6)


@dataclass(frozen=True)
class Load:
    extra_bytes: int
    residents: frozenset[int]
    scatter: int | None

    def happen(self, one: Component, other: Component) -> None:
        layers = one.controller.inventory.layers
        residents = [index for index in self.residents if index < len(layers)]
        streamed = [layer.bytes for index, layer in enumerate(layers) if index not in residents]
        ring = max(streamed, default=0) + self.extra_bytes if streamed else 0
        offsets = None
        if self.scatter is not None:  # any place in the ring at all: whatever overlaps what
            offsets = [
                ((index + 1) * self.scatter % (max(0, ring - layer.bytes) // 256 + 1)) * 256
                for index, layer in enumerate(layers)
            ]
        one.load(ring, residents, offsets)


@dataclass(frozen=True)
class Run:
    order: list[int] | None
    nested: tuple[tuple[int, int], ...] = ()
    other_at: int | None = None
    other_inside: bool = False

    def happen(self, one: Component, other: Component) -> None:
        order = one.fit(self.order)
        count = len(one.model.blocks)
        options = {"nested": {at: number % count for at, number in self.nested}} if self.nested else {}
        if self.other_at is None or not other.attached:
            one.run(order, **options)
        elif self.other_inside:
            one.run(order, inside={self.other_at % count: other.run}, **options)
        else:
            one.run(order, between=lambda position: position == self.other_at and other.run(), **options)


@dataclass(frozen=True)
class Turns:
    """Walks that take turns, as in the steps of several runs, perhaps with a failure in the middle of the last round.

    By the third round they are known, and up to three walks that are not disturbed are foreseen.
    """

    walks: tuple[tuple[int, ...], ...]
    rounds: int
    fails_at: int | None

    def happen(self, one: Component, other: Component) -> None:
        walks = [one.fit(list(walk)) for walk in self.walks]
        counters = one.controller.counters
        for number in range(self.rounds):
            before = counters.order_misses
            for walk in walks:
                one.run(walk)
            assert number < 3 or counters.order_misses == before, "visits in an order that was known"
        if self.fails_at is not None:
            for walk in walks:
                one.fail(self.fails_at % len(walk), Interrupt, walk)
                one.run(walk)


@dataclass(frozen=True)
class Prompts:
    """The same uses of both components again and again, so that each is fetched near the end of the other's, and
    something else in the middle of the last pass, when that is under way."""

    passes: tuple[int, int]
    last: list[int] | None
    meanwhile: Load | Write | Unload | None
    at: int

    def happen(self, one: Component, other: Component) -> None:
        if not other.attached:
            return
        for _ in range(3):
            for component, passes in zip((one, other), self.passes):
                component.controller.use_begins()
                for _ in range(passes):
                    component.run()
        one.controller.use_begins()
        for _ in range(self.passes[0] - 1):
            one.run()
        what = self.meanwhile
        act = (lambda at: what.happen(other, one) if at == self.at else None) if what is not None else None
        one.run(one.fit(self.last), between=act)
        other.run()


@dataclass(frozen=True)
class Fail:
    order: list[int] | None
    at: int
    error: type[BaseException]

    def happen(self, one: Component, other: Component) -> None:
        order = one.fit(self.order) or list(range(len(one.model.blocks)))
        one.fail(self.at % len(order), self.error, order)


@dataclass(frozen=True)
class Walk:
    """Blocks are called directly, and a call may fail."""

    order: list[int]
    fails: bool

    def happen(self, one: Component, other: Component) -> None:
        order = one.fit(self.order)
        x = y = torch.ones(1, DIM)
        for number in order:
            with on_run(one._visited):
                x = one.model.blocks[number](x)
            y = one.twin.blocks[number](y)
        assert torch.equal(x, y)
        if self.fails:
            with contextlib.suppress(Interrupt), on_run(raise_interrupt):
                one.model.blocks[order[0]](x)
            one.check_nothing_in_flight("an error")
        one.check_host()


@dataclass(frozen=True)
class Write:
    number: int
    value: float

    def happen(self, one: Component, other: Component) -> None:
        one.write(self.number % len(one.model.blocks), self.value)


@dataclass(frozen=True)
class Unload:
    def happen(self, one: Component, other: Component) -> None:
        one.controller.unload()
        assert one.controller.device_bytes() == 0
        one.run()


@dataclass(frozen=True)
class Attach:
    """Detach and attach again."""

    def happen(self, one: Component, other: Component) -> None:
        one.detach()
        one.run()
        one.attach()


@dataclass(frozen=True)
class RunOut:
    """The device has no room left while the plan is loaded or a layer needs memory of its own; later it has."""

    room_bytes: int

    def happen(self, one: Component, other: Component) -> None:
        port = one.world.port
        port.limit_bytes, limit = port.live_bytes + self.room_bytes, port.limit_bytes
        try:
            Load(8192, frozenset({0, 2}), None).happen(one, other)
            one.model(torch.ones(1, DIM), None, {0: len(one.model.blocks) - 1})
            one.twin(torch.ones(1, DIM), None, {0: len(one.model.blocks) - 1})
        except torch.OutOfMemoryError:
            assert not port.in_flight()
        finally:
            port.limit_bytes = limit
            for name, buffer in one.model.named_buffers():
                one.twin.get_buffer(name).copy_(buffer)
        one.check_host()


@dataclass(frozen=True)
class Copy:
    """A deep copy, a pickle and a saved state are models of their own, whatever is on the device.

    What is on the device is saved by way of a clone: there, tensors of several types share a storage.
    """

    def happen(self, one: Component, other: Component) -> None:
        x = torch.ones(1, DIM)
        before = one.controller.counters.visits
        holds = one.world.port.holds
        saved = saved_and_loaded({n: t.clone() if holds(t) else t for n, t in one.model.state_dict().items()})
        for name, tensor in one.twin.state_dict().items():
            assert torch.equal(saved[name], tensor) and type(saved[name]) is torch.Tensor
        twins = [copy.deepcopy(one.model)]
        if not any(holds(tensor) for tensor in one.model.state_dict().values()):
            twins.append(saved_and_loaded(one.model))
        for twin in twins:
            expected = copy.deepcopy(one.twin)
            assert torch.equal(twin(x), expected(x))
            assert all(type(parameter) is torch.nn.Parameter for parameter in twin.parameters())
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.data = torch.zeros_like(parameter)
        assert one.controller.counters.visits == before
        one.check_host()


def saved_and_loaded(what: Any) -> Any:
    stream = io.BytesIO()
    torch.save(what, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def raise_interrupt(block: Block) -> None:
    raise Interrupt


turns = st.builds(
    Turns, st.lists(st.lists(blocks, min_size=1, max_size=7).map(tuple), min_size=2, max_size=3).map(tuple),
    st.integers(1, 4), st.one_of(st.none(), st.integers(0, 6)),
)  # fmt: skip
loads = st.builds(
    Load, st.sampled_from([0, 256, 2048, 4096, 9000, 30_000]).map(lambda n: n // 256 * 256), st.frozensets(blocks),
    st.one_of(st.none(), st.integers(1, 40)),
)  # fmt: skip
prompts = st.builds(
    Prompts, st.tuples(st.integers(1, 3), st.integers(1, 2)), orders,
    st.one_of(st.none(), loads, st.builds(Write, blocks, st.just(0.25)), st.just(Unload())), st.integers(0, 5),
)  # fmt: skip
events = st.one_of(
    prompts,
    st.builds(Run, orders),
    st.builds(Run, orders, st.lists(st.tuples(st.integers(0, 5), blocks), max_size=3).map(tuple)),
    st.builds(Run, orders, st.just(()), st.integers(0, 5), st.booleans()),
    turns,
    loads,
    st.builds(Fail, orders, st.integers(0, 8), st.sampled_from(ERRORS)),
    st.builds(Walk, st.lists(blocks, min_size=1, max_size=9), st.booleans()),
    st.builds(Write, blocks, st.sampled_from([0.0, 0.5, 1.0])),
    st.builds(RunOut, st.sampled_from([0, 4096, 20_000])),
    st.sampled_from([Unload(), Attach(), Copy()]),
)
lives = st.lists(st.tuples(st.booleans(), events), min_size=1, max_size=12)


class Life(Component):
    """A component with two more tricks."""

    def fit(self, order: list[int] | None) -> list[int] | None:
        return None if order is None else [number % len(self.model.blocks) for number in order]

    def attach(self) -> None:
        self.__init__(self.world, self.model)


def live(
    first: list[int], second: list[int], exotic: list[int], begin: list[Load], life: list, late: bool, inference: bool
) -> None:
    with torch.no_grad(), torch.inference_mode(inference), World(late) as world:
        pair = [
            Life(world, Model(kilobytes, [n for n in exotic if n < len(kilobytes)])) for kilobytes in (first, second)
        ]
        world.components.extend(pair)
        for component, load in zip(pair, begin):
            load.happen(component, component)
        for which, event in life:
            event.happen(pair[which], pair[not which])
        for component in pair:
            component.run()


arguments = given(
    sizes,
    sizes,
    st.lists(blocks, max_size=2, unique=True),
    st.tuples(loads, loads).map(list),
    lives,
    st.booleans(),
    st.booleans(),
)
anyway = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=120)


@anyway
@arguments
@example(
    [4, 4, 4], [4, 4], [], [Load(0, frozenset(), None)] * 2, [(False, Run(None, other_at=1, other_inside=True))], True,
    False,
)  # fmt: skip
def test_a_life(first, second, exotic, begin, life, late, inference):
    live(first, second, exotic, begin, life, late, inference)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(anyway, max_examples=4000)
@arguments
def test_many_lives(first, second, exotic, begin, life, late, inference):
    live(first, second, exotic, begin, life, late, inference)
