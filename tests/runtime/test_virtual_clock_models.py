"""The engine against the plan's prediction on real shapes: the test kit's tiny models, and the real ones in full size.

The engine runs the planner's plan on the virtual clock, on modules with layers of the true sizes. No byte is moved and
no memory touched, so 64 GB of Flux 2 are a matter of milliseconds. `full_size_layers.json` holds, per model, runs of
[count, bytes] in execution order, as `python -m bench.full_size --json` finds them in the app's own classes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from offload_core.files.model_files import read_models
from offload_core.files.model_shape import Compute, components_of, inventory_of
from offload_core.planning.check import check_plan
from offload_core.planning.cost_model import compute_times
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.plan import Plan
from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.engine import controller as controller_module
from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.host import host_layer
from tests.support.simulated import simulate_in_detail
from tests.support.virtual_clock import VirtualClockPort

RATE = 25e9
TINY = sorted((Path(__file__).parents[2] / ".dev" / "models").rglob("*.safetensors"))
FULL = json.loads((Path(__file__).parent / "full_size_layers.json").read_text())
BUDGET_SHARES = (0.0, 0.3, 0.7, 1.0)
"""Of the way from the smallest budget to everything resident."""


class Block(nn.Module):
    """A layer of `nbytes` that takes `compute_ns` on the port's compute lane."""

    def __init__(self, nbytes: int, compute_ns: int, port: VirtualClockPort) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(nbytes, dtype=torch.uint8), requires_grad=False)
        self.compute_ns, self.port = compute_ns, port

    def forward(self) -> None:
        self.port.compute(self.compute_ns, self.weight)


class Network(nn.Module):
    def __init__(self, inventory: Inventory, times: tuple[int, ...], port: VirtualClockPort) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(layer.bytes, ns, port) for layer, ns in zip(inventory.layers, times))
        self.visits = inventory.visits

    def forward(self) -> None:
        for index in self.visits:
            self.blocks[index]()


@pytest.fixture(autouse=True)
def weights_without_bytes(monkeypatch):
    """Masters get their true sizes, and are not filled."""
    monkeypatch.setattr(host_layer, "copy_span", lambda destination, source: None)


def plans(inventory: Inventory) -> Iterator[Plan]:
    """For one pass and for many, at several budgets."""
    low, high = smallest_budget(inventory), inventory.total_bytes
    for passes in (1, 20):
        for share in BUDGET_SHARES:
            budget = low + int((high - low) * share)
            request = PlanRequest(inventory, "cpu", budget, h2d_bytes_per_s=RATE, passes=passes)
            plan = make_plan(request)
            assert check_plan(plan, inventory, budget) == []
            yield plan


def run_on_the_clock(inventory: Inventory) -> int:
    """Run every plan of a component; returns how many were compared."""
    times, _ = compute_times(inventory)
    port = VirtualClockPort(RATE, moves_bytes=False)
    network = Network(inventory, times, port)
    controller = OffloadController(network, DeviceQueue(port), discovery=discover(network, min_layer_bytes=1))
    found = controller.inventory
    assert len(found.layers) == len(inventory.layers)
    # What is planned is what the engine found: its layers, in whole blocks of memory, with the shape's times and keeps.
    specs = tuple(
        replace(spec, compute_ns=ns, keep=asked.keep) for spec, ns, asked in zip(found.layers, times, inventory.layers)
    )
    compared = 0
    for plan in plans(replace(found, component=inventory.component, layers=specs, visits=inventory.visits)):
        compare(controller, network, plan, times, port)
        compared += 1
    return compared


def compare(controller, network, plan: Plan, times: tuple[int, ...], port: VirtualClockPort) -> None:
    controller.unload()
    controller.load(plan)
    port.copy_ns = port.compute_ns = port.host_ns = max(port.copy_ns, port.compute_ns)
    begin = port.compute_ns
    network()
    assert port.compute_ns - begin == pytest.approx(plan.predicted.first_pass_ns, rel=0.01)
    waits = port.host_waits
    for _ in range(simulate_in_detail(plan, times, RATE).passes_simulated):
        before, copied = port.compute_ns, port.copied_bytes
        network()
    assert port.compute_ns - before == pytest.approx(plan.predicted.pass_ns, rel=0.01)
    assert port.copied_bytes - copied == plan.predicted.bytes_per_pass
    assert port.compute_ns - before >= plan.predicted.bound_ns
    assert port.host_waits == waits


def uneven(inventory: Inventory, speed: float) -> Inventory:
    """With compute times by the cost model, on a device `speed` times as fast, no two layers alike."""
    times, _ = compute_times(inventory)
    chance = random.Random(len(inventory.layers))
    layers = tuple(
        replace(layer, compute_ns=round(ns / speed * chance.uniform(0.6, 1.6)))
        for layer, ns in zip(inventory.layers, times)
    )
    return replace(inventory, layers=layers)


@pytest.mark.skipif(not TINY, reason="no model files: dev.py test makes them")
@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_every_tiny_architecture_of_the_test_kit(path):
    (model,) = read_models([path])
    for component, tensors in components_of(model.tensors, path.parent.name).items():
        for tokens in (512, 8192):  # bound by the link, and by compute
            inventory = inventory_of(component, tensors, Compute(135.0, tokens))
            if not any(layer.keep is None for layer in inventory.layers):
                continue  # nothing to stream
            assert run_on_the_clock(inventory) == 2 * len(BUDGET_SHARES)


@pytest.mark.parametrize("name", FULL)
def test_the_real_models_in_full_size(name):
    sizes = [size for count, size in FULL[name]["layers"] for _ in range(count)]
    kinds = {"vae": "vae", "clip_vision": "image_encoder", "siglip": "image_encoder"}
    encoders = ("clip", "t5xxl", "umt5", "qwen25", "mistral", "gemma", "flux_text")
    kind = next((kind for start, kind in kinds.items() if name.startswith(start)), None)
    component = kind or ("text_encoder" if name.startswith(encoders) else "dit")
    layers = tuple(LayerSpec(f"blocks.{index}", size) for index, size in enumerate(sizes))
    for speed in (1.0, 4.0):
        assert run_on_the_clock(uneven(Inventory(component, layers, (), 0), speed)) == 2 * len(BUDGET_SHARES)


def full_waits(patch):
    """As `wait_stream` does: every layer waits for all copies so far."""
    enter = Prefetcher.enter

    def changed(self, layer):
        self.port.record_copy(self._fence)
        self.port.compute_waits(self._fence)
        enter(self, layer)

    patch.setattr(Prefetcher, "enter", changed)


def half_the_ring(patch):
    """Every streamed layer is taken to overlap every other one."""

    def changed(offsets):
        for layer in offsets:
            layer.overlaps = tuple(other for other in offsets if other is not layer)

    patch.setattr(controller_module, "link_overlaps", changed)


@pytest.mark.parametrize("fault", [full_waits, half_the_ring])
def test_an_engine_that_waits_too_much_is_caught_here_too(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        test_the_real_models_in_full_size("flux_dev")
