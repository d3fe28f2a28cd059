"""Small ways to break the hand-over from one component to the next, for the list of `faults`."""

from __future__ import annotations

from typing import Any

from offload_core.planning.look_ahead import LookAhead
from offload_core.planning.succession import Succession
from offload_core.runtime.device.device_queue import DeviceQueue
from offload_core.runtime.engine.controller import OffloadController
from offload_core.runtime.engine.prefetcher import Prefetcher
from tests.runtime.faults import Patch, fault, nothing, replaced


@fault("race")
def layers_of_two_components_never_overlap(patch: Patch) -> None:
    patch.setattr(OffloadController, "share_ring", nothing)


@fault("state")
def what_the_next_has_fetched_still_counts_when_the_ring_is_needed_again(patch: Patch) -> None:
    patch.setattr(OffloadController, "keep_ring", nothing)


@fault("value")
def the_next_component_is_not_told_that_another_comes(patch: Patch) -> None:
    give_up = OffloadController.give_up_ring

    def changed(self: OffloadController) -> None:
        if self.queue._holder_now() is self:
            give_up(self)

    patch.setattr(OffloadController, "give_up_ring", changed)


@fault("race")
def copies_of_the_next_go_on_when_the_holder_has_left(patch: Patch) -> None:
    withdraw = DeviceQueue.withdraw

    def changed(self: DeviceQueue, lessee: Any) -> None:
        with replaced(DeviceQueue, fence=nothing):
            withdraw(self, lessee)

    patch.setattr(DeviceQueue, "withdraw", changed)


@fault("slow")
def the_last_pass_fetches_its_own_first_layers(patch: Patch) -> None:
    patch.setattr(LookAhead, "expect_last_pass", nothing)


@fault("slow")
def a_component_is_expected_to_run_for_ever(patch: Patch) -> None:
    patch.setattr(Succession, "pass_begins", nothing)


@fault("state")
def a_component_in_the_middle_of_its_walk_is_fetched_early(patch: Patch) -> None:
    patch.setattr(OffloadController, "is_between_passes", lambda self: not self.prefetcher.in_pass)

    def fetch_early(self: Prefetcher) -> None:
        if not self.in_pass:
            self.look_ahead.use_ring(True)
            self.look_ahead.fetch(self)

    patch.setattr(Prefetcher, "fetch_early", fetch_early)


@fault("slow")
def what_was_counted_on_for_another_pass_holds_its_bytes(patch: Patch) -> None:
    def changed(self: LookAhead, last: bool) -> None:
        self._last_pass = last
        self._end = self._length if last else len(self._road)

    patch.setattr(LookAhead, "expect_last_pass", changed)
