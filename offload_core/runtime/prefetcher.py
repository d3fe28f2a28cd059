"""The heart: decides, visit by visit, which copy is issued next, and orders copies and kernels with two events each.

The first pass follows the plan's guess of the order and is recorded; later passes are looked ahead along the record,
cyclically, so that the last layers of a pass fetch the first of the next. Whatever does not follow the record is
served by a demand load: slower, never wrong.

Ordering, and why it is enough
------------------------------
Every streamed layer owns one fixed range of the ring, and overlaps others there.
* A kernel of a visit runs after the layer's `copy_done`: the compute lane waits for it on entry.
* A copy starts after the `last_read` of every visit, already issued, whose range it overlaps: the copy lane waits for
  those events before the copy is queued. It is only queued when every overlapping layer that still has a visit to
  come, or is in use, is out of the way; so a `last_read` to wait for has always been recorded.
* The copy lane runs in order, so a `last_read` it has waited for once needs no second wait, and a copy that was
  issued and never used is overwritten in order.
Nothing else is waited for, no host synchronisation is needed, nothing is allocated: look-ahead is bounded by the bytes
of the ring however far the host runs ahead.

Knows nothing about modules, plans or the app. Not thread-safe: one thread runs a component at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .counters import RunCounters
from .device_port import DevicePort
from .layer import Layer

_TIMED_PASSES = 2
_TIMED_EVERY = 8
"""Visits of the first passes and of every eighth are measured: enough to plan by, too little to notice."""

_MAX_WRONG_GUESSES = 2
"""Order misses after which the first pass stops believing the guess and loads on demand."""


class Prefetcher:
    """Serves the visits of one component. `enter` and `leave` bracket a visit, `begin_pass` and `end_pass` a pass."""

    def __init__(self, port: DevicePort, guess: Sequence[Layer]) -> None:
        self.port = port
        self.counters = RunCounters()
        self.in_pass = False
        self.may_use_ring: Callable[[], bool] = lambda: True
        """Asked at the start of a pass: is the ring ours? If not, every miss of the pass goes without it."""
        self._ring_is_ours = True
        self._layers = tuple(guess)
        self._order: list[Layer] = list(guess)
        self._recorded = False
        self._next = 0
        """Position in the order of the visit that is expected next."""
        self._ahead = 0
        """How many visits from `_next` on look-ahead has provided for."""
        self._trace: list[Layer] = []
        self._last_trace: list[Layer] = []
        self._wrong_guesses = 0
        self._timing = False

    # ------------------------------------------------------------------ passes

    def begin_pass(self) -> None:
        """The component starts to run. Starts look-ahead where it is not already under way."""
        self._ring_is_ours = self.may_use_ring()
        self.in_pass = True
        self._trace = []
        self._wrong_guesses = 0
        passes = self.counters.passes
        self._timing = passes < _TIMED_PASSES or passes % _TIMED_EVERY == 0
        if self._next:
            self._skip_to(0)
        self._look_ahead()

    def end_pass(self, completed: bool) -> None:
        """The component has run, or failed to. After a failure nothing is in flight any more."""
        self.in_pass = False
        if not completed:
            self.counters.aborted_passes += 1
            self.forget_look_ahead()
            self.port.drain()
            return
        self.counters.passes += 1
        self._adopt_trace()
        self._look_ahead()

    def _adopt_trace(self) -> None:
        """Follow what was just seen, unless it is a shortened pass of a kind not seen before (a step cache skips)."""
        trace, last = self._trace, self._last_trace
        self._last_trace = trace
        if not trace or (trace == self._order and self._recorded):
            return
        if not self._recorded or len(trace) >= len(self._order) or trace == last:
            self.forget_look_ahead()
            self._order = list(trace)
            self._recorded = True

    # ------------------------------------------------------------------ visits

    def enter(self, layer: Layer) -> None:
        """The layer is about to run: its parameters are on the device, in time, when this returns."""
        if layer.in_use:
            layer.in_use += 1
            return
        counters = self.counters
        if not self.in_pass:
            self._begin_implicit_pass(layer)
        counters.visits += 1
        self._trace.append(layer)
        order = self._order
        if order and order[self._next] is layer:
            self._next = self._next + 1 if self._next + 1 < len(order) else 0
            if self._ahead:
                self._ahead -= 1
                layer.pending -= 1
        else:
            self._find_place(layer)
        if layer.timed:
            self._collect(layer)
        if layer.valid:
            if layer.keep_resident:
                counters.resident_visits += 1
            else:
                counters.prefetch_hits += 1
        elif not self._load_now(layer):
            self._enter_unplaced(layer)
            return
        if self._timing:
            layer.timed = True
            self.port.record_compute(layer.arrived)
        self.port.compute_waits(layer.copy_done)
        layer.in_use = 1
        layer.swap_in()

    def leave(self, layer: Layer) -> None:
        """The layer has run, well or not: the host parameters are back and its bytes may be overwritten."""
        layer.in_use -= 1
        if layer.in_use:
            return
        if not layer.keep_resident:
            layer.swap_out()
            if layer.valid:  # else it ran from memory of its own, which the swap has just given back
                self.port.record_compute(layer.last_read)
                layer.read_since_copy = True
        elif layer.timed:
            self.port.record_compute(layer.last_read)
        self._look_ahead()

    # ------------------------------------------------------------------ look-ahead

    def _look_ahead(self) -> None:
        """Issue copies along the order as far as the bytes of the ring allow, at most one pass ahead."""
        order = self._order
        count = len(order)
        position = self._next + self._ahead
        while self._ahead < count:
            layer = order[position % count]
            if not layer.valid:
                if not self._ring_is_ours or layer.in_use or not _out_of_the_way(layer):
                    return
                self._issue(layer)
            layer.pending += 1
            self._ahead += 1
            position += 1

    def _issue(self, layer: Layer) -> None:
        """Queue the copy of a layer. What it overlaps is out of the way."""
        port = self.port
        for other in layer.overlaps:
            other.valid = False
            if other.read_since_copy:
                port.copy_waits(other.last_read)
                other.read_since_copy = False
        if layer.read_since_copy:
            port.copy_waits(layer.last_read)
            layer.read_since_copy = False
        layer.copy_timed = self._timing
        if self._timing:
            port.record_copy(layer.copy_start)
        port.copy(layer.device_buffer, layer.host.buffer)
        port.record_copy(layer.copy_done)
        layer.valid = True
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes

    def forget_look_ahead(self) -> None:
        """Nothing is counted on any more. What was copied stays valid until it is overwritten."""
        for layer in self._order:
            layer.pending = 0
        self._ahead = 0
        self._next = 0

    def give_up_ring(self) -> None:
        """Somebody else is about to write into the ring: our bytes there are gone. No layer may be in use."""
        self.forget_look_ahead()
        for layer in self._layers:
            if not layer.keep_resident:
                layer.valid = False

    # ------------------------------------------------------------------ off the road

    def _load_now(self, layer: Layer) -> bool:
        """Demand load. False: the ring has no room for it, because a layer in use lies there or it is not ours."""
        if not layer.keep_resident:
            if not self._ring_is_ours or layer.device_buffer is None or any(other.in_use for other in layer.overlaps):
                return False
            self.counters.demand_loads += 1
            if any(other.pending for other in layer.overlaps):
                self._forget_ahead_only()
        else:
            self.counters.resident_visits += 1
        self._issue(layer)
        return True

    def _enter_unplaced(self, layer: Layer) -> None:
        """Memory of its own for one visit, on the compute lane: one layer runs inside another, or the ring is taken."""
        self.counters.unplaced_visits += 1
        with torch.inference_mode(False):
            buffer = self.port.empty(layer.nbytes)
            place, bindings = layer.device_buffer, layer.device_bindings
            layer.bind(buffer)
        try:
            self.port.copy_on_compute(buffer, layer.host.buffer)
        except BaseException:
            layer.unbind()
            layer.device_buffer, layer.device_bindings = place, bindings
            raise
        self.counters.copies += 1
        self.counters.bytes_copied += layer.nbytes
        layer.in_use = 1
        layer.swap_in()
        layer.device_buffer, layer.device_bindings = place, bindings

    def _find_place(self, layer: Layer) -> None:
        """The visit is not the expected one: go on from where the layer comes next, if it comes at all."""
        order = self._order
        count = len(order)
        self.counters.order_misses += count > 0
        for distance in range(1, count):
            if order[(self._next + distance) % count] is layer:
                self._skip_to((self._next + distance + 1) % count)
                break
        if not self._recorded:
            self._wrong_guesses += 1
            if self._wrong_guesses >= _MAX_WRONG_GUESSES:
                self.forget_look_ahead()
                self._order = []

    def _skip_to(self, position: int) -> None:
        """Move the expected visit on to `position`; visits in between are not coming, their look-ahead is let go."""
        count = len(self._order)
        for _ in range((position - self._next) % count):
            if self._ahead:
                self._ahead -= 1
                self._order[self._next].pending -= 1
            self._next = (self._next + 1) % count

    def _forget_ahead_only(self) -> None:
        for layer in self._order:
            layer.pending = 0
        self._ahead = 0

    def _begin_implicit_pass(self, layer: Layer) -> None:
        """Layers run although the component's own entry was not called: a pass ends where its first layer recurs."""
        if self._trace and self._trace[0] is layer:
            self.counters.passes += 1
            self._adopt_trace()
            self._trace = []
        if not self._trace:
            self.begin_pass()
            self.in_pass = False

    def _collect(self, layer: Layer) -> None:
        """Read the times of the layer's last measured visit, if the device has got that far: never wait for it."""
        layer.timed = False
        elapsed = self.port.elapsed_ns
        stall = elapsed(layer.arrived, layer.copy_done)
        whole = elapsed(layer.arrived, layer.last_read)
        if stall is None or whole is None:
            return
        counters = self.counters
        stall = max(0, stall)
        counters.timed_visits += 1
        counters.stall_ns += stall
        counters.compute_ns += max(0, whole - stall)
        if layer.copy_timed and not layer.keep_resident:
            counters.copy_ns += max(0, elapsed(layer.copy_start, layer.copy_done) or 0)


def _out_of_the_way(layer: Layer) -> bool:
    """Whether nothing that is still needed lies where the layer's copy would go."""
    for other in layer.overlaps:
        if other.pending or other.in_use:
            return False
    return True
