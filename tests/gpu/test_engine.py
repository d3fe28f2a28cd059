"""The engine on a real device: same bits, bounded memory, nothing allocated and nobody waiting in steady state."""

import pytest
import torch
from torch import nn

from offload_core.errors import BudgetError
from offload_core.runtime import attach
from tests.gpu.device import device

WIDTH = 512 if device.simulated else 4096
DTYPE = torch.float32 if device.simulated else torch.bfloat16
BLOCKS = 12
ROWS = 16 if device.simulated else 512
ROUNDING = 512 * (BLOCKS + 2)  # the allocator hands out multiples of 512 bytes
STEADY_AFTER = 3  # passes: one to record, one to settle, one to be sure


class Block(nn.Module):
    """Two matrices that move, a norm that stays; `repeats` turns the arithmetic up without adding bytes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, dtype=DTYPE)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, dtype=DTYPE)
        self.down = nn.Linear(2 * WIDTH, WIDTH, dtype=DTYPE)

    def forward(self, x, repeats=1):
        for _ in range(repeats):
            x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(64, WIDTH, dtype=DTYPE)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.leave = nn.Linear(WIDTH, 64, dtype=DTYPE)

    def forward(self, x, repeats=1):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, repeats)
        return self.leave(x)


@pytest.fixture
def model():
    return Model().requires_grad_(False).eval()


@pytest.fixture
def x():
    return torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(1)).to(device.name, DTYPE)


def total_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def smallest_budget(model):
    with pytest.raises(BudgetError) as caught:
        attach(model, device=device.name, budget_bytes=1)
    return caught.value.smallest_bytes


def ladder(model):
    """Budgets from the smallest to nearly everything."""
    smallest, total = smallest_budget(model), total_bytes(model)
    return [smallest + (total - smallest) * step // 4 for step in range(4)]


def resident_output(model, x, **options):
    model.to(device.name)
    output = model(x, **options).cpu()
    model.to("cpu")
    return output


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
    device.module.synchronize()
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
            device.module.synchronize()
            peaks.append(device.peak() - start)
        assert peaks[-1] <= budget + activations + ROUNDING
        assert device.fresh_memory() <= start, "memory was left behind"
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def test_steady_state_allocates_nothing_and_waits_for_nothing(model, x):
    model.to(device.name)
    model(x)
    before = device.allocations()
    model(x)
    own = device.allocations() - before
    model.to("cpu")
    with attach(model, device=device.name, passes=16) as attachment:
        for _ in range(STEADY_AFTER):
            model(x)
        device.module.synchronize()
        counters = attachment.controller.counters
        before, went_to_driver, copies = device.allocations(), device.segments(), counters.copies
        with device.no_host_sync():
            for _ in range(8):
                model(x)
        assert device.allocations() - before == 8 * own, "the engine allocated in steady state"
        assert device.segments() == went_to_driver
        assert counters.copies - copies == 8 * len(attachment.plan.streamed)
        assert counters.demand_loads <= BLOCKS


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
    x = torch.randn(2048, 64, device=device.name, dtype=DTYPE)
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
        device.module.synchronize()
        model(x)
        counters = attachment.controller.counters
        assert counters.timed_visits > 0 and counters.compute_ns > 0 and counters.copy_ns > 0
