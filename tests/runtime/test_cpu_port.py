"""The port of a machine without an accelerator: copies on a thread, really late, and the engine on top of it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from tests.runtime.world import hand_plan
from tests.support.tiny_torch_models import DIM, Model


@pytest.fixture
def port():
    port = ThreadedCpuPort()
    yield port
    port.close()


class Gate:
    """Holds the copy lane back until it is opened."""

    def __init__(self, port):
        self._open = threading.Event()
        port._queue(lambda: self._open.wait(10) and None)

    def open(self):
        self._open.set()


def pair(port, value=7):
    return port.empty(1024).fill_(0), torch.full((1024,), value, dtype=torch.uint8)


def test_a_copy_is_late_and_an_event_orders_it(port):
    gate, done = Gate(port), port.event()
    target, source = pair(port)
    port.copy(target, source)
    port.record_copy(done)
    assert int(target[0]) == 0
    threading.Timer(0.02, gate.open).start()
    port.compute_waits(done)
    assert int(target[-1]) == 7


def test_drain_waits_for_everything(port):
    gate = Gate(port)
    target, source = pair(port)
    port.copy(target, source)
    threading.Timer(0.02, gate.open).start()
    port.drain()
    assert int(target[-1]) == 7


def test_times_are_known_once_both_events_have_come_and_not_from_an_earlier_recording(port):
    start, end = port.event(timed=True), port.event(timed=True)
    assert port.elapsed_ns(start, end) is None
    port.record_compute(start)
    port.record_copy(end)
    port.drain()
    assert port.elapsed_ns(start, end) >= 0
    gate = Gate(port)
    port.record_copy(end)
    assert port.elapsed_ns(start, end) is None
    gate.open()
    time.sleep(0)
    port.drain()
    assert port.elapsed_ns(start, end) >= 0


def test_a_copy_that_fails_is_reported_where_it_is_waited_for_and_the_lane_goes_on(port):
    done = port.event()
    target, source = pair(port)
    port.copy(target[:10], source)
    port.record_copy(done)
    with pytest.raises(RuntimeError):
        port.compute_waits(done)
    port.copy(target, source)
    port.drain()
    assert int(target[0]) == 7


def test_an_event_that_measures_leaves_the_failure_to_the_one_that_is_waited_for(port):
    start, end, done = port.event(timed=True), port.event(timed=True), port.event()
    target, source = pair(port)
    port.record_copy(start)
    port.copy(target[:10], source)
    port.record_copy(end)
    port.record_copy(done)
    with pytest.raises(RuntimeError):
        port.compute_waits(done)
    port.drain()
    assert port.elapsed_ns(start, end) >= 0


def test_closing_twice_and_going_on_afterwards(port):
    target, source = pair(port)
    port.copy(target, source)
    port.drain()
    port.close()
    port.close()
    port.copy(target, source + 1)
    port.drain()
    assert int(target[0]) == 8


def test_the_engine_streams_and_leaves_residents_where_they_are(port):
    model = Model([64, 32, 64, 64, 16, 64], exotic=[1])
    x = torch.randn(2, DIM)
    with torch.no_grad():
        expected = [model(x) for _ in range(4)]
        model.blocks[1].calls.zero_()
        queue = DeviceQueue(port)
        controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
        controller.load(hand_plan(controller, 2 * 65_536, residents=(3,)))
        for value in expected:
            assert torch.equal(model(x), value)
        assert controller.device_bytes() == 2 * 65_536, "the resident is a master, not a copy"
        controller.write_master(model.blocks[3].weight, torch.zeros(DIM, DIM))
        assert controller.device_bytes() == 2 * 65_536
        changed = model(x)
        controller.detach()
        queue.close()
        model.blocks[1].calls.sub_(1)
        assert torch.equal(model(x), changed)
    assert controller.counters.resident_visits == 5 and controller.counters.demand_loads == 0
