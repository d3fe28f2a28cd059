"""The part of the zoo whose passes take turns in the order of their visits, as cache fills and skipped layers do.

The ring has three places for eight layers: what was not fetched ahead of its visit is a demand load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offload_core.planning.walks import KEPT
from tests.runtime.world import Component, World

ONCE = list(range(8))
TWICE = [number for number in ONCE for _ in range(2)]
SKIPPING = [0, 1, 6, 7]
BACK = ONCE[::-1]


def demand_loads(one: Component, walks: Sequence[list[int]]) -> list[int]:
    """Of each pass."""
    counted = []
    for walk in walks:
        before = one.controller.counters.demand_loads
        one.run(walk)
        counted.append(one.controller.counters.demand_loads - before)
    return counted


def eight_layers(world: World) -> Component:
    one = world.add([4] * 8)
    one.load(3 * 4096)
    return one


def twice_then_once(world: World) -> None:
    one = eight_layers(world)
    run = [TWICE, ONCE, ONCE, ONCE, ONCE]
    for _ in range(3):
        counted = demand_loads(one, run)
        assert counted[0] <= 1 and not any(counted[1:]), f"{counted} demand loads in a run"


def walks_in_rotation(world: World) -> None:
    one = eight_layers(world)
    run = [ONCE, SKIPPING, BACK]
    demand_loads(one, run + run)
    for _ in range(3):
        assert not any(demand_loads(one, run)), "demand loads although every walk was known"


def a_rare_walk_among_others(world: World) -> None:
    """The first pass of a run is another one. It cannot be foreseen, and those after it are what they were."""
    one = eight_layers(world)
    run = [SKIPPING, ONCE, ONCE, ONCE, ONCE, ONCE]
    demand_loads(one, run + run)
    for _ in range(3):
        counted = demand_loads(one, run)
        assert counted[0] <= 1 and not any(counted[1:]), f"{counted} demand loads in a run"


def walks_that_agree_in_places(world: World) -> None:
    """The same layer at the same position says little: 4 is the fifth of three walks, and what follows differs."""
    one = eight_layers(world)
    walks = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 3, 4, 0, 1, 2], [0, 1, 3, 2, 4, 6, 7, 5], [2, 6, 5, 0, 4, 7, 3, 1]]
    demand_loads(one, walks)
    for which in (2, 0, 1, 3, 0, 2, 1, 0):  # not foreseen: two at the begin, where other layers were fetched
        (loads,) = demand_loads(one, [walks[which]])
        assert loads <= 4, f"{loads} demand loads of 8"


def one_visit_does_not_tell_a_walk(world: World) -> None:
    """6 is the fourth of two walks; the one made last is not the one that comes."""
    one = eight_layers(world)
    comes, made_last = [0, 1, 2, 6, 7, 4, 3], [3, 5, 1, 6, 0, 2, 4]
    demand_loads(one, [comes, *[ONCE] * 4, made_last, *[ONCE] * 3])
    (loads,) = demand_loads(one, [comes])
    assert loads <= 1, f"{loads} demand loads in a walk that is known"


def more_walks_than_are_kept(world: World) -> None:
    one = eight_layers(world)
    for begin in (*range(8), *range(0, 8, 2), *range(8)):
        one.run([(begin + number) % 8 for number in ONCE[: 4 + begin % 3]])
    walks = one.controller.prefetcher.look_ahead._walks
    assert len(walks._kept) <= KEPT == 6, "walks are kept without a bound"
    known = {None, *walks._kept}
    for context, forecast in walks._forecasts:
        assert known.issuperset((*context, forecast)), "a forecast of a walk that is not kept"


def another_walk_after_the_ring_was_taken(world: World) -> None:
    """In the middle of a pass: what was fetched is gone, and the pass goes on where it was."""
    one, two = eight_layers(world), world.add((3, 6, 3))
    two.load(9216)
    for walk in (ONCE, TWICE, SKIPPING, TWICE, ONCE):
        for at in (1, 3):
            one.run(walk, between=lambda position, at=at: position == at and two.run())
            one.run(walk)


def another_walk_that_fails(world: World) -> None:
    one = eight_layers(world)
    demand_loads(one, [ONCE, TWICE, ONCE, SKIPPING, ONCE])
    for walk, at in ((TWICE, 1), (SKIPPING, 2), (BACK, 0), (BACK, 7), (SKIPPING, 3)):
        one.fail(at, ValueError, walk)
        demand_loads(one, [walk, ONCE])
    one.write(3, 0.5)
    demand_loads(one, [TWICE, SKIPPING, ONCE])


def residents_and_uneven_layers_in_turns(world: World) -> None:
    one = world.add((4, 2, 7, 3, 5, 1, 6, 4), exotic=(1, 4))
    one.load(14_336, residents=(0, 3))
    for walk in (TWICE, ONCE, SKIPPING, ONCE, TWICE, BACK, ONCE, SKIPPING):
        one.run(walk)
    one.load(18_432, residents=(6,))
    for walk in (SKIPPING, TWICE, ONCE):
        one.run(walk)


WALKS: tuple[Callable[[World], None], ...] = (
    twice_then_once, walks_in_rotation, a_rare_walk_among_others, walks_that_agree_in_places,
    one_visit_does_not_tell_a_walk, more_walks_than_are_kept,
    another_walk_after_the_ring_was_taken, another_walk_that_fails, residents_and_uneven_layers_in_turns,
)  # fmt: skip
