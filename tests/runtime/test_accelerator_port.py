"""The accelerator port and the engine on the simulated accelerator: really late copies, counted host waits, pins."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

from offload_core.runtime import DeviceQueue, OffloadController, discover, port_for
from offload_core.runtime.device.accelerator_port import AcceleratorPort, SynchronousPort, page_aligned_bytes
from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.host.host_parameter import HostParameter
from tests.runtime.world import hand_plan
from tests.support import simdev
from tests.support.tiny_torch_models import DIM, Model

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
MIB = 2**20


class Loaded:
    """A toy model under offload on the simulated accelerator, and its twin that is there whole."""

    def __init__(self, kilobytes, ring_bytes, residents=(), exotic=()):
        self.model = Model(kilobytes, exotic)
        self.twin = copy.deepcopy(self.model).to("npu")
        self.queue = DeviceQueue(port_for("npu"))
        self.controller = OffloadController(self.model, self.queue, discovery=discover(self.model, min_layer_bytes=1))
        self.controller.load(hand_plan(self.controller, ring_bytes, residents))
        self.x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3)).to("npu")

    def run(self):
        with torch.no_grad():
            assert torch.equal(self.model(self.x).cpu(), self.twin(self.x).cpu())

    def close(self):
        self.controller.detach()
        self.queue.close()


@pytest.fixture
def loaded(npu):
    kept = []

    def make(*args, **options):
        kept.append(Loaded(*args, **options))
        return kept[-1]

    yield make
    for one in kept:
        one.close()


def test_a_copy_from_pinned_memory_does_not_keep_the_host(npu):
    port = port_for("npu")
    assert isinstance(port, StagedPort) and isinstance(port.inner, AcceleratorPort)
    source, pinned = port.host_empty(4 * MIB, True)
    target, done = port.empty(4 * MIB), port.event()
    assert pinned and npu.stats()["pinned"] >= 4 * MIB
    npu.configure(bandwidth=40e6)  # 100 ms
    source.fill_(9)
    began = time.perf_counter()
    port.copy(target, source)
    port.record_copy(done)
    assert time.perf_counter() - began < 0.05 and not done.inner.query()
    port.compute_waits(done)
    assert int(target[-1]) == 9
    port.host_release(source)
    port.close()


def test_times_come_when_the_device_has_got_there(npu):
    port = port_for("npu")
    source, _ = port.host_empty(MIB, True)
    target, start, end = port.empty(MIB), port.event(timed=True), port.event(timed=True)
    npu.configure(bandwidth=50e6)  # 20 ms
    port.record_copy(start)
    port.copy(target, source)
    port.record_copy(end)
    assert port.elapsed_ns(start, end) is None
    port.drain()
    assert 10e6 < port.elapsed_ns(start, end) < 100e6
    port.host_release(source)
    port.close()


def test_nothing_is_waited_for_allocated_or_copied_back_in_a_steady_pass(npu, loaded):
    one = loaded([16] * 8, 3 * 16_384, residents=(2, 5))
    x, model = one.x, one.model
    with torch.no_grad():
        for _ in range(3):
            model(x)
        npu.synchronize()
        npu.reset_stats()
        # The toy blocks look at their tags, and so wait for the device themselves: once a block.
        for _ in range(5):
            model(x)
        counted = npu.stats()
    copied = one.controller.inventory.layers[0].bytes * 6 * 5
    looks = 8 * 5
    assert counted["h2d_bytes"] == copied and counted["async_copies"] == 6 * 5
    assert counted["stream_syncs"] + counted["event_syncs"] + counted["device_syncs"] == 0
    assert counted["item_syncs"] <= looks and counted["d2h_bytes"] <= looks * 8
    assert one.controller.counters.demand_loads == 0


def test_right_at_a_slow_link_under_poison(npu, loaded):
    one = loaded([16, 8, 32, 16, 4, 16], 48 * 1024, residents=(3,), exotic=(4,))
    npu.configure(bandwidth=10e6)
    for _ in range(3):
        one.run()


def test_memory_is_what_the_plan_says(npu, loaded):
    before = npu.stats()["used"]
    model = Model([64] * 6)
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, 128 * 1024, residents=(1,)))
    used = npu.stats()["used"] - before
    assert controller.device_bytes() <= used <= controller.device_bytes() + 4096, "the allocator rounds up"
    controller.detach()
    queue.close()
    assert npu.stats()["used"] == before


def test_pins_are_given_back(npu):
    before = npu.stats()["pinned"]
    model = Model([64] * 3)
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    assert controller.pinned_bytes() == sum(layer.bytes for layer in controller.inventory.layers)
    pageable = OffloadController(Model([64]), queue, pinned=False, discovery=discover(Model([64]), min_layer_bytes=1))
    assert pageable.pinned_bytes() == 0
    controller.detach()
    del controller, model
    queue.close()
    assert npu.stats()["pinned"] <= before + 256 * 1024, "torch may keep what it page-locked for the next time"


def test_pageable_masters_are_right_too(npu):
    model = Model([16] * 5)
    twin = copy.deepcopy(model).to("npu")
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, pinned=False, discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, 32 * 1024))
    x = torch.ones(1, DIM, device="npu")
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(x).cpu(), twin(x).cpu())
    controller.detach()
    queue.close()


# ---------------------------------------------------------------------- weights used outside their layer


@pytest.fixture
def weights(loaded):
    one = loaded([1, 1, 1], 2048)
    return one.model.blocks[1].weight, one.twin.blocks[1].weight, one


@pytest.mark.parametrize(
    "use",
    [
        lambda w, x: nn.functional.linear(x, w),
        lambda w, x: x @ w,
        lambda w, x: w @ x.t(),
        lambda w, x: w + x[:1],
        lambda w, x: x[:1] - w,
        lambda w, x: torch.cat([x, w]),
        lambda w, x: torch.where(x[:1] > 0, w, w),
        lambda w, x: torch.addmm(x[0], x, mat2=w),
        lambda w, x: torch.einsum("ij,kj->ik", x, w),
        lambda w, x: w.to(x.device) * 2,
        lambda w, x: w.to(x),
        lambda w, x: w.type_as(x),
        lambda w, x: x.clone().copy_(w[:2]),
        lambda w, x: x.mul(w.sum()),
    ],
)
def test_a_weight_used_outside_its_layer_gives_the_right_result(weights, use):
    mine, whole, one = weights
    assert type(mine) is HostParameter
    with torch.no_grad():
        assert torch.equal(use(mine, one.x).cpu(), use(whole, one.x).cpu())


def test_outside_touches_are_counted_and_the_host_is_not_meant(weights):
    mine, _, one = weights
    with torch.no_grad():
        mine.sum(), mine + 1, mine.shape, mine.clone(), mine.cpu()
        assert one.controller.outside_touches == {}
        mine + one.x[:1]
        assert one.controller.outside_touches == {"blocks.1": 1}


def test_what_is_made_of_a_weight_alone_is_an_ordinary_host_tensor(weights):
    """So mixing that with the device is torch's own error: loud, not wrong."""
    mine, _, one = weights
    with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
        one.x[:1] + (-mine)


def test_writes_are_not_lent_to(weights):
    mine, whole, one = weights
    before = mine.detach().clone()
    with torch.no_grad():
        row = one.x[:1]
        for write in (lambda: mine.add_(row), lambda: torch.add(mine, row, out=mine), lambda: _iadd(mine, row)):
            with pytest.raises(RuntimeError):
                write()
        assert torch.equal(mine.detach(), before), "half a write"
        mine.copy_(one.x[:1])
        assert torch.equal(mine[0], one.x[0].cpu())
        mine[1] = one.x[1]
        assert torch.equal(mine[1], one.x[1].cpu())
        mine.copy_(before)


def _iadd(target, value):
    target += value


# ---------------------------------------------------------------------- host memory


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 3 * MIB])
def test_host_memory_has_its_exact_size_and_pages_of_its_own(nbytes):
    one, two = page_aligned_bytes(nbytes), page_aligned_bytes(nbytes)
    assert one.numel() == nbytes and one.dtype == torch.uint8
    if nbytes:
        one.fill_(3)
        assert one.data_ptr() % 4096 == 0 and abs(one.data_ptr() - two.data_ptr()) >= nbytes


def test_memory_is_locked_in_place_in_pieces_at_its_exact_size(npu, monkeypatch):
    for name in ("_LOCK_BYTES", "_LOCK_LESS_BYTES"):
        monkeypatch.setattr(f"offload_core.runtime.device.accelerator_port.{name}", MIB)
    port = AcceleratorPort("npu")
    before = npu.stats()

    def grew(name: str) -> int:
        return npu.stats()[name] - before[name]

    buffer, pinned = port.host_empty(5 * MIB + 12, True)
    assert pinned and grew("pinned") == 5 * MIB + 12 and grew("registrations") == 6
    npu.configure(pin_limit_mb=npu.stats()["pinned"] / MIB + 5)
    try:
        more, pinned = port.host_empty(7 * MIB, True)
    finally:
        npu.configure(pin_limit_mb=-1)
    assert not pinned and more.numel() == 7 * MIB, "pageable is better than nothing"
    assert grew("pinned") == 5 * MIB + 12
    for released in (more, buffer, buffer):
        port.host_release(released)
    assert grew("pinned") == 0
    torch.ones(4, device="npu")  # raises what a mistaken call would have left behind


@pytest.mark.parametrize("allocator", ["native", "cudaMallocAsync"])
def test_memory_figures_come_from_what_both_allocators_give(npu, allocator):
    """`cudaMallocAsync` counts no allocations and no segments; free and total bytes it has."""
    npu.configure(allocator=allocator)
    try:
        held = torch.empty(3 * MIB, dtype=torch.uint8, device="npu")
        memory = AcceleratorPort("npu").memory()
        assert memory.total_bytes == 256 * MIB and memory.free_bytes <= memory.total_bytes - held.numel()
        assert memory.free_bytes == memory.total_bytes - npu.stats()["reserved"]
        assert bool(npu.memory_stats()["allocation.all.allocated"]) == (allocator == "native")
    finally:
        npu.configure(allocator="native")


def test_a_device_without_streams(npu):
    port = SynchronousPort("npu")
    target, source = port.empty(64), torch.full((64,), 5, dtype=torch.uint8)
    port.copy(target, source)
    assert int(target[0]) == 5 and port.elapsed_ns(port.event(), port.event()) is None
    memory = port.memory()
    assert 0 < memory.free_bytes <= memory.total_bytes
    model = Model([16] * 4)
    twin = copy.deepcopy(model).to("npu")
    queue = DeviceQueue(port)
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, 32 * 1024, residents=(0,)))
    x = torch.ones(1, DIM, device="npu")
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(x).cpu(), twin(x).cpu())
    controller.detach()
    queue.close()
