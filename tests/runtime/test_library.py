"""attach/detach on modules of our own: walks that are not a simple list, shared tensors, budgets, errors."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from offload_core.errors import BudgetError, OffloadError, StateError
from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.runtime import DeviceQueue, attach, port_for
from tests.runtime.library_kit import (
    DEVICES,
    assert_restored,
    block,
    check_bit_identical,
    device_peak_bytes,
    opened,
    resident_outputs,
    snapshot,
)

WIDTH = 256  # a block holds 1 MB in two matrices
SMALL = {"min_layer_bytes": 1 << 16}


class Stack(nn.Module):
    """Blocks walked in an order that is given per call."""

    def __init__(self, count=8):
        super().__init__()
        self.enter = nn.Linear(16, WIDTH)
        self.blocks = nn.ModuleList(block(WIDTH) for _ in range(count))
        self.leave = nn.Linear(WIDTH, 16)

    def forward(self, x, order=None, direct=False):
        x = self.enter(x)
        for index in range(len(self.blocks)) if order is None else order:
            x = self.blocks[index].forward(x) if direct else self.blocks[index](x)
        return self.leave(x)


@pytest.fixture(params=DEVICES)
def device(request):
    with opened(request.param) as name:
        yield name


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Stack()


def inputs(device):
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).to(device)


WALKS = {
    "forwards": list(range(8)),
    "reversed": list(reversed(range(8))),
    "skipped": [0, 1, 4, 5, 7],
    "repeated": [0, 1, 1, 1, 2, 3, 2, 3, 4, 5, 6, 7, 0],
    "one over and over": [3] * 6,
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("direct", [False, True], ids=["called", "forward called"])
def test_any_walk(device, model, walk, direct):
    def run(module, device):
        return [module(inputs(device), WALKS[walk], direct)]

    check_bit_identical(model, device, run, **SMALL)


def test_the_walk_changes_from_pass_to_pass(device, model):
    """A step cache skips blocks in some steps; two experts alternate. Slower at most."""

    def run(module, device):
        return [module(inputs(device), walk) for walk in (*WALKS.values(), *reversed(WALKS.values()))]

    expected = [value.cpu() for value in run(copy.deepcopy(model).to(device), device)]
    with attach(model, device=device, passes=4, **SMALL), torch.no_grad():
        for _ in range(2):
            assert all(torch.equal(one.cpu(), other) for one, other in zip(run(model, device), expected))


class Tangle(nn.Module):
    """Everything that may be shared: a tied matrix, a buffer used by all blocks, a block listed twice, a table."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, WIDTH)
        one = block(WIDTH)
        self.blocks = nn.ModuleList([*(block(WIDTH) for _ in range(5)), one, block(WIDTH), one])
        self.blocks[3].up.weight = self.blocks[1].up.weight
        scale = torch.linspace(0.5, 1.5, WIDTH)
        for child in self.blocks:
            child.register_buffer("scale", scale)
        self.register_buffer("seen", torch.zeros(WIDTH))
        self.head = nn.Linear(WIDTH, 100, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for child in self.blocks:
            x = child(x) * child.scale
        return self.head(x)


def test_tied_weights_shared_buffers_and_a_block_listed_twice(device):
    torch.manual_seed(0)

    def run(module, device):
        return [module(torch.arange(12, device=device).view(2, 6))]

    model = Tangle()
    check_bit_identical(model, device, run, **SMALL)
    assert model.head.weight is model.embed.weight
    assert model.blocks[3].up.weight is model.blocks[1].up.weight


def test_a_buffer_that_is_written_keeps_its_value(device, model):
    class Counting(Stack):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return super().forward(x)

    counting = Counting().eval()
    with attach(counting, device=device, **SMALL), torch.no_grad():
        for _ in range(3):
            counting(inputs(device))
    assert counting.count.device.type == "cpu" and counting.count.item() == 3


def test_weights_read_outside_their_layer_are_right(device, model):
    """Slow, never wrong: a block's matrix is used without calling the block."""

    def peek(module, device):
        with torch.no_grad():
            return nn.functional.linear(torch.ones(1, WIDTH, device=device), module.blocks[4].up.weight).cpu()

    expected = peek(copy.deepcopy(model).to(device), device)
    with attach(model, device=device, **SMALL) as attachment:
        assert torch.equal(peek(model, device), expected)
        if device != "cpu":
            assert attachment.controller.outside_touches == {"blocks.4": 1}


def test_an_exception_in_a_layer_leaves_the_next_run_whole(device, model):
    expected = copy.deepcopy(model).to(device)(inputs(device)).detach().cpu()
    before = snapshot(model)

    class Interrupt(BaseException):
        pass

    def explode(module, args):
        raise Interrupt

    with attach(model, device=device, **SMALL) as attachment, torch.no_grad():
        hook = model.blocks[5].up.register_forward_pre_hook(explode)
        with pytest.raises(Interrupt):
            model(inputs(device))
        hook.remove()
        assert not attachment.controller.is_running()
        for _ in range(2):
            assert torch.equal(model(inputs(device)).cpu(), expected)
    assert_restored(model, before)


def test_budgets_are_kept_on_the_device(model):
    with opened("cpu"):
        pass
    devices = [value for value in DEVICES if not isinstance(value, str)]
    name = devices[0].values[0]
    if devices[0].marks[0].args[0]:
        pytest.skip("no simulated accelerator")
    with opened(name) as device, torch.no_grad():
        x = inputs(device)
        npu = torch.get_device_module(device)
        peaks = []
        for budget in (4 << 20, 6 << 20, 8 << 20):
            npu.synchronize()
            npu.empty_cache()
            npu.reset_peak_memory_stats()
            start = npu.memory_allocated()
            with attach(model, device=device, budget_bytes=budget, passes=3, **SMALL):
                for _ in range(3):
                    model(x)
            activations = 64 << 10
            peaks.append(device_peak_bytes(device) - start)
            assert peaks[-1] <= budget + activations
        assert peaks == sorted(peaks)


def test_the_smallest_budget_is_named_and_works(device, model):
    before = snapshot(model)
    with pytest.raises(BudgetError) as caught:
        attach(model, device=device, budget_bytes=100_000, **SMALL)
    assert_restored(model, before)
    with attach(model, device=device, budget_bytes=caught.value.smallest_bytes, **SMALL):
        model(inputs(device))


def test_a_budget_larger_than_the_device_is_cut_and_said(device, model):
    with attach(model, device=device, budget_bytes=1 << 50, **SMALL) as attachment:
        if device != "cpu":
            assert any("was cut to" in line for line in attachment.plan.decisions)
        model(inputs(device))


def test_nothing_to_stream_is_resident_and_said(device):
    small = nn.Linear(4, 4)
    expected = small(torch.ones(1, 4)).detach()
    with attach(small, device=device) as attachment, torch.no_grad():
        assert torch.allclose(small(torch.ones(1, 4, device=device)).cpu(), expected)
        assert any("no repeated blocks" in line for line in attachment.plan.decisions)
        assert not attachment.plan.streamed


def test_two_modules_share_a_queue(device):
    torch.manual_seed(0)
    one, two = Stack(4), Stack(6)
    expected = [copy.deepcopy(m).to(device)(inputs(device)).detach().cpu() for m in (one, two)]
    queue = DeviceQueue(port_for(device))
    try:
        with attach(one, device=device, queue=queue, **SMALL) as first:
            with attach(two, device=device, queue=queue, **SMALL) as second, torch.no_grad():
                for _ in range(3):
                    assert torch.equal(one(inputs(device)).cpu(), expected[0])
                    assert torch.equal(two(inputs(device)).cpu(), expected[1])
                assert queue.arena_bytes == max(first.plan.ring_bytes, second.plan.ring_bytes)
        assert queue.arena_bytes == 0
    finally:
        queue.close()


def test_attaching_twice_is_refused(device, model):
    with attach(model, device=device, **SMALL):
        with pytest.raises(StateError, match="already"):
            attach(model, device=device, **SMALL)
        model(inputs(device))


def test_another_queue_than_the_device_is_refused(model):
    queue = DeviceQueue(port_for("cpu"))
    with pytest.raises(OffloadError, match="found a queue of cpu"):
        attach(model, device="meta", queue=queue)
    queue.close()


def test_detach_is_idempotent_and_the_plan_is_gone(device, model):
    attachment = attach(model, device=device, **SMALL)
    attachment.detach()
    attachment.detach()
    with pytest.raises(StateError, match="detached"):
        _ = attachment.plan
    assert model(inputs("cpu")).shape == (4, 16)


def test_a_detach_that_failed_can_be_called_again(device, model, monkeypatch):
    before = snapshot(model)
    attached = attach(model, device=device, budget_bytes=3 << 20, **SMALL)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attached.controller.queue, "lease", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attached.detach()
    attached.detach()
    assert attached.controller.layers == [], "the host masters are not released"
    assert_restored(model, before)


def test_a_copy_of_an_attached_module_is_an_ordinary_module(device, model):
    with attach(model, device=device, **SMALL), torch.no_grad():
        model(inputs(device))
        twin = copy.deepcopy(model.blocks[2])
        ours = model.blocks[2](torch.ones(1, WIDTH, device=device)).cpu()
    assert torch.equal(twin.to(device)(torch.ones(1, WIDTH, device=device)).detach().cpu(), ours)


@pytest.mark.parametrize("passes", [1, 20])
def test_planning_again_on_a_device_changes_no_bit_and_keeps_the_budget(device, model, passes):
    """Measured by the device's own events, or for a second pass; the answer is another plan, whatever is better."""
    x = inputs(device)

    def run(module, device):
        return [module(x)]

    expected = resident_outputs(model, device, run)
    budget = sum(p.numel() * p.element_size() for p in model.parameters()) * 2 // 3
    with torch.no_grad(), attach(model, device=device, budget_bytes=budget, passes=passes, **SMALL) as attachment:
        controller, first, asked = attachment.controller, attachment.plan, []

        def ask(plan, measured, link):
            asked.append((plan, measured, link))
            changed = replace(measured, layers=tuple(replace(layer, compute_ns=1) for layer in measured.layers))
            return make_plan(PlanRequest(changed, first.device, budget * 3 // 4, passes=20))

        (controller.replan_when_measured if passes > 1 else controller.replan_on_second_pass)(ask)
        for _ in range(40):
            assert torch.equal(run(model, device)[0].cpu(), expected[0])
            assert controller.device_bytes() <= budget
        ((plan, measured, _),) = asked
        assert plan is first and attachment.plan is not first
        assert passes == 1 or all(layer.compute_ns is not None for layer in measured.layers)
        assert attachment.plan.residents and controller.device_bytes() <= budget * 3 // 4
