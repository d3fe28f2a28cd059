"""What the library tests share: a device that really copies, a resident twin to compare with, and a run at a budget."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from offload_core.errors import BudgetError
from offload_core.runtime import attach
from tests.support import simdev

DEVICES = [
    "cpu",
    pytest.param("npu", marks=pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")),
]
MIB = 2**20
SLOW = 2e9  # bytes per second: copies of these small layers take longer than the host needs to issue them


@contextmanager
def opened(device):
    """The device, with poisoned memory and race check where it has them; no race and nothing left over at the end."""
    if device == "cpu":
        yield device
        return
    npu = simdev.load()
    npu.synchronize()
    npu.empty_cache()
    npu.configure(mb=4096, bandwidth=SLOW, poison=True, race=True)
    npu.reset_stats()
    try:
        yield device
        npu.synchronize()
        counted = npu.stats()
        assert counted["races"] == 0, counted["race_message"]
    finally:
        npu.configure(mb=8192, bandwidth=0, race=False)


def resident_outputs(model, device, run):
    """What the model gives when all of it is on the device."""
    with torch.no_grad():
        twin = copy.deepcopy(model).to(device)
        return [value.cpu() for value in run(twin, device)]


def snapshot(model):
    """Everything that must be the same object, and hold the same bytes, after `detach`."""
    held = {}
    for name, module in model.named_modules():
        for place in (module._parameters, module._buffers):
            for key, tensor in place.items():
                if tensor is not None:
                    held[f"{name}.{key}"] = (tensor, type(tensor), tensor.detach().clone())
    return held, {name: dict(vars(module)).get("forward") for name, module in model.named_modules()}


def assert_restored(model, before):
    held, forwards = before
    now, forwards_now = snapshot(model)
    assert held.keys() == now.keys()
    for name, (tensor, kind, value) in held.items():
        assert now[name][0] is tensor, f"{name} is another object"
        assert type(tensor) is kind, f"{name} is a {type(tensor).__name__}"
        assert tensor.device.type == "cpu" and torch.equal(tensor.detach(), value), name
    assert forwards == forwards_now


def device_peak_bytes(device):
    return torch.get_device_module(device).max_memory_allocated() if device != "cpu" else None


def budgets(model, *, device, **options):
    """The smallest budget that works and two larger ones, short of everything."""
    try:
        attach(model, device=device, budget_bytes=1, **options).detach()
    except BudgetError as error:
        smallest = error.smallest_bytes
    else:
        raise AssertionError("a budget of one byte was accepted")
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return [smallest, smallest + (total - smallest) // 3, smallest + 2 * (total - smallest) // 3]


def check_bit_identical(model, device, run, *, passes=3, **options):
    """`run(model, device)` gives the resident twin's outputs at several budgets, in every pass, and leaves no trace."""
    model.requires_grad_(False).eval()
    expected = resident_outputs(model, device, run)
    before = snapshot(model)
    with torch.no_grad():
        for budget in budgets(model, device=device, **options):
            with attach(model, device=device, budget_bytes=budget, passes=passes, **options) as attachment:
                _run_passes(attachment, model, device, run, expected, passes, budget)
            assert_restored(model, before)
    return expected


def _run_passes(attachment, model, device, run, expected, passes, budget):
    counters = attachment.controller.counters
    assert attachment.plan.streamed, "nothing was streamed: the test proves nothing"
    demand_loads = None
    for _ in range(passes):
        got = [value.cpu() for value in run(model, device)]
        assert len(got) == len(expected)
        for one, other in zip(got, expected):
            assert torch.equal(one, other)
        if demand_loads is not None:
            assert counters.demand_loads == demand_loads, "a later run had to load on demand"
        demand_loads = counters.demand_loads
    assert attachment.controller.device_bytes() <= budget
    assert counters.unplaced_visits == 0
    # At larger budgets all the layers that a short walk visits may be residents.
    assert counters.prefetch_hits > 0 or attachment.plan.residents


def block(width, generator=None):
    """A small block with a norm, which stays on the device, and two matrices, which move."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.up = nn.Linear(width, 2 * width)
            self.down = nn.Linear(2 * width, width)

        def forward(self, x):
            return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

    return Block()
