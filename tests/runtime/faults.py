"""Small ways to break the engine; `faults_replan` has more. Each is put in by patching it from outside, never by
a switch inside.

`Fault.kinds` says how it must be caught: "race" by the vector clocks, whatever the numbers; "value" by an output or
bytes that are not right; "state" by what the engine leaves behind; "slow" by copies that came too late. A fault may be
caught in more ways than that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from offload_core.planning.look_ahead import LookAhead
from offload_core.planning.plan import Plan
from offload_core.runtime.device.device_queue import DeviceQueue
from offload_core.runtime.engine import controller as controller_module
from offload_core.runtime.engine.controller import OffloadController
from offload_core.runtime.engine.interpose import LayerForward, PassBoundary
from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.layers.layer import Layer
from tests.support.race_port import RacePort

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Fault:
    name: str
    kinds: frozenset[str]
    put_in: Callable[[Patch], None]


FAULTS: list[Fault] = []


def fault(*kinds: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(put_in: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS.append(Fault(put_in.__name__, frozenset(kinds), put_in))
        return put_in

    return register


@contextmanager
def replaced(owner: Any, **members: Any) -> Iterator[None]:
    """Members of one object or class, for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, member in members.items():
            patch.setattr(owner, name, member)
        yield


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def within(patch: Patch, owner: type, method: str, **members: Any) -> None:
    """While `owner.method` runs, the given (dotted by double underscore) members of RacePort are others."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with replaced(RacePort, **members):
            return original(self, *args, **kwargs)

    patch.setattr(owner, method, changed)


def before(patch: Patch, owner: type, method: str, act: Callable[..., None]) -> None:
    original = getattr(owner, method)

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        act(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    patch.setattr(owner, method, changed)


def after(patch: Patch, owner: type, method: str, act: Callable[..., None]) -> None:
    original = getattr(owner, method)

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        act(self, *args, **kwargs)
        return result

    patch.setattr(owner, method, changed)


# ---------------------------------------------------------------------- events: the nine classics


@fault("race")
def no_kernel_waits_for_its_copy(patch: Patch) -> None:
    patch.setattr(RacePort, "compute_waits", nothing)


@fault("race")
def the_first_layer_does_not_wait_for_its_copy(patch: Patch) -> None:
    firsts: list[Any] = []
    after(patch, Prefetcher, "__init__", lambda self, port, layers: firsts.append(layers[0].copy_done))
    waits = RacePort.compute_waits
    patch.setattr(RacePort, "compute_waits", lambda self, event: None if event in firsts else waits(self, event))


@fault("race")
def no_copy_waits_for_readers(patch: Patch) -> None:
    within(patch, Prefetcher, "issue", copy_waits=nothing)


@fault("race")
def no_copy_waits_for_readers_at_the_wrap_around(patch: Patch) -> None:
    def forget(self: Prefetcher, layer: Layer) -> None:
        if layer.index == 0:
            for other in layer.overlaps:
                other.read_since_copy = False

    before(patch, Prefetcher, "issue", forget)


@fault("race")
def last_read_recorded_before_the_kernels(patch: Patch) -> None:
    within(patch, Layer, "leave", record_compute=nothing)
    after(patch, Prefetcher, "enter", lambda self, layer: self.port.record_compute(layer.last_read))


@fault("race")
def last_read_recorded_on_the_copy_lane(patch: Patch) -> None:
    within(patch, Layer, "leave", record_compute=RacePort.record_copy)


@fault("race")
def copy_done_recorded_on_the_compute_lane(patch: Patch) -> None:
    within(patch, Prefetcher, "issue", record_copy=RacePort.record_compute)


@fault("race")
def copy_done_recorded_before_the_copy(patch: Patch) -> None:
    within(patch, Prefetcher, "issue", record_copy=nothing)
    before(patch, Prefetcher, "issue", lambda self, layer: self.port.record_copy(layer.copy_done))


@fault("race")
def only_layers_at_the_same_place_count_as_overlapping(patch: Patch) -> None:
    """Slot arithmetic: layer index modulo the number of slots, where the sizes do not divide."""
    link = controller_module.link_overlaps

    def changed(offsets: Any) -> None:
        link(offsets)
        for layer in offsets:
            layer.overlaps = tuple(other for other in layer.overlaps if offsets[other] == offsets[layer])

    patch.setattr(controller_module, "link_overlaps", changed)


# ---------------------------------------------------------------------- the ring


@fault("race")
def another_range_after_the_wrap_around(patch: Patch) -> None:
    moved = OffloadController.ring_moved

    def changed(self: OffloadController, arena: Any) -> None:
        planned, wrapped, last = self._streamed, False, 0
        if arena is not None:
            self._streamed = {}
            for layer, offset in planned.items():
                wrapped |= offset < last
                room = arena.numel() - layer.nbytes - offset
                self._streamed[layer] = offset + min(room, 1024) if wrapped else offset
                last = offset
        moved(self, arena)
        self._streamed = planned

    patch.setattr(OffloadController, "ring_moved", changed)


@fault("race")
def what_a_copy_overwrites_still_counts_as_there(patch: Patch) -> None:
    original = Prefetcher.issue

    def changed(self: Prefetcher, layer: Layer) -> None:
        was = [(other, other.valid) for other in layer.overlaps]
        original(self, layer)
        for other, valid in was:
            other.valid = valid

    patch.setattr(Prefetcher, "issue", changed)


def _fetch_without(patch: Patch, count: str) -> None:
    """Look-ahead does not see a count of the layers, `in_use` or `pending`, as it was before."""
    fetch = LookAhead.fetch

    def changed(self: LookAhead, issuer: Prefetcher) -> None:
        before = [(layer, getattr(layer, count)) for layer in self._layers]
        for layer, _ in before:
            setattr(layer, count, 0)
        fetch(self, issuer)
        for layer, number in before:
            setattr(layer, count, getattr(layer, count) + number)

    patch.setattr(LookAhead, "fetch", changed)


@fault("race")
def look_ahead_overwrites_a_layer_in_use(patch: Patch) -> None:
    _fetch_without(patch, "in_use")
    after(patch, Prefetcher, "enter", lambda self, layer: self.look_ahead.fetch(self))


@fault("state")
def look_ahead_overwrites_a_layer_still_to_come(patch: Patch) -> None:
    _fetch_without(patch, "pending")


@fault("race")
def a_visit_outside_the_ring_copies_on_the_copy_lane(patch: Patch) -> None:
    patch.setattr(RacePort, "copy_on_compute", RacePort.copy)


# ---------------------------------------------------------------------- memory that changes hands


@fault("race")
def the_ring_changes_hands_without_a_fence(patch: Patch) -> None:
    within(patch, DeviceQueue, "activate", copy_waits=nothing)


@fault("race")
def fresh_memory_without_a_fence(patch: Patch) -> None:
    within(patch, OffloadController, "_place", copy_waits=nothing)


@fault("race")
def a_changed_weight_is_fetched_without_a_fence(patch: Patch) -> None:
    within(patch, OffloadController, "_refetch", copy_waits=nothing)


@fault("race")
def the_ring_is_taken_without_telling_its_holder(patch: Patch) -> None:
    patch.setattr(OffloadController, "give_up_ring", nothing)


@fault("race")
def a_lost_ring_is_still_written_to(patch: Patch) -> None:
    after(patch, Prefetcher, "give_up_ring", lambda self: setattr(self.look_ahead, "has_ring", True))


@fault("value")
def the_ring_is_taken_from_a_layer_in_use(patch: Patch) -> None:
    patch.setattr(OffloadController, "is_running", lambda self: False)


@fault("race")
def a_new_plan_while_look_ahead_is_in_flight(patch: Patch) -> None:
    within(patch, OffloadController, "load", drain=nothing)


@fault("race", "state")
def detached_with_a_copy_in_flight(patch: Patch) -> None:
    within(patch, OffloadController, "detach", drain=nothing)


@fault("state")
def a_resident_demoted_while_in_use(patch: Patch) -> None:
    patch.setattr(OffloadController, "_require_no_pass", nothing)


@fault("state")
def a_wrong_plan_is_obeyed(patch: Patch) -> None:
    patch.setattr(controller_module, "check_places", lambda *plan: [])


@fault("state")
def a_wrong_plan_is_refused_when_layers_have_moved(patch: Patch) -> None:
    def changed(self: OffloadController, plan: Plan) -> None:
        if self.loaded:
            self._free_what_moves(plan)
        check(self, plan)

    check = OffloadController._check
    patch.setattr(OffloadController, "_check", changed)


# ---------------------------------------------------------------------- the host


@fault("race")
def a_master_rewritten_while_its_copy_is_in_flight(patch: Patch) -> None:
    within(patch, OffloadController, "write_master", drain=nothing)


@fault("race")
def a_master_rewritten_while_copied_on_the_compute_lane(patch: Patch) -> None:
    patch.setattr(Prefetcher, "drain", lambda self: self.port.drain())


@fault("state")
def parameters_not_put_back(patch: Patch) -> None:
    patch.setattr(Layer, "swap_out", nothing)


@fault("state")
def parameters_not_swapped_in(patch: Patch) -> None:
    patch.setattr(Layer, "swap_in", nothing)


@fault("state")
def a_layer_inside_itself_ends_the_outer_one(patch: Patch) -> None:
    before(patch, Prefetcher, "leave", lambda self, layer: setattr(layer, "in_use", min(1, layer.in_use)))


# ---------------------------------------------------------------------- errors


@fault("state")
def copies_in_flight_after_an_error(patch: Patch) -> None:
    within(patch, Prefetcher, "_abort", drain=nothing)


@fault("state")
def visits_still_expected_after_an_error(patch: Patch) -> None:
    original = Prefetcher._abort

    def changed(self: Prefetcher) -> None:
        with replaced(LookAhead, forget=nothing):
            original(self)

    patch.setattr(Prefetcher, "_abort", changed)


@fault("state")
def an_interrupt_passes_a_layer_unseen(patch: Patch) -> None:
    def changed(self: LayerForward, *args: Any, **kwargs: Any) -> Any:
        try:
            self.prefetcher.enter(self.layer)
            result = self.call(*args, **kwargs)
        except Exception:
            self.prefetcher.fail(self.layer)
            raise
        self.prefetcher.leave(self.layer)
        return result

    patch.setattr(LayerForward, "__call__", changed)
    # What the pass's own end cleans up must not hide it.
    patch.setattr(Prefetcher, "_abort", lambda self: (self.look_ahead.forget(), self.drain()))


@fault("state")
def an_interrupt_passes_the_end_of_the_pass_unseen(patch: Patch) -> None:
    def changed(self: PassBoundary, *args: Any, **kwargs: Any) -> Any:
        self.prefetcher.begin_pass()
        try:
            result = self.call(*args, **kwargs)
        except Exception:
            self.prefetcher.end_pass(False)
            raise
        self.prefetcher.end_pass(True)
        return result

    patch.setattr(PassBoundary, "__call__", changed)
