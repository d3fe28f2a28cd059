"""Issues the copies of layers ahead of their visits, and orders copies and kernels with two events a layer.

`planning/look_ahead.py` knows the order of visits and says which copy is due; here it is issued. What it does not
foresee is copied on entry (a demand load): slower, never wrong.

Ordering, and why it is enough
------------------------------
Every streamed layer owns one fixed range of the ring, and shares bytes of it with other layers.
* Kernels of a visit run after the layer's `copy_done`: the compute lane waits for it on entry, for a resident until the
  copy is known to be complete.
* A copy starts after the `last_read` of every visit already issued whose range it overlaps: the copy lane waits for
  these events before the copy is queued. It is queued only when no overlapping layer is in use or has pending visits;
  so a `last_read` to wait for has always been recorded.
* The copy lane runs in order, so one wait for a `last_read` covers all later copies, and a copy that was never used is
  overwritten in order.
* A layer that was patched on the device on arrival (`patched_layers.py`) is copied back once, on a lane of its own,
  after the kernels that patched it. A copy over it, and a copy from its version, waits for that (`saved`).
* A pass runs after the previous one, whichever of the caller's streams each uses (`_passed`).
* The layers of a component that is about to run next (`DeviceQueue`) overlap ours as our own do: the same two rules.

No other wait, host synchronisation or allocation is needed: the ring bounds look-ahead, however far the host runs
ahead.

Invariants between any two calls: those of look-ahead; and the ranges of `valid` streamed layers are disjoint. Knows
nothing about modules or the app. One thread runs a component at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...errors import OffloadError
from ...planning.look_ahead import LookAhead
from ..device.counters import RunCounters
from ..device.device_port import DevicePort
from ..layers.layer import Layer
from ..layers.recorder import Recorder
from ..patches.versions import Versions

_TIMED_PASSES = 2
_TIMED_EVERY = 8
"""Visits of the first passes and of every eighth are measured: enough for planning, too few to cost time. The very
first pass, and the first of another shape, do not count for planning: kernels are loaded and selected in them."""


class PassOwner:
    """What a prefetcher asks of those who run the component. This one stands for a component without a plan."""

    around_allocations: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around device allocations in a pass; steady visits make none. No older memory is freed inside."""

    @property
    def loaded(self) -> bool:
        """Whether a plan is in effect. Without one, layers run on the host."""
        return False

    @property
    def plan_may_change(self) -> bool:
        """Whether `before_pass` is to be called, and all visits are to be measured for it."""
        return False

    def before_pass(self) -> None:
        """Called before a pass, while none is under way: the plan may change here."""

    def may_use_ring(self) -> bool:
        """Called as a pass starts, and on a demand load without the ring: whether it may use the ring now."""
        return False

    def is_last_pass(self) -> bool:
        """Called as a pass starts, after `may_use_ring`: whether another component, which shares the ring from now on,
        is expected to make the next pass."""
        return False

    def fetch_next(self) -> None:
        """That component may copy its first layers to where no layer of this one is in use or pending."""

    def keep_ring(self) -> None:
        """This component needs the ring's bytes after all: the other's copies are lost."""

    def make_room(self, layer: str, too_late: bool) -> bool:
        """The device is full, and no layer is in use. `layer`: the name of the one that failed; `too_late`: it cannot
        be run again. Returns whether room was made; what it raises replaces the error."""
        return False

    def may_repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the call of a layer that ran out of memory may be repeated, judging by its arguments."""
        return False


class Prefetcher:
    """Serves the visits of one component. `enter` and `leave` bracket a visit, `begin_pass` and `end_pass` a pass."""

    def __init__(self, port: DevicePort, layers: Sequence[Layer]) -> None:
        self.port = port
        self.counters = RunCounters()
        self.in_pass = False
        self.owner = PassOwner()
        self.recorder: Recorder | None = None
        """Receives the measured times. None costs one test per pass and per measured visit."""
        self.versions = Versions(port)
        self.look_ahead = LookAhead(layers)
        self._layers = tuple(layers)
        self._timing = False
        self._at_rest = True
        """No pass is under way: `read_times` may read events that otherwise only the pass reads."""
        self._reading = threading.Lock()
        self._cold_pass = 0
        """Index of the pass that is measured for the counters only: the first one through an entry."""
        self._begun = False
        """Whether such a pass has begun since `measure_again`."""
        self._fence = port.event()
        self._passed = port.event()
        """Compute to compute: end of the last pass. Passes may run on different streams of the caller."""
        self._copied_on_compute = False
        self._hands_over = False
        """Another component is expected to make the next pass: its first layers are fetched instead of ours."""

    def serve(self, owner: PassOwner | None) -> None:
        """Ask `owner` from now on, which is alive as long as the prefetcher; None: no plan is in effect."""
        self.owner = owner or PassOwner()

    # ------------------------------------------------------------------ passes

    def begin_pass(self, entry: Hashable = None) -> None:
        """A pass begins, through the method with the key `entry`: the order of visits may depend on it. Layers called
        by themselves since the last pass, as connectors are, belong to this one. Starts look-ahead."""
        if self.owner.plan_may_change:
            with self.owner.around_allocations():  # a changed plan takes memory
                self.owner.before_pass()
        if self.versions.outdated:
            self.versions.reserve(self._layers)
        self.in_pass = True
        if self.look_ahead.has_walked:
            self._finish_pass()
        if not self._begun:
            self._begun, self._cold_pass = True, self.counters.passes
        self._start_pass(entry)
        if self.recorder is not None:
            self.recorder.begin_pass(self.counters)

    def end_pass(self, completed: bool) -> None:
        """The pass has ended or, if not `completed`, failed. After a failure no copy is in flight."""
        self.in_pass = False
        self.port.record_compute(self._passed)
        if completed:
            self._finish_pass()
            self.look_ahead.fetch(self)
            if self._hands_over:
                self._fetch_next()
        else:
            self._abort()
        if self.recorder is not None:
            self.recorder.end_pass(self.counters, self._timing)
        self._at_rest = True

    def _start_pass(self, entry: Hashable = None) -> None:
        with self._reading:
            self._at_rest = False
        self.look_ahead.begin_pass(entry)
        self.port.compute_waits(self._passed)
        passes = self.counters.passes
        wanted = passes < self._cold_pass + _TIMED_PASSES or self.owner.plan_may_change
        self._timing = wanted or passes % _TIMED_EVERY == 0
        if self.recorder is not None:
            self._timing = self._timing or self.recorder.trace.watched
            if self._timing:
                self.recorder.clock.tick()
        self.look_ahead.use_ring(self.owner.may_use_ring())
        self._hands_over = self.owner.is_last_pass()
        self.look_ahead.expect_last_pass(self._hands_over)
        self.look_ahead.fetch(self)

    def _finish_pass(self) -> None:
        self.counters.passes += 1
        self.look_ahead.end_pass()

    def _abort(self) -> None:
        """A pass has failed: on return no layer is in use or pending, and no copy is in flight."""
        self.counters.aborted_passes += 1
        for layer in self._layers:
            while layer.in_use:  # interrupted inside `enter` or `leave`
                self._put_back(layer)
        self.look_ahead.abort()
        if self._hands_over:
            self.owner.keep_ring()
        self.give_up_reads()
        self.drain()

    # ------------------------------------------------------------------ visits

    def enter(self, layer: Layer) -> None:
        """Before the layer's call: its modules hold device parameters, and the compute lane waits for the copy."""
        if layer.in_use:
            layer.enter_again()
            return
        counters = self.counters
        if not self.in_pass:
            self._continue_implicit_pass(layer)
        counters.visits += 1
        if not self.look_ahead.visit(layer):
            counters.order_misses += 1
        if layer.valid:
            if layer.keep_resident:
                counters.resident_visits += 1
            else:
                counters.prefetch_hits += 1
        elif not self._load_now(layer):
            self._enter_unplaced(layer)
            return
        times = layer.times
        if times.timed:
            times.read(self.port, counters, self.recorder)
        try:
            if self._timing and not times.timed:
                layer.enter(self.port, counters.passes > self._cold_pass)
            else:
                layer.enter(self.port)
        except BaseException:  # its bytes could not be read: the next visit has to issue the copy again
            layer.invalidate()
            self.look_ahead.forget_pending()
            raise
        if layer.carries is not layer.patch:
            self._apply_patch(layer)

    def leave(self, layer: Layer) -> None:
        """After the layer's call: a streamed layer's modules hold host parameters; `last_read` frees its range."""
        self._put_back(layer)
        self.look_ahead.fetch(self)
        if self._hands_over:
            self._fetch_next()

    def fail(self, layer: Layer) -> None:
        """The layer's call, or `enter`, raised. The caller may catch the error and go on, so the pass is not over yet.
        Without an entry there is no `end_pass`: then the failure of the outermost layer ends the pass."""
        self._put_back(layer)
        if not self.in_pass and not any(other.in_use for other in self._layers):
            self._abort()

    def may_retry(self, layer: Layer) -> bool:
        """Whether no other layer is in use, nor this one twice, so that all of them may be moved."""
        return layer.in_use < 2 and not any(other.in_use for other in self._layers if other is not layer)

    def retry(self, layer: Layer, too_late: bool) -> bool:
        """The layer ran out of device memory: undo `enter` and make room. Returns whether to run it again; False if it
        is `too_late` for that, when room is made for later passes only."""
        self._put_back(layer)
        layer.times.void()
        if not self.owner.make_room(layer.name, too_late) or too_late:
            return False
        self.look_ahead.undo_visit(layer)
        self.counters.retried_visits += 1
        return True

    def _put_back(self, layer: Layer) -> None:
        ends_pass = not self.in_pass and layer.in_use == 1  # without `end_pass` each outermost call may be the last
        layer.leave(self.port)
        if ends_pass:
            self.port.record_compute(self._passed)

    # ------------------------------------------------------------------ look-ahead

    def _fetch_next(self) -> None:
        if self.look_ahead.is_complete:
            self.owner.fetch_next()

    def fetch_early(self) -> None:
        """Before our turn: fetch our first layers into bytes of the ring that no layer of the component before needs.
        What cannot be read now is met again by its visit, in our own pass."""
        if self.in_pass or self.look_ahead.trace:  # a pass of ours was interrupted by the other component's
            return
        self._hands_over = False
        self.look_ahead.use_ring(True)
        self.look_ahead.expect_last_pass(False)
        self._timing = self.recorder is not None and self.recorder.trace.watched
        copies, at_rest = self.counters.copies, self._at_rest
        try:
            with self._reading:
                self._at_rest = False
            self.look_ahead.fetch(self)
        except OffloadError:
            self.give_up_ring()
        finally:
            self._at_rest = at_rest
            self.counters.early_copies += self.counters.copies - copies

    def issue(self, layer: Layer) -> None:
        """Queue the layer's copy. No overlapping layer is in use or pending; all become invalid."""
        layer.issue(self.port, self._timing)
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes

    def give_up_ring(self) -> None:
        """The ring moves, or another component is about to overwrite it: our streamed layers become invalid."""
        self.look_ahead.forget()
        self.versions.settle(self._layers)
        self.look_ahead.use_ring(False)
        for layer in self._layers:
            if not layer.keep_resident:
                layer.invalidate()

    def give_up_reads(self) -> None:
        """Nothing is expected of look-ahead any more: give up what is unread of it, so that other reads need not wait,
        and invalidate layers that are copied from sources and not in use."""
        unread = [layer for layer in self._layers if not layer.swapped_in and layer.to_read is not None]
        self.port.abandon([source for layer in unread if (source := layer.to_read) is not None])
        for layer in unread:
            layer.invalidate()

    def before_release(self) -> None:
        """Before device memory is released: its next use, on any stream, is ordered after our passes."""
        self.port.compute_waits(self._passed)
        self.port.before_release()

    def drain(self) -> None:
        """The host waits until none of our copies is in flight, on either lane. Never on the hot path."""
        if self._copied_on_compute:
            self._copied_on_compute = False
            self.port.record_compute(self._fence)
            self.port.copy_waits(self._fence)
        self.port.drain()

    # ------------------------------------------------------------------ unexpected visits

    def _load_now(self, layer: Layer) -> bool:
        """Issue the copy on entry. False: its range overlaps a layer in use, or the ring is not ours."""
        if layer.keep_resident:
            self.counters.resident_visits += 1
        else:
            if layer.device_buffer is None or any(other.in_use for other in layer.overlaps):
                return False
            if not self.look_ahead.has_ring and not self.look_ahead.use_ring(self.owner.may_use_ring()):
                return False
            self.counters.demand_loads += 1
            if any(other.pending for other in layer.overlaps):
                self.look_ahead.forget_pending()
                if self._hands_over:  # some of these layers may be the other component's
                    self._hands_over = False
                    self.look_ahead.expect_last_pass(False)
                    self.owner.keep_ring()
        self.issue(layer)
        return True

    def _enter_unplaced(self, layer: Layer) -> None:
        """One visit in a temporary buffer, copied on the compute lane: a nested layer, or without the ring."""
        if not self.owner.loaded:
            layer.enter_unplaced([])
            return
        self.counters.unplaced_visits += 1
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes
        self._copied_on_compute = True
        with self.owner.around_allocations():
            layer.enter_unplaced(layer.copy_unplaced(self.port, self._fence))
            if layer.copy_carries is not layer.patch and layer.patch is not None:
                layer.patch.apply()
                self.counters.revised_layers += 1

    def _apply_patch(self, layer: Layer) -> None:
        """The layer has arrived with its master's bytes: patch them on the device, and copy the result back once."""
        patch = layer.patch
        assert patch is not None and layer.carries is None  # `Layer.set_patch` invalidates anything else
        layer.times.void()  # this visit takes longer than later ones
        try:
            with self.owner.around_allocations():
                patch.apply()
        except BaseException:
            self.look_ahead.forget_pending()
            layer.spoil(self.port)
            raise
        layer.patched()
        self.counters.revised_layers += 1
        if not layer.keep_resident and patch.version is None:
            self.counters.copied_back += self.versions.save(layer)

    def _continue_implicit_pass(self, layer: Layer) -> None:
        """Layers run outside an entry of the component: a pass ends where its first layer recurs."""
        trace = self.look_ahead.trace
        if trace and trace[0] is layer:
            self._finish_pass()
        if not self.look_ahead.trace:
            self._start_pass()

    # ------------------------------------------------------------------ times

    def record_into(self, recorder: Recorder) -> None:
        """Hand over the times of visits, copies and passes to `recorder` from now on."""
        self.recorder = recorder

    def recorded_order(self) -> tuple[int, ...]:
        """Layer indices in the order of visits of the walk to plan by (`Walks.typical`); empty before a pass."""
        return tuple(layer.index for layer in self.look_ahead.typical_walk())

    def measure_again(self) -> None:
        """Discard the compute times (another resolution, say) and measure the next passes. Copy rates are kept."""
        for layer in self._layers:
            layer.times.forget()
        self.look_ahead.count_again()
        self._begun, self._cold_pass = False, self.counters.passes

    def all_measured(self) -> bool:
        """Whether every layer of the recorded order has a measured time. Never waits for an event."""
        visits = self.look_ahead.typical_walk()
        for layer in visits:
            if layer.times.timed:
                layer.times.read(self.port, self.counters, self.recorder)
        return bool(visits) and all(layer.times.compute_ns is not None for layer in visits)

    def read_times(self) -> None:
        """Read the events of measured visits that have happened, if no pass is under way. Never waits. Any thread."""
        with self._reading:
            if self._at_rest:
                for layer in self._layers:
                    if layer.times.timed:
                        layer.times.read(self.port, self.counters, self.recorder)
