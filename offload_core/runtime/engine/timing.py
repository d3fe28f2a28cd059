"""Measures visits by events on the compute lane, and reads those that have happened. The host never waits."""

from __future__ import annotations

from ..device.counters import RunCounters
from ..device.device_port import DevicePort
from ..layers.layer import Layer
from .recorder import Recorder


def wait_for_resident(layer: Layer, port: DevicePort) -> None:
    """The compute lane waits for a resident's copy, on each visit until the copy is known to be complete."""
    if not layer.has_arrived:
        port.compute_waits(layer.copy_done)
        layer.has_arrived = port.happened(layer.copy_done)


def wait_timed(layer: Layer, port: DevicePort, warm: bool) -> None:
    """Wait for the copy between two events on the compute lane: the time between them is the stall."""
    port.record_compute(layer.arrived)
    port.compute_waits(layer.copy_done)
    port.record_compute(layer.started)
    layer.timing = layer.timed = True
    layer.timed_warm = warm


def collect(layer: Layer, port: DevicePort, counters: RunCounters, recorder: Recorder | None) -> None:
    """Add the times of the layer's last measured visit, and of its measured copies, if their events have happened."""
    elapsed = port.elapsed_ns
    compute = elapsed(layer.started, layer.finished)
    stall = elapsed(layer.arrived, layer.started)
    if compute is None or stall is None:
        return
    layer.timed = False
    if layer.timed_warm:
        layer.compute_ns = compute
    counters.timed_visits += 1
    counters.stall_ns += stall
    counters.compute_ns += compute
    if recorder is not None:
        recorder.visit(layer, stall, compute)
    while layer.copies_timed:
        start, end = layer.copy_marks[0]
        copy = elapsed(start, end)
        if copy is None:
            return
        layer.copy_marks.append(layer.copy_marks.pop(0))
        layer.copies_timed -= 1
        counters.timed_copies += 1
        counters.timed_copy_bytes += layer.nbytes
        counters.copy_ns += copy
        if recorder is not None:
            recorder.copy(layer, start, copy)
