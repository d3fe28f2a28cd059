"""The heart: decides, visit by visit, which copy is issued next, and orders copies and kernels with two events each.

Every pass is recorded; the last few different walks are kept (`walks.py`), the plan's guess among them. Copies are
issued along the road: the walk that this pass is expected to make, then the one that is expected to follow it, so that
the last layers of a pass fetch the first of the next. A visit that is not the expected one is placed on a walk that
explains all visits of the pass so far, and the road changes to that walk. What no walk explains is served by demand
loads: slower, never wrong. A road that was wrong has cost copies and ring bytes, no more: what was counted on is
forgotten as a whole when the road changes, what was copied stays where it is and counts again if it is on the new one.

Ordering, and why it is enough
------------------------------
Every streamed layer owns one fixed range of the ring, and overlaps others there.
* A kernel of a visit runs after the layer's `copy_done`: the compute lane waits for it on entry, for a resident until
  the copy is known to have happened.
* A copy starts after the `last_read` of every visit, already issued, whose range it overlaps: the copy lane waits for
  those events before the copy is queued. It is only queued when every overlapping layer that still has a visit to
  come, or is in use, is out of the way; so a `last_read` to wait for has always been recorded.
* The copy lane runs in order, so a `last_read` it has waited for once needs no second wait, and a copy that was
  issued and never used is overwritten in order.
* A layer that was changed on the device on its arrival (`revision.py`) is copied back once, on a lane of its own, after
  the kernels that changed it. A copy over it, and a copy from what was copied back, waits for that (`saved`).
* A pass runs after the one before, on whichever of the caller's streams each is (`_passed`).
Nothing else is waited for, no host synchronisation is needed, nothing is allocated: look-ahead is bounded by the bytes
of the ring however far the host runs ahead.

Invariants, between any two calls: a layer with visits `pending` is valid; `pending` of all layers adds up to `_ahead`;
what `valid` layers hold is disjoint. Knows nothing about modules or the app. One thread runs a component at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .counters import RunCounters
from .device_port import DevicePort
from .host_placement import copied_unplaced, give_up_reads
from .layer import Layer
from .recorder import Recorder
from .timing import collect, wait_for_resident, wait_timed
from .versions import Versions
from .walks import Walk, Walks

_TIMED_PASSES = 2
_TIMED_EVERY = 8
"""Visits of the first passes and of every eighth are measured: enough to plan by, too little to notice. Nobody plans
by the first pass of all, nor by the first of another shape: kernels are loaded and chosen in it, which takes time."""

_MISSES_TO_PAUSE = 2
"""Visits in a row that were not the expected ones after which look-ahead pauses, until one is. Copies that nobody
uses would only be in the way of those that somebody waits for."""


class Prefetcher:
    """Serves the visits of one component. `enter` and `leave` bracket a visit, `begin_pass` and `end_pass` a pass."""

    def __init__(self, port: DevicePort, layers: Sequence[Layer]) -> None:
        self.port = port
        self.counters = RunCounters()
        self.in_pass = False
        self.loaded = False
        """Whether a plan is in effect. Without one, layers run as they are, on the host."""
        self.may_use_ring: Callable[[], bool] = lambda: True
        """Asked at the start of a pass, and on a miss when it was lost: is the ring ours? If not, we go without it."""
        self.before_pass: Callable[[], None] | None = None
        """Called between passes, before each: the moment at which a plan may change."""
        self.recorder: Recorder | None = None
        """Gets the times of what was measured. Without one there is a test for it now and then, and nothing else."""
        self.make_room: Callable[[str, bool], bool] | None = None
        """Asked when the device is out of memory and none of our layers is in use: has room been made? It is told
        the name of the layer that failed and whether it is too late for it. What it raises replaces the error."""
        self.may_repeat: Callable[[tuple[Any, ...], dict[str, Any]], bool] | None = None
        """Asked with the arguments of a layer that failed for want of memory: may its call be made a second time?"""
        self.around_allocations: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered around what takes device memory in a pass; steady visits take none. Nothing older is freed inside."""
        self.versions = Versions(port)
        self._ring_is_ours = False
        self._layers = tuple(layers)
        self._walks = Walks(layers)
        self._walk = self._then = self._walks.expected()
        """The walk that this pass makes, or the next one if none is under way, and the one that should follow."""
        self._length = 0
        """Visits of `_walk`."""
        self._road: list[Layer] = []
        """The visits of `_walk`, then those of `_then`."""
        self._next = 0
        """Position on the road of the visit that is expected next; it is one of `_walk`."""
        self._ahead = 0
        """How many visits from `_next` on look-ahead has provided for."""
        self._go(self._walk, self._then)
        self._entry: Hashable = None
        """What the pass under way began through; None: it was not told."""
        self._trace: list[Layer] = []
        self._before_entry = 0
        """How many visits of the pass came before its entry was called."""
        self._misses = 0
        self._timing = False
        self._at_rest = True
        """No pass is under way, so that `read_times` may read what else only passes do."""
        self._reading = threading.Lock()
        self._cold_pass = 0
        """The pass that is measured for the counters only: the first that begins through an entry."""
        self._begun = False
        """Whether one has begun since times were last thrown away."""
        self._fence = port.event()
        self._passed = port.event()
        """Compute to compute: the last pass has ended. Passes may run on different streams of the caller's."""
        self._copied_on_compute = False

    # ------------------------------------------------------------------ passes

    def expect(self, order: Sequence[Layer]) -> None:
        """The plan's guess of the order of visits. What was seen counts more."""
        if not self._walks.seen:
            self._walks.guess(order)
            self._set_out()

    def begin_pass(self, entry: Hashable = None) -> None:
        """The component starts to run, through the method that `entry` stands for: what it visits may depend on that.

        Layers that were called by themselves since the last pass, as connectors are, are the begin of this one.
        Starts look-ahead where it is not already under way.
        """
        if self.before_pass is not None:
            with self.around_allocations():  # a changed plan takes memory
                self.before_pass()
        if self.versions.outdated:
            self.versions.reserve(self._layers)
        self.in_pass = True
        if self._trace and self._walks.is_whole(self._trace):
            self._finish_pass()
        self._entry = entry
        if self._walk.seen and entry is not None and self._walk.entry != entry:
            self._go_through(entry)
        if not self._begun:
            self._begun, self._cold_pass = True, self.counters.passes
        self._start_pass(self._trace)
        if self.recorder is not None:
            self.recorder.begin_pass(self.counters)

    def end_pass(self, completed: bool) -> None:
        """The component has run, or failed to. After a failure nothing is in flight any more."""
        self.in_pass = False
        self.port.record_compute(self._passed)
        if completed:
            self._finish_pass()
            self._look_ahead()
        else:
            self._abort()
        self._entry = None
        if self.recorder is not None:
            self.recorder.end_pass(self.counters, self._timing)
        self._at_rest = True

    def _start_pass(self, visited: Sequence[Layer] = ()) -> None:
        """`visited`: the visits of this pass that have been made already."""
        with self._reading:
            self._at_rest = False
        self._trace = list(visited)
        self._before_entry = len(visited)
        self._misses = 0
        self.port.compute_waits(self._passed)
        passes = self.counters.passes
        wanted = passes < self._cold_pass + _TIMED_PASSES or self.before_pass is not None
        self._timing = wanted or passes % _TIMED_EVERY == 0
        if self.recorder is not None:
            self._timing = self._timing or self.recorder.watched
            if self._timing:
                self.recorder.clock.tick()
        self._ring_is_ours = self.may_use_ring()
        self._look_ahead()

    def _finish_pass(self) -> None:
        """Keep what was just seen, and expect what most probably follows it."""
        self.counters.passes += 1
        trace, self._trace = self._trace, []
        if trace:
            self._walks.add(trace, self._entry, self._before_entry)
        self._set_out()

    def _abort(self) -> None:
        """A pass has failed: nothing is in use, counted on or in flight when this returns."""
        self.counters.aborted_passes += 1
        self._trace = []
        for layer in self._layers:
            if layer.in_use:  # an interrupt struck between two lines of `enter` or `leave`
                layer.in_use = 1
                self._put_back(layer)
        self.forget_look_ahead()
        self._set_out()
        give_up_reads(self.port, self._layers)
        self.drain()

    # ------------------------------------------------------------------ visits

    def enter(self, layer: Layer) -> None:
        """The layer is about to run: its parameters are on the device, in time, when this returns."""
        if layer.in_use:
            layer.in_use += 1
            return
        counters = self.counters
        if not self.in_pass:
            self._continue_implicit_pass(layer)
        counters.visits += 1
        self._trace.append(layer)
        position = self._next
        if self._road[position] is layer:
            self._misses = 0
            self._next = position = position + 1
            if self._ahead:
                self._ahead -= 1
                layer.pending -= 1
            if position == self._length:
                self._turn()
        else:
            self._find_place(layer)
        if layer.valid:
            if layer.keep_resident:
                counters.resident_visits += 1
            else:
                counters.prefetch_hits += 1
        elif not self._load_now(layer):
            self._enter_unplaced(layer)
            return
        layer.in_use = 1
        if layer.timed:
            collect(layer, self.port, self.counters, self.recorder)
        try:
            if self._timing and not layer.timed:
                wait_timed(layer, self.port, counters.passes > self._cold_pass)
            elif layer.keep_resident:
                wait_for_resident(layer, self.port)
            else:
                self.port.compute_waits(layer.copy_done)
        except BaseException:  # its bytes could not be read: whoever comes next has to ask for them again
            layer.valid = False
            self._forget_pending()
            raise
        if not layer.swapped_in:
            layer.swap_in()
        if layer.carries is not layer.revision:
            self._revise(layer)

    def leave(self, layer: Layer) -> None:
        """The layer has run: the host parameters are back and its bytes may be overwritten."""
        self._put_back(layer)
        self._look_ahead()

    def fail(self, layer: Layer) -> None:
        """The layer, or entering it, raised. Somebody may catch it and go on, so the pass is not over yet.

        Except where it has no end that we would see: then the outermost layer to fail is the end.
        """
        self._put_back(layer)
        if not self.in_pass and not any(other.in_use for other in self._layers):
            self._abort()

    def may_retry(self, layer: Layer) -> bool:
        """Whether the layer is our outermost one under way, so that everything else of ours may move."""
        mine = layer.in_use < 2 and not any(other.in_use for other in self._layers if other is not layer)
        return mine and self.make_room is not None

    def retry(self, layer: Layer, too_late: bool) -> bool:
        """The device ran out of memory in the layer: leave it, as if never entered, and make room. False: no room.

        `too_late`: the layer cannot be run again; room is then made for passes to come.
        """
        self._put_back(layer)
        layer.timed = False
        if self.make_room is None or not self.make_room(layer.name, too_late) or too_late:
            return False
        while self._trace and self._trace.pop() is not layer:
            pass
        self.counters.retried_visits += 1
        return True

    def _put_back(self, layer: Layer) -> None:
        if layer.in_use != 1:
            layer.in_use = max(0, layer.in_use - 1)  # it runs inside itself, or never got as far as running
            return
        if not layer.keep_resident:
            layer.swap_out()
            if layer.valid:  # else it ran from memory of its own, which the swap has just given back
                self.port.record_compute(layer.last_read)
                layer.read_since_copy = True
        if layer.timing:
            self.port.record_compute(layer.finished)
            layer.timing = False
        if not self.in_pass:  # a pass whose end we do not see
            self.port.record_compute(self._passed)
        layer.in_use = 0

    # ------------------------------------------------------------------ look-ahead

    def _look_ahead(self) -> None:
        """Issue copies along the road as far as the bytes of the ring allow, and no farther than it is known."""
        if self._misses >= _MISSES_TO_PAUSE:
            return
        road = self._road
        position = self._next + self._ahead
        end = len(road)
        while position < end:
            layer = road[position]
            if not layer.valid:
                if not self._may_issue(layer):
                    return
                self._issue(layer)
            layer.pending += 1
            self._ahead += 1
            position += 1

    def _may_issue(self, layer: Layer) -> bool:
        """Whether the layer has a place to go to, and nothing that is still needed lies there."""
        if layer.device_buffer is None or layer.in_use:
            return False
        if layer.keep_resident:
            return True
        if not self._ring_is_ours:
            return False
        for other in layer.overlaps:  # noqa: SIM110 - a generator costs more than all of its steps
            if other.pending or other.in_use:
                return False
        return True

    def _issue(self, layer: Layer) -> None:
        """Queue the copy of a layer. What it overlaps is out of the way."""
        port = self.port
        buffer = layer.device_buffer
        assert buffer is not None
        for other in layer.overlaps:
            other.valid = False
            if other.read_since_copy:
                port.copy_waits(other.last_read)
                other.read_since_copy = False
            if other.saving:
                port.copy_waits(other.saved)
                other.saving = False
        if layer.read_since_copy:
            port.copy_waits(layer.last_read)
            layer.read_since_copy = False
        if layer.saving:
            port.copy_waits(layer.saved)
            layer.saving = False
        timing = self._timing and layer.copies_timed < len(layer.copy_marks)
        if timing:
            start, end = layer.copy_marks[layer.copies_timed]
            port.record_copy(start)
        layer.queue_copy(port, buffer)
        port.record_copy(layer.copy_done)
        layer.carries = layer.source_carries
        layer.valid = True
        layer.has_arrived = False
        if timing:
            port.record_copy(end)
            layer.copies_timed += 1
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes

    def forget_look_ahead(self) -> None:
        """Nothing is counted on any more, the next visit starts a pass. What was copied stays, until overwritten."""
        self._forget_pending()
        self._next = 0

    def _forget_pending(self) -> None:
        for layer in self._layers:
            layer.pending = 0
        self._ahead = 0

    def give_up_ring(self) -> None:
        """The ring moves, or somebody else is about to write into it: our bytes there are gone, and it is not ours."""
        self.forget_look_ahead()
        self.versions.settle(self._layers)
        self._ring_is_ours = False
        for layer in self._layers:
            if not layer.keep_resident:
                layer.valid = False

    def before_release(self) -> None:
        """Device memory is about to be given back: on whichever stream it is used next, that comes after our passes."""
        self.port.compute_waits(self._passed)
        self.port.before_release()

    def drain(self) -> None:
        """The host waits until none of our copies is under way, on either lane. Never on the hot path."""
        if self._copied_on_compute:
            self._copied_on_compute = False
            self.port.record_compute(self._fence)
            self.port.copy_waits(self._fence)
        self.port.drain()

    # ------------------------------------------------------------------ off the road

    def _load_now(self, layer: Layer) -> bool:
        """Demand load. False: the ring has no room for it, because a layer in use lies there or it is not ours."""
        if layer.keep_resident:
            self.counters.resident_visits += 1
        else:
            if layer.device_buffer is None or any(other.in_use for other in layer.overlaps):
                return False
            if not self._ring_is_ours:
                self._ring_is_ours = self.may_use_ring()
                if not self._ring_is_ours:
                    return False
            self.counters.demand_loads += 1
            if any(other.pending for other in layer.overlaps):
                self._forget_pending()
        self._issue(layer)
        return True

    def _enter_unplaced(self, layer: Layer) -> None:
        """Memory of its own for one visit, on the compute lane: one layer runs inside another, or the ring is taken."""
        if not self.loaded:
            layer.in_use = 1
            return
        self.counters.unplaced_visits += 1
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes
        self._copied_on_compute = True
        with self.around_allocations():
            bindings = copied_unplaced(layer, self.port, self._fence)
            layer.in_use = 1
            layer.swap_in(bindings)
            if layer.source_carries is not layer.revision and layer.revision is not None:
                layer.revision.apply()
                self.counters.revised_layers += 1

    def _revise(self, layer: Layer) -> None:
        """The layer has arrived with its master's bytes: change them where they lie, and keep the result."""
        revision = layer.revision
        assert revision is not None and layer.carries is None  # `revise` has thrown away anything else
        layer.timing = layer.timed = False  # this visit takes longer than others will
        try:
            with self.around_allocations():
                revision.apply()
        except BaseException:
            self._forget_pending()
            layer.spoil(self.port)
            raise
        layer.carries = revision
        self.counters.revised_layers += 1
        if not layer.keep_resident and revision.version is None:
            self.counters.copied_back += self.versions.save(layer)

    def _find_place(self, layer: Layer) -> None:
        """The visit is not the expected one: go on along a walk that explains all of this pass, or as well as we can.

        As well as we can: from where the layer comes next on the walk that we are on, if it comes at all.
        """
        self.counters.order_misses += 1
        walk = self._walks.explaining(self._trace, self._walk)
        if walk is not None:
            self._misses = 0
            self._change_to(walk, len(self._trace))
            return
        self._misses += 1
        walk, start = self._walk, self._next
        if walk.derived_from is not None:  # made up, and wrong
            walk, start = walk.derived_from, 0
        count = len(walk.visits)
        for position in range(start, start + count):
            if walk.visits[position % count] is layer:
                self._change_to(walk, position % count + 1)
                break

    # ------------------------------------------------------------------ the road

    def _set_out(self) -> None:
        """No pass is under way: be at the begin of the one that is expected. Look-ahead for it may be under way."""
        walk = self._walks.expected()
        then = self._walks.after(self._walks.last, walk)
        if walk is not self._walk or then is not self._then or self._next:
            self._forget_pending()
            self._go(walk, then)

    def _go_through(self, entry: Hashable) -> None:
        """The pass begins through another entry than the walk that was expected: expect one that began there."""
        walk = self._walks.through(entry)
        if walk is not None:
            self._change_to(walk, len(self._trace) if walk.begins_with(self._trace) else 0)

    def _turn(self) -> None:
        """The walk has been made: the next one begins, which is on the road already; look-ahead for it stays."""
        self._go(self._then, self._walks.after(self._walk, self._then))

    def _change_to(self, walk: Walk, position: int) -> None:
        """This pass makes `walk`, and has come to `position` of it. Nothing is counted on along the old road."""
        self._forget_pending()
        self._go(walk, self._walks.after(self._walks.last, walk))
        self._next = position
        if position == self._length:
            self._turn()

    def _go(self, walk: Walk, then: Walk) -> None:
        """Be at the begin of `walk`, which `then` follows. What is counted on is the caller's business."""
        if walk is not self._walk or then is not self._then or not self._road:
            self._walk, self._then = walk, then
            self._length = len(walk.visits)
            self._road = walk.visits + then.visits
        self._next = 0

    def _continue_implicit_pass(self, layer: Layer) -> None:
        """Layers run although the component's own entry was not called: a pass ends where its first layer recurs."""
        if self._trace and self._trace[0] is layer:
            self._finish_pass()
        if not self._trace:
            self._start_pass()

    # ------------------------------------------------------------------ times

    def recorded_order(self) -> tuple[int, ...]:
        """Indices of the layers in the order in which passes were seen to visit them; empty before the first.

        Where there are several such orders, the one to plan by (`Walks.typical`).
        """
        walk = self._walks.typical()
        return tuple(layer.index for layer in walk.visits) if walk.seen else ()

    def measure_again(self) -> None:
        """Compute times no longer hold (another resolution, say): measure the next passes. The link is the same."""
        for layer in self._layers:
            layer.compute_ns, layer.timed = None, False
        self._walks.count_again()
        self._begun, self._cold_pass = False, self.counters.passes

    def all_measured(self) -> bool:
        """Whether every layer of the recorded order has a measured time. Reads what has arrived, waits for nothing."""
        walk = self._walks.typical()
        if not walk.seen:
            return False
        for layer in walk.visits:
            if layer.timed:
                collect(layer, self.port, self.counters, self.recorder)
        return all(layer.compute_ns is not None for layer in walk.visits)

    def read_times(self) -> None:
        """Read what has arrived of the last measured visits, if no pass is under way. Waits for nothing. Any thread."""
        with self._reading:
            if self._at_rest:
                for layer in self._layers:
                    if layer.timed:
                        collect(layer, self.port, self.counters, self.recorder)
