"""The engine on a real device, by cases: large layers, refused locks, other tiers, changed weights, other kernels."""

import shutil

import pytest
import safetensors.torch
import torch

from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.runtime import DeviceQueue, OffloadController, attach, discover, port_for
from offload_core.runtime.device import accelerator_port
from offload_core.runtime.device.accelerator_port import AcceleratorPort
from offload_core.runtime.layers.patched_layers import Change
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.gpu.device import device
from tests.gpu.models import ROWS, Fp8Model, Model, Wide, made, noise, resident_output

PASSES = 3
SMALL_PIECE = 1 << 18
"""Of copies on the simulated device, where a layer of a few MiB stands for one of over 1 GiB."""
WIDE = 1024 if device.simulated else 26_000  # 4 MiB of floats; 1.35 GB of bfloat16
FP8_WIDTH, FP8_ROWS = (640, 16) if device.simulated else (4096, 64)  # some processors multiply float8 very slowly


def few():
    """Half as many blocks: enough for an order and a ring."""
    return made(Model, 6)


def same_in_every_pass(model, x, expected, passes=PASSES):
    outputs = [model(x) for _ in range(passes)]
    return all(torch.equal(output.cpu(), expected) for output in outputs)


@pytest.fixture
def lock_bytes(monkeypatch):
    """The most that one registration locks here: less than a large layer has, so that there are several."""
    most = accelerator_port._LOCK_LESS_BYTES
    if device.simulated:
        most = 4 * SMALL_PIECE
        monkeypatch.setattr(accelerator_port, "_PIECE_BYTES", SMALL_PIECE)
    for name in ("_LOCK_BYTES", "_LOCK_LESS_BYTES"):
        monkeypatch.setattr(accelerator_port, name, most)
    return most


def wide_layers_stream(least_bytes):
    model, x = made(Wide, WIDE), noise(8, WIDE)
    expected = resident_output(model, x)
    with attach(model, device=device.name, passes=8) as attachment:
        layer = max(attachment.controller.layers, key=lambda one: one.nbytes)
        assert layer.nbytes > least_bytes and layer.host.pinned
        assert attachment.plan.streamed
        assert same_in_every_pass(model, x, expected)


def test_a_layer_over_one_gib():
    """It is page-locked by one registration, if the driver allows that."""
    wide_layers_stream(3 << 20 if device.simulated else 1 << 30)


def test_a_layer_over_one_gib_in_several_registrations(lock_bytes):
    """CUDA refuses a copy that spans two of them."""
    wide_layers_stream(lock_bytes)


def test_a_large_buffer_comes_back_whole(lock_bytes):
    nbytes = lock_bytes + 3 * accelerator_port._PIECE_BYTES + 4096
    port = AcceleratorPort(device.name)
    there, pinned = port.host_empty(nbytes, True)
    back, _ = port.host_empty(nbytes, True)
    there.view(torch.int64).copy_(torch.arange(nbytes // 8))
    on_device, done = port.empty(nbytes), port.event()
    port.copy(on_device, there)
    port.drain()
    port.copy_back(back, on_device, done)
    port.drain()
    assert pinned and torch.equal(there, back)
    port.host_release(there)
    port.host_release(back)


def test_a_refused_page_lock_leaves_no_error_behind():
    """CUDA keeps the error of a refusal for the next call that asks, which is not one of ours."""
    port = AcceleratorPort(device.name)
    buffer, pinned = port.host_empty(1 << 20, True)
    assert pinned
    assert not AcceleratorPort(device.name).host_pin(buffer), "locked twice"
    ones = torch.ones(1 << 20, device=device.name)
    assert float((ones + 1).sum()) == 2 << 20
    port.host_release(buffer)


def changes_of(model, factor):
    """Every matrix of two blocks times `factor`, as a patch set changes weights."""
    wanted = {}
    for name in ("blocks.1.up", "blocks.1.down", "blocks.4.up"):
        module = model.get_submodule(name)
        wanted[f"{name}.weight"] = Change((name, factor), lambda module=module: module.weight * factor)
    return wanted


def changed_output(model, x, factor):
    kept = {name: model.get_parameter(name).clone() for name in changes_of(model, factor)}
    model.to(device.name)
    for name in kept:
        model.get_parameter(name).data.mul_(factor)
    output = model(x).cpu()
    model.to("cpu")
    for name, value in kept.items():
        model.get_parameter(name).data.copy_(value)
    return output


def test_changed_weights_in_several_strengths():
    """A LoRA's way: the layer is changed where it lies, copied back once, and comes from that version afterwards."""
    model, x = few(), noise(ROWS, 64)
    plain = resident_output(model, x)
    wanted = {factor: changed_output(model, x, factor) for factor in (0.5, 1.5)}
    assert torch.equal(resident_output(model, x), plain)
    with attach(model, device=device.name, passes=16) as attachment:
        assert same_in_every_pass(model, x, plain)
        for factor in (0.5, 1.5, 0.5):
            attachment.controller.set_changes(changes_of(model, factor))
            assert same_in_every_pass(model, x, wanted[factor])
        assert attachment.controller.counters.copied_back >= 2
        attachment.controller.set_changes({})
        assert same_in_every_pass(model, x, plain)


def test_a_pageable_tier():
    model, x = few(), noise(ROWS, 64)
    expected = resident_output(model, x)
    with attach(model, device=device.name, pinned=False, passes=8) as attachment:
        assert not any(layer.host.pinned for layer in attachment.controller.layers)
        assert same_in_every_pass(model, x, expected)


def test_a_mapped_tier(tmp_path):
    """Layers that are in no host memory: they are read from their file in every pass."""
    model, x = few(), noise(ROWS, 64)
    expected = resident_output(model, x)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, path)
    with torch.device("meta"):
        model = Model(6)
    weights_from_file(model.requires_grad_(False), path)
    queue = DeviceQueue(port_for(device.name))
    controller = OffloadController(model, queue, discovery=discover(model))
    budget = controller.inventory.total_bytes // 2
    request = PlanRequest(controller.inventory, device.name, budget, pin_budget_bytes=0, copies_budget_bytes=0)
    try:
        controller.load(make_plan(request))
        assert {layer.host.tier for layer in controller.layers} == {"mapped"}
        assert same_in_every_pass(model, x, expected)
    finally:
        controller.detach()
        queue.close()


def test_two_components_on_one_ring():
    """Turn by turn, as an encoder and a diffusion model: what one has left in the ring is the other's to overwrite."""
    models, inputs = (few(), made(Model, 4)), (noise(ROWS, 64), noise(ROWS, 64, seed=2))
    expected = [resident_output(model, x) for model, x in zip(models, inputs)]
    queue = DeviceQueue(port_for(device.name))
    try:
        with attach(models[0], device=device.name, queue=queue) as first:
            with attach(models[1], device=device.name, queue=queue) as second:
                for _ in range(3):
                    for model, x, wanted in zip(models, inputs, expected):
                        assert same_in_every_pass(model, x, wanted, 2)
                assert queue.arena_bytes == max(first.plan.ring_bytes, second.plan.ring_bytes)
        assert queue.arena_bytes == 0
    finally:
        queue.close()


class FailsOnce:
    """A hook that runs out of device memory in earnest, once: it asks for more than there is."""

    def __init__(self):
        self.failed = False

    def __call__(self, module, args):
        if not self.failed:
            self.failed = True
            torch.empty(4 * device.module.mem_get_info()[1], dtype=torch.uint8, device=device.name)


def test_out_of_memory_is_retried_with_less():
    """The residents are given up for room, and the layer runs again."""
    model, x = few(), noise(ROWS, 64)
    expected = resident_output(model, x)
    budget = int(0.7 * sum(p.numel() * p.element_size() for p in model.parameters()))
    with attach(model, device=device.name, budget_bytes=budget, passes=16) as attachment:
        controller = attachment.controller
        assert same_in_every_pass(model, x, expected)
        before = attachment.plan.device_bytes
        controller.prefetcher.owner.may_repeat = lambda args, kwargs: True
        hook = model.blocks[3].down.register_forward_pre_hook(FailsOnce())
        assert torch.equal(model(x).cpu(), expected)
        hook.remove()
        assert controller.counters.retried_visits == 1
        assert attachment.plan.device_bytes < before
        assert same_in_every_pass(model, x, expected)


def test_float8_matrices_are_multiplied_as_they_are():
    """The kernel wants them aligned and as they were laid out: as bytes of a layer they still are."""
    if not device.simulated and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 matrix units on this device")
    model = made(Fp8Model, FP8_WIDTH)
    x = noise(FP8_ROWS, FP8_WIDTH).to(torch.bfloat16)
    expected = resident_output(model, x)
    assert bool(torch.isfinite(expected).all()) and float(expected.float().abs().max()) > 0
    with attach(model, device=device.name, passes=8) as attachment:
        assert attachment.plan.streamed
        assert same_in_every_pass(model, x, expected)


@pytest.mark.skipif(device.simulated, reason="no compiler makes kernels for the simulated device")
def test_blocks_compiled_by_inductor():
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("inductor's kernels need a C compiler to be launched")
    pytest.importorskip("triton")
    model, x = made(Model, 4), noise(ROWS, 64)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, dynamic=False)
    expected = resident_output(model, x)
    with attach(model, device=device.name, passes=8) as attachment:
        assert attachment.plan.streamed
        assert same_in_every_pass(model, x, expected)
