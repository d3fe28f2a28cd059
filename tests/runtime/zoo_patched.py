"""More lives for the zoo: weights that are changed on the device when they arrive, as patch sets change them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.runtime.world import Interrupt, World

A = {"blocks.1.weight": 0.5, "blocks.3.weight": 2.0}
B = {"blocks.1.weight": 0.25, "blocks.3.weight": 2.0, "blocks.4.weight": 3.0}
EVERY = {f"blocks.{number}.weight": 1.5 + number for number in range(6)}


def changed_on_arrival(world: World) -> None:
    """Each changed layer is changed once and copied back once; from then on it comes as it is to be."""
    one = world.add((4, 2, 7, 3, 5, 1))
    one.load(16_384)
    one.run()
    one.set_changes(A)
    for _ in range(3):
        one.run()
    counters = one.controller.counters
    assert counters.revised_layers == 2 and world.port.counts["copy_back"] == 2, "changed more than once"
    one.set_changes(B)  # one layer as before, one otherwise, one more
    one.run()
    one.run()
    assert counters.revised_layers == 4, "changed layers that were right"
    one.set_changes(A)
    one.run()
    one.set_changes(B)
    one.run()
    assert counters.revised_layers == 5, "the one version that B overwrote was made anew, beside B's"
    one.set_changes({})
    one.run()


def one_strength_after_another(world: World) -> None:
    """The version of a strength that is over gives its memory to the next one's: nothing is taken for it."""
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(8192)
    one.set_changes(EVERY)
    one.run()
    held = one.controller.versions.held_bytes
    assert held == sum(layer.nbytes for layer in one.controller.layers)
    for strength in (0.5, 0.75, 3.0):
        one.set_changes({name: factor * strength for name, factor in EVERY.items()})
        for _ in range(2):
            one.run()
        assert one.controller.versions.held_bytes == held
    assert one.controller.counters.revised_layers == 4 * 6 and one.controller.versions.refused == set()


def back_and_forth(world: World) -> None:
    """A strength that comes back after its versions were overwritten is kept from then on, beside the other."""
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(8192)
    other = {name: factor * 2 for name, factor in EVERY.items()}
    for factors in (EVERY, other, EVERY):
        one.set_changes(factors)
        one.run()
    patched = one.controller.counters.revised_layers
    assert patched == 3 * 6
    for factors in (other, EVERY, other):
        one.set_changes(factors)
        one.run()
    assert one.controller.counters.revised_layers == patched, "what both were is still there"


def two_sets_in_turn(world: World) -> None:
    """A ring of one layer: what is copied back is overwritten as soon as it may be."""
    one = world.add((4, 4, 4, 4, 4, 4))
    one.load(4096)
    for factors in (EVERY, A, EVERY, B, {}, B, EVERY):
        one.set_changes(factors)
        one.run()
    one.run()


def changed_residents(world: World) -> None:
    """They stay in their changed form; what they become otherwise starts from the master again."""
    one = world.add((4, 4, 4, 4), exotic=(2,))
    one.set_changes({"blocks.0.weight": 2.0, "blocks.2.bf16": 0.5})  # before it is loaded
    one.load(14_000, residents=(0, 1))
    one.run()
    for factor in (0.5, 3.0, 0.5):
        one.set_changes({"blocks.1.weight": factor, "blocks.2.turned": factor})
        one.run()
        one.run()
    one.set_changes({})
    one.run()


def changed_outside_layers(world: World) -> None:
    one = world.add((4, 4, 4))
    one.set_changes({"scale": 4.0, "blocks.0.weight": 4.0})
    one.load(8192)
    for factor in (4.0, 0.5, 0.5):
        one.set_changes({"scale": factor})
        one.run()
    one.set_changes({})
    one.run()
    one.set_changes({"scale": 2.0})
    one.load(4096, residents=(1,))
    one.run()


def changed_while_plans_change(world: World) -> None:
    one = world.add((4, 4, 4, 4, 4, 4))
    one.set_changes(EVERY)
    for ring, residents in ((12_288, ()), (8192, (1, 4)), (12_288, (0,)), (4096, (2, 3)), (0, range(6)), (8192, ())):
        one.load(ring, residents)
        one.run()
    one.controller.unload()
    one.load(8192)
    one.run()
    one.set_changes(A)
    one.run()


def changed_without_room(world: World) -> None:
    """No host memory for what was changed: it is changed on each arrival."""
    one = world.add((4, 4, 4, 4, 4))
    one.controller.versions.may_hold = lambda nbytes: False
    one.load(8192)
    one.set_changes(A)
    for _ in range(3):
        one.run()
    assert one.controller.counters.revised_layers == 6 and world.port.counts["copy_back"] == 0
    assert one.controller.versions.refused == {"blocks.1", "blocks.3"}


def changed_with_room_for_two(world: World) -> None:
    """Unused versions make room."""
    one = world.add((4, 4, 4, 4, 4, 4))
    versions = one.controller.versions
    versions.may_hold = lambda nbytes: versions.held_bytes + nbytes <= 2 * one.controller.layers[0].nbytes
    one.load(8192)
    for factors in (A, B, {"blocks.0.weight": 2.0, "blocks.5.weight": 3.0}, A):
        one.set_changes(factors)
        one.run()
        one.run()
        assert versions.held_bytes <= 2 * one.controller.layers[0].nbytes
    one.set_changes(EVERY)
    one.run()
    one.run()


def changing_fails(world: World) -> None:
    """Half of a layer is changed when its arithmetic runs out of memory: nothing of it is used."""
    one = world.add((4, 4, 4, 4, 4))
    one.load(8192, residents=(4,))
    one.run()
    for name in ("blocks.1.weight", "blocks.4.weight"):
        one.set_changes({name: 2.0}, fail=True)
        try:
            one.model(torch.ones(2, 8))
        except torch.OutOfMemoryError:
            pass
        else:
            raise AssertionError("the error got lost")
        one.check_nothing_in_flight("an error")
        one.set_changes({name: 2.0})
        one.run()
        one.run()
    one.set_changes({})
    one.run()


def an_error_after_a_change(world: World) -> None:
    one = world.add((4, 4, 4, 4))
    one.load(16_384)
    one.set_changes({"blocks.1.weight": 2.0})
    one.fail(2, Interrupt)
    one.run()
    assert one.controller.counters.revised_layers == 1, "what was copied back before the error is good"


def changed_beside_another_component(world: World) -> None:
    """The ring changes hands while layers are copied back from it; one layer runs inside another."""
    one, two = world.add((4, 4, 4, 4)), world.add((5, 3, 6))
    one.load(16_384)  # look-ahead overwrites nothing: who takes the ring has to see to what is being copied back
    two.load(9216)
    one.set_changes({"blocks.3.weight": 2.0, "blocks.2.weight": 4.0})
    one.run()
    two.set_changes({"blocks.2.weight": 0.5})
    two.run()
    one.run()
    one.set_changes({"blocks.3.weight": 3.0, "blocks.1.weight": 0.5})
    one.run(between=lambda position: two.run() if position % 2 else None)
    one.run([0, 1], nested={1: 3})
    one.run([0, 1], nested={1: 3})
    one.run()


def a_master_changes_under_its_changes(world: World) -> None:
    """A write to a master makes everything derived from it out of date."""
    one = world.add((4, 4, 4, 4))
    one.load(8192)
    one.set_changes({"blocks.1.weight": 2.0})
    one.run()
    weight = torch.full((8, 8), 0.25)
    one.controller.write_master(one.model.blocks[1].weight, weight)
    one.masters["blocks.1.weight"] = weight
    with torch.no_grad():
        one.twin.blocks[1].weight.copy_(weight * 2)
    one.run()
    one.controller.unload()
    with torch.no_grad():
        one.model.blocks[1].weight.data = weight * 3
        one.masters["blocks.1.weight"] = weight * 3
        one.twin.blocks[1].weight.copy_(weight * 3)  # the module runs on the host, as it is
    one.run()
    one.load(8192)
    with torch.no_grad():
        one.twin.blocks[1].weight.copy_(weight * 6)
    one.run()


def detached_while_it_is_copied_back(world: World) -> None:
    one = world.add((4, 4, 4, 4))
    one.load(12_288)
    one.set_changes({"blocks.3.weight": 2.0})
    one.run()
    one.detach()


LIVES: tuple[Callable[[World], None], ...] = (
    changed_on_arrival, one_strength_after_another, back_and_forth, two_sets_in_turn,
    changed_residents, changed_outside_layers, changed_while_plans_change,
    changed_without_room, changed_with_room_for_two, changing_fails, an_error_after_a_change,
    changed_beside_another_component, a_master_changes_under_its_changes, detached_while_it_is_copied_back,
)  # fmt: skip
