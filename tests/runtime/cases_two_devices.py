"""Two simulated devices. Run by test_two_devices.py in a process of its own, for a process has its number once."""

import contextlib
import copy
import threading
import time

import pytest
import torch
from torch import nn

from offload_core.runtime import attach
from offload_core.runtime.layers.patched_layers import Change
from tests.support import simdev

MIB = 2**20
SLOW_LINK = 300e6
SLOW_PEERS = 20e6  # 1 MiB takes 52 ms
DEVICES = ("npu:0", "npu:1")


@pytest.fixture
def npu():
    module = simdev.load()
    module.set_device(0)
    for index in range(2):
        module.synchronize(index)
    module.configure(mb=256, bandwidth=0, poison=True, race=True, peer_bandwidth=0, peers=True)
    module.empty_cache()
    module.reset_stats()
    yield module
    assert module.stats()["races"] == 0, module.stats()["race_message"]
    assert torch.accelerator.current_device_index() == 0, "another device was left current"
    module.configure(race=False, bandwidth=0, peer_bandwidth=0, peers=True)


class Blocks(nn.Module):
    def __init__(self, count: int = 6, width: int = 600):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def blocks(seed: int) -> Blocks:
    torch.manual_seed(seed)
    return Blocks().requires_grad_(False)


def test_each_device_has_memory_of_its_own(npu):
    held = torch.empty(200 * MIB, dtype=torch.uint8, device="npu:1")
    assert npu.mem_get_info("npu:1")[0] == 56 * MIB
    assert npu.mem_get_info("npu:0")[0] == 256 * MIB
    other = torch.empty(200 * MIB, dtype=torch.uint8, device="npu:0")
    assert (held.device.index, other.device.index) == (1, 0)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(100 * MIB, dtype=torch.uint8, device="npu:1")
    del held
    npu.empty_cache()
    assert [one["reserved"] for one in npu.stats()["devices"]] == [200 * MIB, 0]


def test_operators_run_where_their_operands_are_and_refuse_to_mix(npu):
    one, other = torch.ones(4, device="npu:0"), torch.ones(4, device="npu:1")
    assert (other + other).device == other.device
    assert torch.accelerator.current_device_index() == 0
    with pytest.raises(RuntimeError, match="same device"):
        one + other
    assert torch.equal(one.to("npu:1") + other, other * 2)
    assert torch.equal((other * 3).to("npu:0").cpu(), torch.full((4,), 3.0))


def test_streams_belong_to_their_device(npu):
    stream = torch.Stream(device="npu:1")
    default = [torch.accelerator.current_stream(index) for index in range(2)]
    with stream:
        assert torch.accelerator.current_device_index() == 1
        assert torch.accelerator.current_stream(1) == stream
        assert torch.accelerator.current_stream(0) == default[0]
    assert [torch.accelerator.current_stream(index) for index in range(2)] == default
    assert default[0] != default[1]


def test_a_copy_on_one_device_that_the_other_does_not_wait_for_is_a_race(npu):
    target, source = (
        torch.zeros(MIB, dtype=torch.uint8, device="npu:1"),
        torch.zeros(MIB, dtype=torch.uint8).pin_memory(),
    )
    for index in range(2):
        npu.synchronize(index)
    with torch.Stream(device="npu:1"):
        target.copy_(source, non_blocking=True)
    torch.accelerator.current_stream(0).synchronize()  # the wrong one
    target.add_(1)
    assert npu.stats()["races"] >= 1
    npu.reset_stats()


# ---------------------------------------------------------------------- copies between the two


@pytest.fixture
def pair(npu):
    """A source of sevens on the first device and a target of zeros on the other. The copy between them is slow."""
    source = torch.full((MIB,), 7, dtype=torch.uint8, device="npu:0")
    target = torch.zeros(MIB, dtype=torch.uint8, device="npu:1")
    for index in range(2):
        npu.synchronize(index)
    npu.configure(peer_bandwidth=SLOW_PEERS)
    npu.reset_stats()
    yield source, target
    for index in range(2):
        npu.synchronize(index)


def copied(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = True) -> torch.Event:
    """Queue a copy on streams of its own on both devices. The event is recorded on the destination's."""
    stream = torch.Stream(device=target.device)
    with torch.Stream(device=source.device), stream:
        target.copy_(source, non_blocking=non_blocking)
    return stream.record_event()


@pytest.mark.parametrize("non_blocking", [True, False])
def test_a_copy_between_devices_is_late_and_an_event_orders_it(npu, pair, non_blocking):
    source, target = pair
    before = npu.stats()
    done = copied(target, source, non_blocking)
    assert not done.query(), "the host waited for the copy"
    torch.accelerator.current_stream(1).wait_event(done)
    after = npu.stats()
    waits = (
        "stream_syncs",
        "event_syncs",
        "device_syncs",
        "item_syncs",
        "event_waits",
        "blocking_copies",
        "async_copies",
    )
    assert [after[name] - before[name] for name in waits] == [0, 0, 0, 0, 1, 0, 0]
    assert after["event_records"] - before["event_records"] == 1
    assert after["peer_bytes"] == after["d2d_bytes"] == MIB
    assert int(target.sum()) == 7 * MIB
    assert done.query()


def test_use_of_a_copy_between_devices_without_a_wait_is_a_race(npu, pair):
    source, target = pair
    copied(target, source)
    target.add_(1)
    assert npu.stats()["races"] >= 1
    npu.reset_stats()


@pytest.mark.parametrize("waits", [True, False])
def test_overwriting_the_source_before_its_copy_ended_is_a_race(npu, pair, waits):
    source, target = pair
    done = copied(target, source)
    if waits:
        torch.accelerator.current_stream(0).wait_event(done)
    source.fill_(1)
    assert (npu.stats()["races"] == 0) == waits
    done.synchronize()
    if waits:
        assert int(target.sum()) == 7 * MIB
    npu.reset_stats()


@pytest.mark.parametrize("own_stream", [True, False])
def test_a_copy_between_devices_runs_on_the_current_stream_of_the_source(npu, pair, own_stream):
    """The source's compute stream is held up if it is that stream."""
    source, target = pair
    npu.configure(peer_bandwidth=SLOW_PEERS / 4)
    stream = torch.Stream(device="npu:1")
    with torch.Stream(device="npu:0") if own_stream else contextlib.nullcontext(), stream:
        target.copy_(source, non_blocking=True)
    assert torch.accelerator.current_stream(0).query() == own_stream
    assert torch.accelerator.current_stream(1).query()
    assert int(source.sum()) == 7 * MIB
    assert stream.query() != own_stream, "the kernel ran before what was queued on its stream"


def test_the_source_waits_for_the_current_stream_of_the_destination(npu, pair):
    source, target = pair
    npu.configure(bandwidth=SLOW_PEERS, peer_bandwidth=0)
    from_host = torch.full((MIB,), 3, dtype=torch.uint8).pin_memory()
    lane = torch.Stream(device="npu:0")
    target.copy_(from_host, non_blocking=True)
    with lane:
        target.copy_(source, non_blocking=True)
    assert not lane.query(), "the copy did not wait for what is queued on the destination"
    assert int(target.sum()) == 7 * MIB
    assert lane.query()


def test_copies_from_a_device_take_turns(npu, pair):
    source, target = pair
    began = time.perf_counter()
    halves = zip(target.chunk(2), source.chunk(2))
    for done in [copied(*half) for half in halves]:
        done.synchronize()
    assert time.perf_counter() - began >= MIB / SLOW_PEERS


@pytest.mark.parametrize(
    ("start", "step", "dtype"), [(0, 1, torch.float32), (1, 2, torch.uint8), (1, 2, torch.float32)]
)
def test_a_copy_to_another_layout_is_complete_at_once(npu, pair, start, step, dtype):
    source, _ = pair
    part = source[start::step]
    target = torch.zeros(part.numel(), dtype=dtype, device="npu:1")
    target.copy_(part, non_blocking=True)
    assert all(torch.accelerator.current_stream(index).query() for index in range(2))
    assert torch.equal(target.cpu(), torch.full((part.numel(),), 7, dtype=dtype))
    assert npu.stats()["peer_bytes"] == target.nbytes


def test_memory_that_is_freed_on_the_stream_of_its_copy_is_reused_after_it(npu, pair):
    source, _ = pair
    target = (source.float() * 3).to("npu:1")  # the product is freed while the copy is queued
    later = torch.zeros(MIB, device="npu:0")
    assert torch.equal(target.cpu(), torch.full((MIB,), 21.0))
    assert not later.cpu().any()


def test_a_copy_on_another_stream_does_not_keep_its_source(npu, pair):
    target = torch.zeros(MIB, device="npu:1")
    source = torch.ones(MIB, device="npu:0")
    npu.synchronize(0)
    npu.synchronize(1)
    done = copied(target, source)
    del source
    done.synchronize()
    assert torch.isnan(target.cpu()).all()


def test_devices_that_cannot_reach_each_other_copy_at_the_links_rate(npu, pair):
    source, target = pair
    npu.configure(peers=False, bandwidth=SLOW_PEERS, peer_bandwidth=0)
    began = time.perf_counter()
    done = copied(target, source)
    assert not done.query()
    done.synchronize()
    assert time.perf_counter() - began >= MIB / SLOW_PEERS
    assert int(target.sum()) == 7 * MIB
    assert npu.stats()["peer_bytes"] == MIB


def test_which_devices_can_reach_each_other(npu):
    reach = npu.can_device_access_peer
    assert reach(0, 1) is reach("npu:1", torch.device("npu:0")) is reach(None, 1) is reach("npu", 1) is True
    assert reach(0, 0) is reach(1, "npu:1") is reach(None, 0) is False
    npu.configure(peers=False)
    assert reach(0, 1) is reach(1, 0) is False
    npu.configure(peers=True)
    for device in (2, -1, "npu:2"):
        with pytest.raises(AssertionError, match="Invalid device id"):
            reach(device, 0)
        with pytest.raises(AssertionError, match="Invalid peer device id"):
            reach(0, device)
    for device in ("npu", None):
        with pytest.raises(ValueError, match="Expected a torch.device with a specified index or an integer"):
            reach(0, device)
    with pytest.raises(ValueError, match="Expected a npu device, but got: cpu"):
        reach("cpu", 1)


# ---------------------------------------------------------------------- the engine on both


@pytest.mark.parametrize("current", [0, 1])
def test_one_module_on_each_device_has_a_ring_and_a_queue_there(npu, current):
    """Run in turns, from a thread whose current device is only one of the two."""
    inputs = torch.randn(2, 600)
    models = [blocks(seed) for seed in range(2)]
    expected = [model(inputs) for model in models]
    npu.set_device(current)
    npu.configure(bandwidth=SLOW_LINK)
    streams = [torch.accelerator.current_stream(index) for index in range(2)]
    handles = [attach(model, device=device, budget_bytes=6 * MIB) for model, device in zip(models, DEVICES)]
    try:
        for _ in range(3):
            for model, device, reference in zip(models, DEVICES, expected):
                assert torch.equal(model(inputs.to(device)).cpu(), reference)
        for handle, stream in zip(handles, streams):
            counters = handle.controller.counters
            assert counters.prefetch_hits > counters.demand_loads
            # Compute on the copy stream would be right, and would never overlap.
            assert torch.accelerator.current_stream(stream.device.index) == stream
        assert torch.accelerator.current_device_index() == current
        used = [one["used"] for one in npu.stats()["devices"]]
        assert all(0 < nbytes <= 7 * MIB for nbytes in used), used
    finally:
        npu.set_device(0)
        for handle in handles:
            handle.detach()
    assert [one["used"] for one in npu.stats()["devices"]] == [0, 0]


@pytest.mark.parametrize("current", [0, 1])
def test_changed_weights_leave_each_device_its_compute_stream(npu, current):
    """A layer that is changed on its device is copied back on a stream of its own, which must not stay current."""
    inputs = torch.randn(2, 600)
    models = [blocks(seed) for seed in range(2)]
    expected = {strength: [strengthened(model, strength)(inputs) for model in models] for strength in (2.0, 3.0)}
    npu.set_device(current)
    npu.configure(bandwidth=SLOW_LINK)
    streams = [torch.accelerator.current_stream(index) for index in range(2)]
    handles = [attach(model, device=device, budget_bytes=6 * MIB) for model, device in zip(models, DEVICES)]
    try:
        for strength, references in expected.items():
            for model, handle in zip(models, handles):
                handle.controller.set_changes(
                    {f"blocks.{i}.weight": scaled(model.blocks[i], strength) for i in range(6)}
                )
            for _ in range(3):
                for model, device, reference in zip(models, DEVICES, references):
                    assert torch.equal(model(inputs.to(device)).cpu(), reference)
        for handle, stream in zip(handles, streams):
            assert handle.controller.counters.copied_back > 0
            assert torch.accelerator.current_stream(stream.device.index) == stream
        assert torch.accelerator.current_device_index() == current
    finally:
        npu.set_device(0)
        for handle in handles:
            handle.detach()


def strengthened(model: Blocks, strength: float) -> Blocks:
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.weight.mul_(strength)
    return twin


def scaled(module: nn.Module, strength: float) -> Change:
    return Change(("scaled", strength), lambda: module.weight * strength)


def test_both_devices_at_once_from_two_threads(npu):
    inputs = torch.randn(2, 600)
    models = [blocks(seed) for seed in range(2)]
    expected = [model(inputs) for model in models]
    npu.configure(bandwidth=SLOW_LINK)
    handles = [attach(model, device=device, budget_bytes=6 * MIB) for model, device in zip(models, DEVICES)]
    wrong = []

    def run(index: int):
        with torch.inference_mode():
            for _ in range(4):
                if not torch.equal(models[index](inputs.to(DEVICES[index])).cpu(), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.detach()
    assert wrong == []
