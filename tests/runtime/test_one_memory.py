"""On the CPU ring and weights are one memory, and the budget is one of RAM: at every moment, planning again included.

Buffers are counted as they are handed out and as they go, so nothing depends on an allocator or on sampling times.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from offload_core.runtime import DeviceQueue, OffloadController, attach
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.layers.discovery import discover
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.runtime.world import hand_plan

WIDTH, BLOCKS = 512, 10
LAYER_BYTES = 4 * WIDTH * WIDTH


class CountingPort(ThreadedCpuPort):
    """Knows how many bytes of its buffers are alive, and were at most."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self.peak_bytes = 0

    def live_bytes(self) -> int:
        self._alive = [(ref, size) for ref, size in self._alive if not ref.expired()]
        return sum(size for _, size in self._alive)

    def _counted(self, buffer: torch.Tensor) -> torch.Tensor:
        self._alive.append((StorageWeakRef(buffer.untyped_storage()), buffer.numel()))
        self.peak_bytes = max(self.peak_bytes, self.live_bytes())
        return buffer

    def empty(self, nbytes: int) -> torch.Tensor:
        return self._counted(super().empty(nbytes))

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        buffer, locked = super().host_empty(nbytes, pinned)
        return self._counted(buffer), locked


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def write(path):
    twin = Stack().requires_grad_(False)
    safetensors.torch.save_file(twin.state_dict(), path)
    return twin


def from_file(path):
    with torch.device("meta"):
        model = Stack().requires_grad_(False)
    weights_from_file(model, path)
    return model


@pytest.fixture
def stack(tmp_path):
    path = tmp_path / "stack.safetensors"
    twin = write(path)
    return from_file(path), twin


@pytest.fixture
def port():
    port = CountingPort()
    yield port
    port.close()


X = torch.ones(2, WIDTH) / WIDTH


def test_memory_while_the_plan_changes_is_never_more_than_either_plan_takes(stack, port):
    model, twin = stack
    queue = DeviceQueue(port)
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1), pinned=False)

    def plan(ring_layers, residents):
        made = hand_plan(controller, ring_layers * LAYER_BYTES, residents)
        tiers = dict.fromkeys(residents, "pageable")
        layers = tuple(replace(a, host_tier=tiers.get(n, "mapped")) for n, a in enumerate(made.layers))
        return replace(made, layers=layers)

    plans = [(4, ()), (1, (0, 4, 8)), (3, (9,)), (2, (1, 2)), (4, ()), (1, (3, 5, 7)), (0, range(BLOCKS)), (2, (0, 6))]
    with torch.no_grad():
        expected = twin(X)
        controller.load(plan(*plans[0]))
        for ring, residents in plans[1:]:
            old, new = controller.plan, plan(ring, list(residents))
            port.peak_bytes = 0
            controller.load(new)
            assert torch.equal(model(X), expected)
            assert port.peak_bytes <= max(old.device_bytes, new.device_bytes)
            assert port.live_bytes() == new.device_bytes
        controller.detach()
    queue.close()


@pytest.mark.parametrize("passes", [1, 20])
@pytest.mark.parametrize("layers", [2, 4, 7])
def test_the_budget_holds_over_all_passes(stack, port, layers, passes):
    model, twin = stack
    queue = DeviceQueue(port)
    budget = layers * LAYER_BYTES
    asked = {"budget_bytes": budget, "passes": passes, "h2d_bytes_per_s": 1e6}  # so slow that residents pay
    with torch.no_grad(), attach(model, device="cpu", queue=queue, **asked) as attached:
        for _ in range(6):
            assert torch.equal(model(X), twin(X))
        assert attached.plan.residents
        assert port.live_bytes() == attached.plan.device_bytes
    assert 0 < port.peak_bytes <= budget
    queue.close()


def test_no_layer_moves_by_a_guess_of_an_accelerators_compute(stack):
    """A second pass is a reason to plan again where a guess is worth something: not before layers were measured."""
    model, twin = stack
    with torch.no_grad(), attach(model, device="cpu", budget_bytes=4 * LAYER_BYTES, h2d_bytes_per_s=1e6) as attached:
        first = attached.plan
        for _ in range(2):
            model(X)
            assert attached.plan is first and not first.residents
        assert torch.equal(model(X), twin(X))
        assert attached.plan.residents and attached.plan.decisions[-1].startswith("now that layers were measured")
