"""The engine on a real device: same bits, bounded memory, no allocation and no host wait in steady state."""

import pytest
import torch

from offload_core.errors import BudgetError
from offload_core.runtime import attach
from tests.gpu.device import device
from tests.gpu.models import BLOCKS, ROWS, Model, made, noise, resident_output, total_bytes

ROUNDING = (512 if device.simulated else 2 << 20) * (BLOCKS + 2)
"""What the allocator may add to each tensor: multiples of 512 bytes; on CUDA, segments of 2 MiB."""
STEADY_AFTER = 3  # passes: one to record, one to settle, one to be sure


@pytest.fixture(scope="module")
def made_once():
    return None if device.why_not() else made(Model)


@pytest.fixture
def model(made_once):
    """One model for all tests: each leaves it as it was found, and its weights on the host."""
    yield made_once
    made_once.to("cpu")


@pytest.fixture
def x():
    return noise(ROWS, 64)


def smallest_budget(model):
    with pytest.raises(BudgetError) as caught:
        attach(model, device=device.name, budget_bytes=1)
    return caught.value.smallest_bytes


def ladder(model):
    """Budgets from the smallest to nearly everything."""
    smallest, total = smallest_budget(model), total_bytes(model)
    return [smallest + (total - smallest) * step // 4 for step in range(4)]


def test_bit_identical_at_every_budget(model, x):
    expected = resident_output(model, x)
    for budget in ladder(model):
        with attach(model, device=device.name, budget_bytes=budget, passes=8) as attachment:
            outputs = [model(x) for _ in range(4)]  # all issued before anything is looked at
            assert all(torch.equal(output.cpu(), expected) for output in outputs)
            assert attachment.plan.streamed
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_bit_identical_on_a_stream_of_the_caller(model, x):
    expected = resident_output(model, x)
    device.synchronize()
    with attach(model, device=device.name), device.module.stream(device.module.Stream()):
        outputs = [model(x) for _ in range(4)]
        device.module.current_stream().synchronize()
        assert all(torch.equal(output.cpu(), expected) for output in outputs)


def test_memory_ladder(model, x):
    """Peak memory is within the budget and what the activations need, and follows it down."""
    model.to(device.name)
    start = device.fresh_memory()
    model(x)
    activations = device.peak() - start
    model.to("cpu")
    peaks = []
    for budget in reversed(ladder(model)):
        start = device.fresh_memory()
        with attach(model, device=device.name, budget_bytes=budget, passes=8):
            for _ in range(4):
                model(x)
            device.synchronize()
            peaks.append(device.peak() - start)
        assert peaks[-1] <= budget + activations + ROUNDING
        assert device.fresh_memory() <= start, "memory was left behind"
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def test_steady_state_waits_for_nothing(model, x):
    with attach(model, device=device.name, passes=16) as attachment:
        for _ in range(STEADY_AFTER):
            model(x)
        device.synchronize()
        counters = attachment.controller.counters
        copies = counters.copies
        with device.no_host_sync():
            for _ in range(8):
                model(x)
        assert counters.copies - copies == 8 * len(attachment.plan.streamed)
        assert counters.demand_loads <= BLOCKS


def test_steady_state_allocates_nothing(model, x):
    if not device.counts_allocations:
        pytest.skip(f"the allocator {device.allocator()} does not count")
    model.to(device.name)
    model(x)
    before = device.allocations()
    model(x)
    own = device.allocations() - before
    model.to("cpu")
    with attach(model, device=device.name, passes=16):
        for _ in range(STEADY_AFTER):
            model(x)
        device.synchronize()
        before, went_to_driver = device.allocations(), device.segments()
        for _ in range(8):
            model(x)
        assert device.allocations() - before == 8 * own, "the engine allocated in steady state"
        assert device.segments() == went_to_driver


def test_host_masters_are_pinned_at_their_exact_size(model):
    with attach(model, device=device.name) as attachment:
        for layer in attachment.controller.layers:
            # Torch knows what CUDA has registered; of the simulated device's registrations it is not told.
            assert layer.host.pinned and (device.simulated or layer.host.buffer.is_pinned())
            assert layer.host.buffer.numel() == layer.nbytes
    # The simulated device registers nothing in place: what torch's own allocator has pinned stays so while it lives.
    assert device.simulated or not any(p.is_pinned() for p in model.parameters())


def test_an_exception_leaves_nothing_in_flight(model, x):
    expected = resident_output(model, x)

    def explode(module, args):
        raise KeyboardInterrupt

    with attach(model, device=device.name):
        for position in (0, 5, BLOCKS - 1):
            hook = model.blocks[position].down.register_forward_pre_hook(explode)
            with pytest.raises(KeyboardInterrupt):
                model(x)
            hook.remove()
            assert torch.equal(model(x).cpu(), expected)


@pytest.mark.skipif(device.simulated, reason="kernels of the simulated device take no time of the device")
def test_copies_hide_behind_compute(model):
    """With as much compute as copying, a pass takes little more than the longer of the two, not their sum."""
    x = noise(2048, 64)
    with attach(model, device=device.name, passes=64) as attachment:
        moved = sum(attachment.plan.layers[i].bytes for i in attachment.plan.streamed)
        copy_s = moved / device.link_bytes_per_s(attachment.controller.queue.port)
    model.to(device.name)
    model(x)
    repeats = max(1, round(copy_s / device.seconds(lambda: model(x), 8)))
    compute_s = device.seconds(lambda: model(x, repeats), 8)
    model.to("cpu")
    with attach(model, device=device.name, passes=64):
        for _ in range(STEADY_AFTER):
            model(x, repeats)
        ours_s = device.seconds(lambda: model(x, repeats), 10)
    longer, shorter = max(copy_s, compute_s), min(copy_s, compute_s)
    hidden = (longer + shorter - ours_s) / shorter
    times = f"copy {copy_s * 1e3:.2f} ms, compute {compute_s * 1e3:.2f} ms, together {ours_s * 1e3:.2f} ms"
    print(f"{times}: {hidden:.0%} hidden")
    assert hidden > 0.7


@pytest.mark.skipif(device.simulated, reason="needs the device's own clock")
def test_the_engine_measures_stalls_and_compute(model, x):
    with attach(model, device=device.name, passes=16) as attachment:
        for _ in range(12):
            model(x)
        device.synchronize()
        model(x)
        counters = attachment.controller.counters
        assert counters.timed_visits > 0 and counters.compute_ns > 0 and counters.copy_ns > 0
