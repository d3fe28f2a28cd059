"""What takes device memory in the middle of a pass is bracketed, for those who keep an account of what a pass takes."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.runtime.world import World, a_world

LAYERS = 6


class Bracket:
    """Counts how often it is entered, and can refuse, on the way in or on the way out."""

    def __init__(self, world: World, component) -> None:
        self.entered, self.inside, self.refuses = 0, False, ""
        self.outside: list[str] = []
        """What was taken in a pass outside of it."""
        component.controller.prefetcher.owner.around_allocations = self.bracket
        empty, change = world.port.empty, component._change

        def watched_empty(nbytes):
            if component.controller.in_pass() and not self.inside:
                self.outside.append("memory")
            return empty(nbytes)

        def watched_change(*given):
            made = change(*given)

            def compute():
                if not self.inside:
                    self.outside.append("a changed weight")
                return made.compute()

            return type(made)(made.key, compute)

        world.port.empty, component._change = watched_empty, watched_change

    @contextmanager
    def bracket(self):
        self.entered += 1
        if self.refuses == "in":
            raise RuntimeError("refused")
        self.inside = True
        try:
            yield
        finally:
            self.inside = False
        if self.refuses == "out":
            raise RuntimeError("refused")


def weights(component) -> dict[str, float]:
    return {f"blocks.{number}.weight": 1.5 for number in range(LAYERS)}


def test_everything_that_a_pass_takes_is_taken_inside_and_a_steady_pass_takes_nothing():
    with a_world() as world:
        one, other = world.add([4] * LAYERS), world.add([4, 4])
        one.load(8192, residents=(0,))
        other.load(8192)
        bracket = Bracket(world, one)
        one.run()
        assert bracket.entered == 0
        one.set_changes(weights(one))
        one.run()
        assert bracket.entered == LAYERS
        one.run()
        assert bracket.entered == LAYERS, "what has a version is not changed again"
        other.run(inside={1: one.run})
        assert bracket.entered == 2 * LAYERS - 1, "all but the resident have memory of their own"
        assert not bracket.outside


def test_a_plan_changes_inside():
    with a_world() as world:
        one = world.add([4] * LAYERS)
        one.load(8192)
        bracket = Bracket(world, one)
        seen = []
        one.controller.replan_on_second_pass(lambda *found: seen.append(bracket.inside))
        one.run()
        one.run()
        assert seen == [True]


@pytest.mark.parametrize("way", ["in", "out"])
@pytest.mark.parametrize("what", ["patched", "unplaced"])
def test_a_bracket_that_refuses_ends_the_pass_and_nothing_else(what, way):
    with a_world() as world:
        one, other = world.add([4] * LAYERS), world.add([4, 4])
        one.load(8192)
        other.load(8192)
        one.run()
        bracket = Bracket(world, one)
        bracket.refuses = way
        if what == "patched":
            one.set_changes(weights(one))

        def refused():
            with pytest.raises(RuntimeError, match="refused"):
                one.model(torch.ones(2, one.twin.blocks[0].weight.shape[0]))
            assert not any(layer.in_use for layer in one.controller.layers)

        refused() if what == "patched" else other.run(inside={1: refused})
        bracket.refuses = ""
        one.run()
        one.run()
