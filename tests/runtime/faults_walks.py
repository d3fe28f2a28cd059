"""Small ways to break the choice among recorded walks, for the list of `faults`."""

from __future__ import annotations

from typing import Any

from offload_core.planning import walks as walks_module
from offload_core.planning.forecasts import Forecasts
from offload_core.planning.look_ahead import LookAhead
from offload_core.planning.walks import Walk, Walks
from tests.runtime.faults import Patch, after, fault, nothing, replaced


def _without(patch: Patch, method: str, member: str) -> None:
    """While this method of look-ahead runs, another does nothing."""
    original = getattr(LookAhead, method)

    def changed(self: LookAhead, *args: Any) -> None:
        with replaced(LookAhead, **{member: nothing}):
            original(self, *args)

    patch.setattr(LookAhead, method, changed)


@fault("state")
def what_was_counted_on_stays_when_the_road_changes(patch: Patch) -> None:
    _without(patch, "_change_to", "forget_pending")


@fault("state")
def what_was_counted_on_stays_for_another_next_pass(patch: Patch) -> None:
    _without(patch, "_set_out", "forget_pending")


@fault("state")
def only_the_layers_of_the_new_road_are_forgotten(patch: Patch) -> None:
    def changed(self: LookAhead, walk: Walk, position: int) -> None:
        self._go(walk, self._walks.after(self._walks.last, walk))
        for layer in self._road:
            layer.pending = 0
        self._ahead, self._next = 0, position
        if position == self._length:
            self._turn()

    patch.setattr(LookAhead, "_change_to", changed)


@fault("state")
def another_next_walk_than_was_looked_ahead_for(patch: Patch) -> None:
    def changed(self: LookAhead) -> None:
        self._go(self._walk, self._then)

    patch.setattr(LookAhead, "_turn", changed)


@fault("slow")
def no_other_walk_is_taken_up(patch: Patch) -> None:
    patch.setattr(Walks, "explaining", nothing)


@fault("slow")
def any_walk_that_is_long_enough_is_taken_up(patch: Patch) -> None:
    patch.setattr(Walk, "begins_with", lambda walk, trace: len(walk.visits) >= len(trace))


@fault("slow")
def a_walk_is_taken_up_for_its_last_visit(patch: Patch) -> None:
    patch.setattr(Walk, "begins_with", lambda walk, trace: walk.visits[len(trace) - 1 : len(trace)] == trace[-1:])


@fault("slow")
def a_walk_is_taken_up_two_visits_ahead(patch: Patch) -> None:
    original = LookAhead._change_to

    def changed(self: LookAhead, walk: Walk, position: int) -> None:
        original(self, walk, min(position + 2, len(walk.visits)))

    patch.setattr(LookAhead, "_change_to", changed)


@fault("slow")
def one_walk_is_kept(patch: Patch) -> None:
    patch.setattr(walks_module, "KEPT", 1)


@fault("state")
def walks_are_kept_without_a_bound(patch: Patch) -> None:
    patch.setattr(walks_module, "KEPT", 1000)


@fault("state")
def forecasts_of_forgotten_walks_are_kept(patch: Patch) -> None:
    patch.setattr(Walks, "_forget", nothing)


@fault("slow")
def the_next_pass_is_expected_to_be_like_the_last(patch: Patch) -> None:
    patch.setattr(Walks, "after", lambda self, before, last: last)


@fault("slow")
def a_forecast_changes_at_the_first_surprise(patch: Patch) -> None:
    def changed(self: Forecasts, context: object, came: object) -> None:
        self._known[context] = (came, True)

    patch.setattr(Forecasts, "learn", changed)


@fault("slow")
def a_walk_is_forgotten_when_another_is_seen(patch: Patch) -> None:
    after(patch, Walks, "add", lambda self, *added: self._kept.__delitem__(slice(1, None)))


@fault("slow")
def no_walk_is_made_up(patch: Patch) -> None:
    patch.setattr(Walks, "_stretched", nothing)
