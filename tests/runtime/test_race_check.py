"""The engine under the race check, in every order of things we know of: silent, and right to the bit."""

from __future__ import annotations

import pytest
import torch

from tests.runtime.world import World, a_world
from tests.runtime.zoo import ZOO
from tests.support.race_port import COMPUTE, COPY, POISON, RacePort


@pytest.mark.parametrize("late", [False, True], ids=["copies at once", "copies at the last moment"])
@pytest.mark.parametrize("scenario", ZOO, ids=lambda scenario: scenario.__name__)
def test_no_race_and_no_wrong_bit(scenario, late):
    with a_world(late) as world:
        scenario(world)


@pytest.mark.parametrize("scenario", ZOO, ids=lambda scenario: scenario.__name__)
def test_the_same_inside_inference_mode(scenario):
    with torch.inference_mode(), World() as world:
        scenario(world)


# ---------------------------------------------------------------------- the checker itself


@pytest.fixture
def port():
    port = RacePort(1 << 16)
    with port.watching():
        yield port


def host_bytes(port, nbytes=256):
    buffer, _ = port.host_empty(nbytes, True)
    buffer.fill_(1)
    return buffer


def test_a_kernel_that_does_not_wait_is_a_race(port):
    device, host, done = port.empty(256), host_bytes(port), port.event()
    port.copy(device, host)
    port.record_copy(done)
    device.sum()
    assert len(port.races) == 1 and "read by the compute lane (aten::sum)" in port.races[0]
    port.compute_waits(done)
    device.sum()
    assert len(port.races) == 1


def test_a_copy_over_bytes_being_read_is_a_race_unless_it_waits(port):
    device, host, read = port.empty(256), host_bytes(port), port.event()
    device.sum()
    port.record_compute(read)
    port.copy_waits(read)
    port.copy(device, host)
    assert not port.races
    port.drain()
    device[:128].sum()
    port.copy(device[128:], host[128:])
    assert not port.races, "other bytes are none of its business"
    port.copy(device[64:192], host[64:192])
    assert len(port.races) == 1 and "write by the copy lane" in port.races[0]


def test_order_is_transitive_and_in_lane_order_counts(port):
    device, host, done, then = port.empty(256), host_bytes(port), port.event(), port.event()
    port.copy(device, host)
    port.record_copy(done)
    port.compute_waits(done)
    port.record_compute(then)
    port.copy_waits(then)
    port.copy(device, host)
    port.copy(device, host)
    assert not port.races


def test_an_event_that_was_recorded_too_early_orders_nothing(port):
    device, host, done = port.empty(256), host_bytes(port), port.event()
    port.record_copy(done)
    port.copy(device, host)
    port.compute_waits(done)
    device.add_(1)
    assert len(port.races) == 1 and "write by the compute lane (aten::add_" in port.races[0]


def test_the_host_is_a_lane(port):
    device, host = port.empty(256), host_bytes(port)
    port.copy(device, host)
    host.fill_(2)
    assert len(port.races) == 1 and "write by the host" in port.races[0]
    port.races.clear()
    port.drain()
    host.fill_(3)
    host.sum()
    assert not port.races


def test_memory_given_back_while_a_copy_is_under_way_is_a_race(port):
    device, host = port.empty(256), host_bytes(port)
    port.copy(device, host)
    del device
    assert len(port.races) == 1 and "memory given back" in port.races[0]


def test_freed_memory_remembers_its_readers(port):
    device, host = port.empty(256), host_bytes(port)
    device.sum()
    address = device.data_ptr()
    del device
    device = port.empty(256)
    assert device.data_ptr() == address and bytes(device.numpy()[:4]) == bytes([POISON] * 4)
    port.copy(device, host)
    assert "not ordered after the write by the compute lane (memory given back)" in port.races[0]


def test_views_touch_nothing_and_operators_on_other_memory_do_not_count(port):
    device, host = port.empty(256), host_bytes(port)
    port.copy(device, host)
    device[16:32].view(torch.float32).view(2, 2).t().detach()
    torch.ones(8).sum()
    assert not port.races


def test_late_copies_arrive_when_they_are_waited_for_and_not_before():
    port = RacePort(1 << 16, late=True)
    device, host, done = port.empty(256), host_bytes(port), port.event()
    port.copy(device, host)
    port.record_copy(done)
    assert int(device[0]) == POISON
    port.compute_waits(done)
    assert int(device[0]) == 1


def test_the_device_has_an_end(port):
    with pytest.raises(torch.OutOfMemoryError):
        port.empty(1 << 17)
    kept = [port.empty(1 << 14) for _ in range(4)]
    with pytest.raises(torch.OutOfMemoryError):
        port.empty(1)
    del kept[1:3]
    assert port.empty(1 << 15).numel() == 1 << 15 and port.peak_bytes == 1 << 16


def test_lanes_have_names():
    assert (COMPUTE, COPY) == (1, 2)
