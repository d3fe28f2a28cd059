"""Small ways to break planning again while a model runs, for the list of `faults`."""

from __future__ import annotations

from typing import Any

from offload_core.runtime.engine.controller import OffloadController
from offload_core.runtime.engine.prefetcher import Prefetcher
from tests.runtime.faults import Patch, after, before, fault, nothing, within


@fault("race")
def planned_again_while_look_ahead_is_in_flight(patch: Patch) -> None:
    within(patch, OffloadController, "before_pass", drain=nothing)


@fault("race")
def planned_again_without_a_fence(patch: Patch) -> None:
    within(patch, OffloadController, "_change", copy_waits=nothing)


@fault("state")
def planned_again_in_the_middle_of_a_pass(patch: Patch) -> None:
    after(patch, Prefetcher, "enter", lambda self, layer: self.owner.before_pass())
    patch.setattr(OffloadController, "is_running", lambda self: False)


@fault("state")
def planned_again_every_pass(patch: Patch) -> None:
    original = OffloadController.before_pass

    def changed(self: OffloadController) -> None:
        wish = self._ask_for_plan, self._time_to_ask
        original(self)
        self._ask_for_plan, self._time_to_ask = wish

    patch.setattr(OffloadController, "before_pass", changed)


@fault("state")
def planned_again_before_anything_was_measured(patch: Patch) -> None:
    patch.setattr(Prefetcher, "all_measured", lambda self: True)
    patch.setattr(Prefetcher, "recorded_order", nothing)
    before(patch, OffloadController, "measured_inventory", _require_times)


def _require_times(self: OffloadController) -> None:
    assert all(layer.times.compute_ns is not None for layer in self.layers), "asked without times"


@fault("state")
def the_new_plans_residents_come_before_the_old_ones_go(patch: Patch) -> None:
    """More memory for a moment than either plan was given."""
    free = OffloadController._free_what_moves

    def changed(self: OffloadController, plan: Any) -> None:
        held = [layer.device_buffer for layer in self.layers]
        free(self, plan)
        self.held = held

    patch.setattr(OffloadController, "_free_what_moves", changed)
    after(patch, OffloadController, "_place", lambda self, *_: vars(self).pop("held"))


@fault("state")
def no_way_back_from_a_plan_without_room(patch: Patch) -> None:
    patch.setattr(OffloadController, "_change", lambda self, old, new: self._arrange(new))


@fault("state")
def the_way_back_copies_everything_again(patch: Patch) -> None:
    change = OffloadController._change

    def changed(self: OffloadController, old: Any, new: Any) -> None:
        if old is None:
            change(self, old, new)
        else:
            self.unload()
            self.load(old)

    patch.setattr(OffloadController, "_change", changed)


@fault("state")
def planned_again_by_limits_that_are_void(patch: Patch) -> None:
    original = OffloadController.load

    def changed(self: OffloadController, plan: Any) -> None:
        wish = self._ask_for_plan, self._time_to_ask
        original(self, plan)
        self._ask_for_plan, self._time_to_ask = wish

    patch.setattr(OffloadController, "load", changed)
