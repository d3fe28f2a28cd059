"""Small ways to break the changing of weights on arrival, for the list of `faults`."""

from __future__ import annotations

from typing import Any

from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.layers.layer import Layer
from offload_core.runtime.layers.patched_layers import LayerPatch
from offload_core.runtime.patches.patched_loose import ChangedWeights
from offload_core.runtime.patches.versions import Versions
from tests.runtime.faults import Patch, after, before, fault, nothing, within
from tests.support.race_port import BACK, COMPUTE, RacePort


@fault("race", "value")
def a_layer_is_copied_back_before_it_is_changed(patch: Patch) -> None:
    original = Prefetcher._apply_patch

    def changed(self: Prefetcher, layer: Layer) -> None:
        if not layer.keep_resident and layer.patch.version is None:
            self.versions.save(layer)
        original(self, layer)

    patch.setattr(Prefetcher, "_apply_patch", changed)


@fault("race")
def what_is_copied_back_does_not_wait_for_the_change(patch: Patch) -> None:
    join = RacePort._join

    def changed(self: RacePort, lane: int, clock: tuple[int, ...]) -> None:
        if lane != BACK or clock != tuple(self._clocks[COMPUTE]):
            join(self, lane, clock)

    patch.setattr(RacePort, "_join", changed)


@fault("race")
def a_layer_is_overwritten_while_it_is_copied_back(patch: Patch) -> None:
    def forget(self: Prefetcher, layer: Layer) -> None:
        for other in layer.overlaps:
            other.saving = False

    before(patch, Prefetcher, "issue", forget)


@fault("race")
def a_version_is_used_before_it_is_complete(patch: Patch) -> None:
    def forget(self: Prefetcher, layer: Layer) -> None:
        layer.saving = False

    before(patch, Prefetcher, "issue", forget)


@fault("race")
def the_ring_changes_hands_while_a_layer_is_copied_back(patch: Patch) -> None:
    def forget(self: Versions, layers: Any) -> None:
        for layer in layers:
            layer.saving = False

    patch.setattr(Versions, "settle", forget)


@fault("race")
def a_version_is_dropped_while_it_is_copied_from(patch: Patch) -> None:
    within(patch, Versions, "_free", drain=nothing)


@fault("race")
def a_version_is_overwritten_while_it_is_copied_from(patch: Patch) -> None:
    within(patch, Versions, "reserve", drain=nothing)


@fault("state")
def memory_for_versions_is_taken_in_a_pass(patch: Patch) -> None:
    reserve, save = Versions.reserve, Versions.save

    def changed(self: Versions, layer: Layer) -> int:
        reserve(self, [layer])
        return save(self, layer)

    patch.setattr(Versions, "reserve", nothing)
    patch.setattr(Versions, "save", changed)


@fault("state")
def a_version_s_memory_is_not_used_again(patch: Patch) -> None:
    patch.setattr(Versions, "_overwrite", nothing)


@fault("state")
def a_patch_set_that_comes_back_is_overwritten_again(patch: Patch) -> None:
    before(patch, Versions, "reserve", lambda self, *_: self._wanted_sets.clear())


@fault("value", "state")
def an_overwritten_version_is_still_looked_for(patch: Patch) -> None:
    def changed(self: Versions, place: Any) -> Any:
        return self._kept[place].version

    patch.setattr(Versions, "_forget_version", changed)


@fault("state")
def copies_back_in_flight_after_an_error(patch: Patch) -> None:
    join = RacePort._join

    def changed(self: RacePort, lane: int, clock: tuple[int, ...]) -> None:
        if lane != 0 or clock != tuple(self._clocks[BACK]):
            join(self, lane, clock)

    patch.setattr(RacePort, "_join", changed)


@fault("value")
def the_version_of_another_patch_set_is_used(patch: Patch) -> None:
    original = Versions.patch_for

    def changed(self: Versions, layer: Layer, changes: Any) -> LayerPatch:
        kept = [layer_patch for (other, _), layer_patch in self._kept.items() if other is layer]
        return kept[0] if kept else original(self, layer, changes)

    patch.setattr(Versions, "patch_for", changed)


@fault("value")
def a_layer_is_changed_twice(patch: Patch) -> None:
    def forget(self: Versions, layer: Layer) -> None:
        layer.copy_carries = None

    after(patch, Versions, "save", forget)


@fault("value")
def a_layer_is_not_changed(patch: Patch) -> None:
    patch.setattr(LayerPatch, "apply", nothing)


@fault("state")
def a_layer_is_changed_on_every_arrival(patch: Patch) -> None:
    patch.setattr(Versions, "save", lambda self, layer: 0)


@fault("state")
def a_layer_that_is_right_is_changed_again(patch: Patch) -> None:
    def forget(self: Versions, layer: Layer, changes: Any) -> None:
        self._kept.clear()

    before(patch, Versions, "patch_for", forget)


@fault("state")
def what_was_changed_otherwise_stays_on_the_device(patch: Patch) -> None:
    original = Layer.set_patch
    patch.setattr(Layer, "set_patch", lambda self, layer_patch: original(self, layer_patch) and False)


@fault("value")
def a_half_changed_layer_counts_as_arrived(patch: Patch) -> None:
    apply_patch = Prefetcher._apply_patch

    def changed(self: Prefetcher, layer: Layer) -> None:
        try:
            apply_patch(self, layer)
        except BaseException:
            layer.valid = True
            raise

    patch.setattr(Prefetcher, "_apply_patch", changed)


@fault("race")
def a_half_changed_layer_is_overwritten_at_once(patch: Patch) -> None:
    """Kernels of the change may still be running."""
    within(patch, Prefetcher, "_apply_patch", record_compute=nothing)


@fault("value")
def what_a_master_was_before_counts_as_the_master(patch: Patch) -> None:
    patch.setattr(HostLayer, "generation", property(lambda self: 0, nothing))


@fault("value")
def loose_weights_keep_their_change(patch: Patch) -> None:
    def forget(self: ChangedWeights, name: str) -> None:
        self._put_on.pop(name)

    patch.setattr(ChangedWeights, "_take_off", forget)


@fault("value")
def loose_weights_are_not_changed(patch: Patch) -> None:
    patch.setattr(ChangedWeights, "put_on_loose", nothing)
