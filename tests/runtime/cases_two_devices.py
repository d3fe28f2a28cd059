"""Two simulated devices. Run by test_two_devices.py in a process of its own, for a process has its number once."""

import copy
import threading

import pytest
import torch
from torch import nn

from offload_core.runtime import attach
from offload_core.runtime.layers.patched_layers import Change
from tests.support import simdev

MIB = 2**20
SLOW_LINK = 300e6
DEVICES = ("npu:0", "npu:1")


@pytest.fixture
def npu():
    module = simdev.load()
    module.set_device(0)
    for index in range(2):
        module.synchronize(index)
    module.configure(mb=256, bandwidth=0, poison=True, race=True)
    module.empty_cache()
    module.reset_stats()
    yield module
    assert module.stats()["races"] == 0, module.stats()["race_message"]
    assert torch.accelerator.current_device_index() == 0, "another device was left current"
    module.configure(race=False, bandwidth=0)


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
