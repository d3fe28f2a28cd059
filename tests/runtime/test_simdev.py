"""The simulated accelerator itself: if it were wrong, every test that stands on it would prove nothing."""

import pytest
import torch

from tests.support import simdev

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")

MIB = 2**20
SLOW = 200e6  # bytes per second: 1 MiB takes 5 ms


@pytest.fixture
def npu():
    module = simdev.load()
    module.synchronize()
    module.configure(mb=256, bandwidth=0, poison=True, race=True)
    module.empty_cache()
    module.reset_stats()
    yield module
    module.synchronize()
    module.configure(mb=8192, bandwidth=0, race=False)


def pinned(count: int = MIB, value: int = 7) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.uint8).pin_memory()


def test_computes_as_the_cpu_does(npu):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 8), torch.randn(2, 8)
    expected = layer(x)
    assert torch.equal(layer.to("npu")(x.to("npu")).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_convolution_accumulates_in_32_bits(npu, dtype):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv3d(8, 8, 3, padding=1), torch.randn(1, 8, 3, 6, 6).to(dtype)
    layer = layer.to(dtype)
    expected = torch.nn.functional.conv3d(x.float(), layer.weight.float(), layer.bias.float(), padding=1).to(dtype)
    assert torch.equal(layer.to("npu")(x.to("npu")).cpu(), expected)


@pytest.mark.parametrize("other", ["weight", "bias"])
def test_a_convolution_refuses_two_types(npu, other):
    given = {"weight": torch.ones(1, 1, 1, 1, device="npu"), "bias": torch.ones(1, device="npu")}
    given[other] = given[other].bfloat16()
    with pytest.raises(RuntimeError, match=f"{other} type"):
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3, device="npu"), **given)


def test_memory_limit_and_poison(npu):
    used = npu.stats()["used"]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(300 * MIB, dtype=torch.uint8, device="npu")
    assert torch.isnan(torch.empty(16, device="npu").cpu()).all()
    assert npu.stats()["used"] == used


def test_mixing_devices_is_refused(npu):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(4, device="npu") + torch.ones(4)


def test_an_async_copy_is_late_and_an_event_orders_it(npu):
    source, target = pinned(), torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()  # the zeros are a write of their own, on the default stream
    npu.configure(bandwidth=SLOW)
    stream, done = torch.Stream(device="npu"), torch.Event(device="npu")
    before = npu.stats()
    with npu.stream(stream):
        target.copy_(source, non_blocking=True)
        done.record()
    assert not done.query(), "the copy was not asynchronous"
    torch.accelerator.current_stream().wait_event(done)
    assert int(target.sum()) == 7 * MIB
    after = npu.stats()
    assert after["async_copies"] - before["async_copies"] == 1
    assert after["host_syncs"] == before["host_syncs"] and after["races"] == 0


def test_a_copy_that_nobody_waits_for_is_a_race(npu):
    source, target = pinned(), torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        target.copy_(source, non_blocking=True)
    assert npu.stats()["races"] == 0
    target.add_(1)
    assert npu.stats()["races"] >= 1
    assert "unsynchronised" in npu.stats()["race_message"]


def test_overwriting_before_the_last_read_is_a_race_even_if_the_values_are_right(npu):
    arena = torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    stream, copied = torch.Stream(device="npu"), torch.Event(device="npu")
    arena.clone()  # a read on the default stream that the copy does not wait for
    with npu.stream(stream):
        arena.copy_(pinned(), non_blocking=True)
        copied.record()
    torch.accelerator.current_stream().wait_event(copied)
    assert npu.stats()["races"] == 1


def test_disjoint_ranges_of_one_arena_do_not_race(npu):
    arena = torch.zeros(2 * MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        arena[:MIB].copy_(pinned(), non_blocking=True)
    arena[MIB:].add_(1)
    assert npu.stats()["races"] == 0


def test_memory_freed_with_a_copy_in_flight_and_reused_is_a_race(npu):
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        target.copy_(pinned(), non_blocking=True)
    del target
    torch.zeros(MIB, dtype=torch.uint8, device="npu")
    assert npu.stats()["races"] == 1


def test_record_stream_keeps_memory_back(npu):
    stream = torch.Stream(device="npu")
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(stream):
        target.copy_(pinned(), non_blocking=True)
    target.record_stream(stream)
    del target
    torch.zeros(MIB, dtype=torch.uint8, device="npu")
    assert npu.stats()["races"] == 0


def test_every_kind_of_host_wait_is_counted(npu):
    x, event = torch.ones(4, device="npu"), torch.Event(device="npu")
    npu.reset_stats()
    event.record()
    event.synchronize()
    torch.accelerator.current_stream().synchronize()
    npu.synchronize()
    x.sum().item()
    x.cpu()
    counted = npu.stats()
    waits = ("event_syncs", "stream_syncs", "device_syncs", "item_syncs", "blocking_copies")
    assert [counted[kind] for kind in waits] == [1, 1, 1, 1, 1]
    assert counted["d2h_bytes"] == 16


def test_kernels_count_no_traffic_and_no_waits(npu):
    x = torch.randn(64, 64, device="npu")
    npu.reset_stats()
    for _ in range(3):
        x = (x @ x).softmax(-1)
    counted = npu.stats()
    assert counted["kernels"] >= 6
    assert counted["h2d_bytes"] == counted["d2h_bytes"] == counted["host_syncs"] == counted["blocking_copies"] == 0


def test_registered_host_memory_is_pinned_and_overlaps_are_refused(npu):
    memory = torch.zeros(4 * MIB, dtype=torch.uint8)
    assert npu.host_register(memory.data_ptr(), MIB) == 0
    assert npu.host_register(memory.data_ptr() + MIB // 2, MIB) != 0
    assert memory.is_pinned()
    assert npu.host_unregister(memory.data_ptr()) == 0
    assert not memory.is_pinned()
