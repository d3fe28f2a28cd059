"""Components that run in turn on one ring, for the zoo: the last pass of a use fetches the first layers of the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tests.runtime.world import Component, Interrupt, World
from tests.support.tiny_torch_models import DIM, on_run


def prompt(*uses: tuple[Component, int]) -> None:
    """Uses of components, each for some passes."""
    for component, passes in uses:
        component.controller.use_begins()
        for _ in range(passes):
            component.run()


def three(world: World, decoder_ring: int = 9216) -> tuple[Component, Component, Component]:
    """An encoder, a diffusion model and an autoencoder, whose order and passes are known."""
    encoder, model, decoder = world.add((4, 4, 4, 4)), world.add((5, 3, 6, 2, 4)), world.add((3, 6, 3, 5, 4))
    encoder.load(8192)
    model.load(14_336, residents=(3,))
    decoder.load(decoder_ring)
    for _ in range(2):
        prompt((encoder, 1), (model, 3), (decoder, 1))
    return encoder, model, decoder


def handed_over_in_turn(world: World) -> None:
    encoder, model, decoder = three(world)
    for _ in range(2):
        for component, passes in ((encoder, 1), (model, 3), (decoder, 1)):
            counters = component.controller.counters
            early, demand = counters.early_copies, counters.demand_loads
            component.controller.use_begins()
            assert any(layer.valid and not layer.keep_resident for layer in component.controller.layers)
            for _ in range(passes):
                component.run()
            assert counters.demand_loads == demand, "demand loads, though who came next was known"
            assert counters.early_copies == early, "copies that were not early"
    for component in (encoder, model, decoder):
        assert component.controller.counters.early_copies > 0, "demand loads would be next: nothing was fetched early"


def a_longer_use_than_expected(world: World) -> None:
    """The guess is wrong: the ring is needed again by the component that runs."""
    encoder, model, decoder = three(world)
    prompt((encoder, 2), (model, 6), (decoder, 3), (encoder, 1), (model, 2), (decoder, 1))


def another_comes_next(world: World) -> None:
    encoder, model, decoder = three(world)
    prompt((encoder, 1), (decoder, 1), (model, 3), (encoder, 1), (model, 3), (model, 3), (decoder, 1))


def other_visits_in_the_last_pass(world: World) -> None:
    """Layers that were visited come again when their bytes belong to the next component already."""
    encoder, model, decoder = three(world)
    encoder.run()
    model.run()
    model.run()
    model.run([0, 1, 2, 3, 4, 0, 1, 2, 2, 4, 3])
    decoder.run([0, 1, 2, 1, 0])
    prompt((encoder, 1), (model, 3), (decoder, 1))


def a_failure_in_the_last_pass(world: World) -> None:
    encoder, model, decoder = three(world)
    for at in (0, 2, 4):
        prompt((encoder, 1), (model, 2))
        model.fail(at, Interrupt)
        decoder.run()
    prompt((encoder, 1), (model, 3), (decoder, 1))


def moved_while_the_next_is_fetched(world: World) -> None:
    """Either gets another plan or leaves the device, between the layers of the last pass and after it."""
    encoder, model, decoder = three(world)
    for moves in (lambda: decoder.load(9216, residents=(1,)), lambda: model.load(14_336, residents=(3,))):
        prompt((encoder, 1), (model, 3))
        moves()
        prompt((decoder, 1), (encoder, 1), (model, 3), (decoder, 1))
    for change in (lambda: decoder.load(9216), lambda: decoder.controller.unload(), lambda: decoder.load(6144)):
        prompt((encoder, 1), (model, 2))
        model.controller.use_begins()
        model.run(between=lambda position, change=change: change() if position == 3 else None)
        prompt((encoder, 1), (model, 3), (decoder, 1))


def gone_when_the_next_runs(world: World) -> None:
    """What ran leaves the device, as an encoder does for a large model: what was fetched for the next one stays."""
    encoder, model, decoder = three(world, 14_336)  # so that the arena stays as large
    prompt((encoder, 1), (model, 3))
    early = [layer for layer in decoder.controller.layers if layer.valid]
    assert early, "demand loads would be next: nothing was fetched early"
    model.controller.unload()
    assert all(layer.valid for layer in early), "the next component lost what was fetched for it"
    prompt((decoder, 1), (encoder, 1), (decoder, 2))
    for position in (4, 3):  # in the middle of the last pass, the rest of which runs on the host
        model.load(14_336, residents=(3,))
        for _ in range(3):
            prompt((encoder, 1), (model, 3), (decoder, 1))
        prompt((encoder, 1), (model, 2))
        model.run(between=lambda at, position=position: model.controller.unload() if at == position else None)
        decoder.run()


def the_next_is_changed(world: World) -> None:
    """Its weights, and the patches on them, between its copies and its pass."""
    encoder, model, decoder = three(world)
    for factor in (2.0, 0.5):
        prompt((encoder, 1), (model, 3))
        decoder.set_changes({"blocks.0.weight": factor, "blocks.2.weight": 4.0})
        decoder.write(1, factor)
        prompt((decoder, 1))
        model.set_changes({"blocks.4.weight": factor})
        prompt((encoder, 1), (model, 3), (decoder, 1))


def one_inside_the_other(world: World) -> None:
    """A ControlNet: it runs before each pass, in the middle of one, or inside a layer, and then no more."""
    model, control = world.add((4, 4, 4, 4)), world.add((3, 6, 3, 2, 5))
    model.load(8192)
    control.load(9216)
    for _ in range(4):
        prompt((control, 1), (model, 1))
    assert model.controller.counters.early_copies > 0, "demand loads would be next: nothing was fetched early"
    for at in (2, 0, 3, 2):
        model.run(between=lambda position, at=at: position == at and control.run())
    for at in (1, 3):
        model.run(inside={at: control.run})
    for _ in range(3):
        prompt((model, 2))
    for _ in range(4):
        prompt((control, 1), (model, 1))
    prompt((control, 1))
    model.run(inside={3: control.run})  # from the layers that were fetched for it; its pass does not come
    model.run()
    prompt((control, 1), (model, 1))


def walked_without_an_entry(world: World) -> None:
    """Blocks are called by themselves, so that no call ends a pass."""
    one, two = world.add((4, 4, 4, 4)), world.add((5, 3, 6))
    one.load(8192)
    two.load(11_264)
    for _ in range(4):
        _walk(one, [0, 1, 2, 3])
        _walk(two, [0, 1, 2, 0, 1, 2])
    two.run()
    one.run()


def a_walk_without_an_entry_goes_on(world: World) -> None:
    """In the middle of the other's pass, when it was expected to have ended: a layer lies where the other's is due."""
    one, two = world.add((4, 4, 4, 4)), world.add((4, 4, 4, 4))
    one.load(8192)
    two.load(12_288)
    for at, numbers in ((1, [3]), (2, [3, 0, 1]), (3, [0, 1])):
        for _ in range(4):
            _walk(one, [0, 1, 2, 3])
            two.run()
        _walk(one, [0, 1, 2, 3])
        two.run(between=lambda position, at=at, numbers=numbers: position == at and _walk(one, numbers))
        _walk(one, [2, 3])


def a_ring_with_room_for_all(world: World) -> None:
    """Its look-ahead runs two passes ahead, beyond the last one."""
    one, two = world.add((4, 4, 4)), world.add((5, 3, 6))
    one.load(12_288)
    two.load(14_336)
    for _ in range(4):
        prompt((one, 2), (two, 2))
    assert two.controller.counters.early_copies > 0, "demand loads would be next: nothing was fetched early"
    assert one.controller.counters.early_copies > 0, "demand loads would be next: nothing was fetched early"


def _walk(component: Component, numbers: Sequence[int]) -> None:
    x = y = torch.ones(2, DIM)
    for number in numbers:
        with on_run(component._visited):
            x = component.model.blocks[number](x)
        with on_run(None):
            y = component.twin.blocks[number](y)
    assert torch.equal(x, y), "another output than the plain module's"


HAND_OVERS: tuple[Callable[[World], None], ...] = (
    handed_over_in_turn, a_longer_use_than_expected, another_comes_next, other_visits_in_the_last_pass,
    a_failure_in_the_last_pass, moved_while_the_next_is_fetched, gone_when_the_next_runs, the_next_is_changed,
    one_inside_the_other, walked_without_an_entry, a_walk_without_an_entry_goes_on, a_ring_with_room_for_all,
)  # fmt: skip
