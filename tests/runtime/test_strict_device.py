"""What a real device refuses, or makes wait, and the simulated one does as well: page-locks, seams, streams, spinning.

Each test here failed on the engine before it was mended; the list is in docs/proofs.md.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from offload_core.planning.plan import HostTier, Plan
from offload_core.runtime import DeviceQueue, OffloadController, attach, discover, port_for
from offload_core.runtime.device import accelerator_port
from offload_core.runtime.device.device_port import is_unified
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.runtime.file_models import saved
from tests.runtime.test_out_of_memory import WIDE, Stack
from tests.runtime.world import hand_plan
from tests.support import simdev
from tests.support.lora_strength import strengthened
from tests.support.tiny_torch_models import DIM, Model, Wide

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
MIB = 2**20
ALLOCATORS = ("native", "cudaMallocAsync")


@pytest.fixture
def port(npu):
    made = port_for("npu")
    yield made
    made.close()


@pytest.fixture
def pieces(monkeypatch):
    """Copies in pieces of 64 KiB and page-locks of 256, so that a small layer has several of both."""
    monkeypatch.setattr(accelerator_port, "_PIECE_BYTES", 64 << 10)
    for name in ("_LOCK_BYTES", "_LOCK_LESS_BYTES"):
        monkeypatch.setattr(accelerator_port, name, 256 << 10)


@pytest.fixture(params=ALLOCATORS)
def allocator(npu, request):
    npu.configure(allocator=request.param)
    yield request.param
    npu.configure(allocator="native")


@pytest.fixture
def no_locks(npu, allocator):
    """Every page-lock is refused, as drivers do at their limit."""
    npu.configure(pin_limit_mb=npu.stats()["pinned"] / MIB)
    yield
    npu.configure(pin_limit_mb=-1)


def wide() -> tuple[Wide, torch.Tensor, torch.Tensor]:
    """A model, an input on the device, and the output of the whole model there."""
    torch.manual_seed(5)
    model, x = Wide().requires_grad_(False), torch.randn(2, 512).to("npu")
    return model, x, copy.deepcopy(model).to("npu")(x).cpu()


# ---------------------------------------------------------------------- registrations and pieces


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("nbytes", [64 << 10, (64 << 10) + 1, 256 << 10, (256 << 10) + 7, MIB + 12])
def test_a_buffer_over_several_page_locks_goes_there_and_back(npu, port, nbytes):
    source, pinned = port.host_empty(nbytes, True)
    returned, _ = port.host_empty(nbytes, True)
    source.copy_(torch.randint(0, 255, (nbytes,), dtype=torch.uint8))
    target, done = port.empty(nbytes), port.event()
    port.copy(target, source)
    port.record_copy(done)
    port.compute_waits(done)
    port.copy_back(returned, target, done)
    port.drain()
    assert pinned and torch.equal(returned, source)
    target.fill_(0)
    port.copy_on_compute(target, source)
    assert torch.equal(target.cpu(), source)
    for buffer in (source, returned):
        port.host_release(buffer)


@pytest.mark.usefixtures("pieces")
def test_a_layer_over_several_page_locks_streams(npu):
    model, x, expected = wide()
    with attach(model, device="npu", min_layer_bytes=1) as attachment, torch.no_grad():
        assert attachment.plan.streamed and attachment.controller.pinned_bytes() == 4 * MIB
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)


def test_page_locks_end_where_pieces_do():
    for most in (accelerator_port._LOCK_BYTES, accelerator_port._LOCK_LESS_BYTES):
        assert most % accelerator_port._PIECE_BYTES == 0
    assert 32 * MIB <= accelerator_port._PIECE_BYTES <= 64 * MIB


def test_a_layer_is_locked_by_one_registration_so_that_others_may_copy_from_it(npu, monkeypatch):
    """A weight used outside its layer, and the app that moves an unloaded model, copy without our pieces."""
    monkeypatch.setattr(accelerator_port, "_LOCK_LESS_BYTES", 256 << 10)
    model, x, expected = wide()
    with attach(model, device="npu", min_layer_bytes=1) as attachment, torch.no_grad():
        weight = model.blocks[0].weight
        assert torch.equal(nn.functional.linear(x, weight).cpu(), nn.functional.linear(x, weight.to("npu")).cpu())
        assert attachment.controller.outside_touches
        attachment.controller.unload()
        assert attachment.controller.pinned_bytes() == 4 * MIB
        assert torch.equal(copy.deepcopy(model).to("npu")(x).cpu(), expected)
        assert torch.equal(model.blocks[0].weight.to("npu", non_blocking=True).cpu(), model.blocks[0].weight)


def test_where_one_registration_is_refused_several_are_tried(npu, port, monkeypatch):
    runtime = npu.cudart()
    monkeypatch.setattr(accelerator_port, "_LOCK_LESS_BYTES", 256 << 10)

    class Busy:
        @staticmethod
        def cudaHostRegister(address, size, flags):  # noqa: N802 - named as cudart names it
            if size > 256 << 10:
                runtime.cudaHostRegister(address, -1, flags)  # refused, and leaves its error
                return 2
            return runtime.cudaHostRegister(address, size, flags)

        cudaHostUnregister = runtime.cudaHostUnregister  # noqa: N815

    monkeypatch.setattr(npu, "cudart", lambda: Busy)
    before = npu.stats()
    buffer, pinned = port.host_empty(MIB, True)
    assert pinned and npu.stats()["registrations"] - before["registrations"] == 4
    torch.ones(4, device="npu")
    port.host_release(buffer)
    assert npu.stats()["pinned"] == before["pinned"]


@pytest.mark.usefixtures("pieces")
def test_a_small_copy_of_another_stream_waits_for_a_piece_and_not_for_a_layer(npu, port):
    source, _ = port.host_empty(MIB, True)
    small, _ = port.host_empty(512, True)
    target, other, done = port.empty(MIB), port.empty(512), port.event()
    npu.synchronize()
    npu.configure(bandwidth=5e6)  # 13 ms a piece, 210 ms the layer
    port.copy(target, source)
    port.record_copy(done)
    stream, arrived = torch.Stream(device="npu"), torch.Event(device="npu")
    with npu.stream(stream):
        other.copy_(small, non_blocking=True)
        arrived.record()
    arrived.synchronize()
    assert not port.happened(done)
    port.drain()
    for buffer in (source, small):
        port.host_release(buffer)


# ---------------------------------------------------------------------- refused page-locks


@pytest.mark.usefixtures("no_locks")
def test_a_refused_lock_leaves_no_error_for_what_comes_next(npu, port):
    buffer, pinned = port.host_empty(MIB, True)
    assert not pinned and not port.host_pin(buffer)
    x = torch.empty(4, device="npu")
    x.fill_(1)
    assert torch.equal((x + 1).cpu(), torch.full((4,), 2.0))


@pytest.mark.usefixtures("pieces")
def test_a_lock_that_is_refused_on_the_way_is_undone(npu, port, allocator):
    before = npu.stats()["pinned"]
    npu.configure(pin_limit_mb=(before + 600_000) / MIB)
    try:
        buffer, pinned = port.host_empty(MIB, True)
        assert not pinned and buffer.numel() == MIB and npu.stats()["pinned"] == before
        torch.ones(4, device="npu")
    finally:
        npu.configure(pin_limit_mb=-1)


@pytest.mark.usefixtures("no_locks")
def test_without_page_locks_the_model_runs_through_the_staging_buffer(npu):
    model, x, expected = wide()
    with attach(model, device="npu", min_layer_bytes=1) as attachment, torch.no_grad():
        assert attachment.controller.pinned_bytes() == 0
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)


# ---------------------------------------------------------------------- what page-locking costs


@pytest.mark.parametrize("pinned", [True, False], ids=["page-locked", "pageable"])
def test_nothing_is_page_locked_in_a_pass_and_nothing_for_another_strength(npu, pinned):
    model, x, _ = wide()
    plain = copy.deepcopy(model)

    def locks() -> int:
        return npu.stats()["registrations"]

    with attach(model, device="npu", min_layer_bytes=1, pinned=pinned) as attachment, torch.no_grad():
        before = locks()
        model(x)
        for factor in (0.5, 0.25, 2.0):
            attachment.controller.set_changes(strengthened(model.blocks, factor))
            if factor != 0.5:
                assert locks() == before, "another strength uses what is there"
            before = locks()
            twin = copy.deepcopy(plain).to("npu")
            for block in twin.blocks:
                block.weight.mul_(factor)
            for _ in range(3):
                assert torch.equal(model(x), twin(x))
            assert locks() == before, "page-locked in a pass"
        assert attachment.controller.counters.copied_back == 3 * 4 * MIB
    held = npu.stats()
    assert held["faulted_bytes"] == 0, "locked before its pages were touched: by one core, under the driver's lock"


class Watched(Stack):
    """Notes what a pass begins with and ends with: registrations so far, and page-locked bytes."""

    def forward(self, x):
        self.began = _locks()
        y = super().forward(x)
        self.ended = _locks()
        return y


def _locks() -> tuple[int, int]:
    counted = torch.npu.stats()
    return counted["registrations"], counted["pinned"]


def with_tiers(plan: Plan, resident: HostTier, streamed: HostTier) -> Plan:
    tiers = {"resident": resident, "streamed": streamed}
    layers = tuple(replace(layer, host_tier=tiers[layer.placement]) for layer in plan.layers)
    return replace(plan, layers=layers)


@pytest.mark.parametrize("changed", [False, True], ids=["plain", "LoRA"])
@pytest.mark.parametrize(
    ("resident", "streamed", "afterwards"),
    [
        ("mapped", "pinned", "pinned"),
        ("pageable", "pinned", "pinned"),
        ("pinned", "pinned", "pageable"),
        ("pinned", "pinned", "mapped"),
    ],
)
def test_a_full_device_changes_no_page_lock_in_the_pass(npu, tmp_path, resident, streamed, afterwards, changed):
    """Residents become streamed in the middle of a pass, and the plan wants other host tiers for them."""
    model = Watched(WIDE, 6)
    saved(model, tmp_path / "weights.safetensors")
    twin = copy.deepcopy(model).to("npu")
    weights_from_file(model, tmp_path / "weights.safetensors")
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    controller.load(with_tiers(hand_plan(controller, 2 * MIB, residents=(0, 2, 4)), resident, streamed))
    less = hand_plan(controller, 2 * MIB, tiers=afterwards)
    controller.when_full(lambda plan, layer, too_late: less, lambda args, kwargs: True)
    if changed:
        controller.set_changes(strengthened(model.layers, 0.5, name="layers"))
        for layer in twin.layers:
            layer.weight.data.mul_(0.5)
    x = torch.randn(2, WIDE).to("npu")
    model.layers[3].failures = 1
    with torch.no_grad():
        expected = twin(x).cpu()
        for passes in range(4):
            assert torch.equal(model(x).cpu(), expected)
            assert model.ended == model.began, "page-locked or unlocked in a pass"
            assert controller.plan is less and controller.counters.retried_visits == 1
            if passes:
                assert {layer.host.tier for layer in controller.layers} == {afterwards}, "began before they were"
        if changed and afterwards == "pinned":
            assert all(layer.to_read is None for layer in controller.layers), "versions are not page-locked"
    controller.detach()
    queue.close()


# ---------------------------------------------------------------------- waiting


def test_the_host_waits_without_spinning(npu, port):
    source, _ = port.host_empty(MIB, True)
    target, done = port.empty(MIB), port.event()
    npu.synchronize()
    npu.configure(bandwidth=5e6)  # 210 ms
    for wait in (lambda: port.host_waits(done), port.drain):
        port.copy(target, source)
        port.record_copy(done)
        began, used = time.perf_counter(), time.thread_time()
        wait()
        took = time.perf_counter() - began
        assert took > 0.1 and time.thread_time() - used < took / 4
    port.host_release(source)


def test_a_resident_that_has_arrived_is_not_waited_for(npu):
    model = Model([16] * 6)
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, 2 * 16_384, residents=(1, 2, 4)))
    x = torch.ones(1, DIM, device="npu")

    def waits() -> int:
        before = npu.stats()["event_waits"]
        model(x)
        return npu.stats()["event_waits"] - before

    with torch.no_grad():
        for _ in range(3):  # two measured passes, and one that sees that the residents are there
            model(x)
        npu.synchronize()
        model(x)
        streamed = 3
        # Of each streamed visit one wait of the kernels and one of the copy at most; and one of the pass for the last.
        assert waits() <= 2 * streamed + 1
    controller.detach()
    queue.close()


# ---------------------------------------------------------------------- memory in segments


class Uneven(nn.Module):
    """Blocks of 1.5 to 2.75 MiB, which take 2 or 4 MiB of a device each."""

    def __init__(self, blocks: int = 10):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(512, 768 + 128 * (place % 6)) for place in range(blocks)])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))[:, :512]
        return x


@pytest.mark.parametrize("budget_mib", [10, 17, 24])
def test_a_budget_holds_for_what_is_taken_of_the_device(npu, allocator, budget_mib):
    torch.manual_seed(3)
    model, x = Uneven().requires_grad_(False), torch.randn(2, 512).to("npu")
    expected = copy.deepcopy(model).to("npu")(x).cpu()
    npu.synchronize()
    npu.empty_cache()
    npu.reset_stats()
    before, allocated = npu.stats()["reserved"], npu.stats()["used"]
    with attach(model, device="npu", budget_bytes=budget_mib * MIB, passes=20) as attachment, torch.no_grad():
        assert attachment.plan.streamed and attachment.plan.device_bytes <= budget_mib * MIB
        assert npu.stats()["reserved"] - before == attachment.controller.device_bytes() == attachment.plan.device_bytes
        counted = npu.stats()["used"] - allocated
        assert counted == attachment.plan.device_bytes, "to the app, which counts what is allocated, there is more free"
        for _ in range(4):  # with measured times it is planned anew
            assert torch.equal(model(x).cpu(), expected)
    activations = 64 << 10
    assert npu.stats()["reserved_peak"] - before <= budget_mib * MIB + activations
    npu.empty_cache()
    assert npu.stats()["reserved"] == before


def test_a_plan_that_takes_effect_does_not_come_on_top_of_the_one_before(npu, allocator):
    """What the allocator keeps of residents and rings that were given up goes back before others are taken."""
    model = Uneven().requires_grad_(False)
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    plans = [hand_plan(controller, 6 * MIB + 256, residents) for residents in ((1, 2, 4, 5), (0, 3), (1, 2, 7, 8), ())]
    plans += [hand_plan(controller, ring * MIB + 256, (0, 3)) for ring in (9, 4, 11)]
    npu.synchronize()
    npu.empty_cache()
    for last, plan in zip([plans[-1], *plans], plans):
        npu.reset_stats()
        before = npu.stats()["reserved"] - (0 if controller.plan is None else last.device_bytes)
        controller.load(plan)
        assert npu.stats()["reserved"] - before == plan.device_bytes == controller.device_bytes()
        assert npu.stats()["reserved_peak"] - before <= max(last.device_bytes, plan.device_bytes)
    controller.unload()
    assert npu.stats()["reserved"] == before, "all of it is the device's again"
    controller.detach()
    queue.close()


# ---------------------------------------------------------------------- compute streams of the caller's


def test_memory_that_another_stream_reads_is_given_back_after_it(npu):
    """Passes on a stream of the caller's, given back and used anew on the default stream: ordered without luck."""
    model, x, expected = wide()
    stream = torch.Stream(device="npu")
    attachment = attach(model, device="npu", min_layer_bytes=1, budget_bytes=3 * MIB + 4096, passes=8)
    assert attachment.plan.streamed and attachment.plan.residents
    npu.synchronize()
    with npu.stream(stream), torch.no_grad():
        outputs = [model(x) for _ in range(3)]
        torch.accelerator.current_stream().synchronize()
        assert all(torch.equal(output.cpu(), expected) for output in outputs)
        model(x)
    attachment.detach()
    for nbytes in (MIB, 2 * MIB, 3 * MIB):
        torch.zeros(nbytes, dtype=torch.uint8, device="npu")
    assert npu.stats()["races"] == 0, npu.stats()["race_message"]


def test_passes_on_two_streams_of_the_caller_s_come_one_after_the_other(npu):
    model, x, expected = wide()
    streams = [torch.Stream(device="npu") for _ in range(2)]
    with attach(model, device="npu", min_layer_bytes=1), torch.no_grad():
        npu.synchronize()
        outputs = []
        for turn in range(6):
            with npu.stream(streams[turn % 2]):
                outputs.append(model(x))
        npu.synchronize()
        assert all(torch.equal(output.cpu(), expected) for output in outputs)


# ---------------------------------------------------------------------- what a device says of itself


def test_an_integrated_device_keeps_its_tensors_in_the_host_s_memory(npu, monkeypatch):
    assert not is_unified(torch.device("npu"))
    assert is_unified(torch.device("mps")) and not is_unified(torch.device("cpu"))
    monkeypatch.setenv("SIMDEV_INTEGRATED", "1")
    assert is_unified(torch.device("npu"))
    model, x, expected = wide()
    with attach(model, device="npu", min_layer_bytes=1) as attachment, torch.no_grad():
        assert attachment.controller.pinned_bytes() == 0, "a second copy in the same memory"
        assert torch.equal(model(x).cpu(), expected)


@pytest.mark.parametrize("afterwards", ["mapped", "pageable"])
def test_what_others_copy_from_a_master_has_arrived_before_that_leaves_its_memory(npu, tmp_path, afterwards):
    """Code of others copies a page-locked weight to the device without waiting, on its own stream. Then the plan
    changes: the master is read from its file from now on, or unlocked."""
    model = Stack(WIDE, 6)
    saved(model, tmp_path / "weights.safetensors")
    weights_from_file(model, tmp_path / "weights.safetensors")
    queue = DeviceQueue(port_for("npu"))
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, 2 * MIB, tiers="pinned"))
    wanted = [layer.weight.detach().clone() for layer in model.layers]
    torch.npu.configure(bandwidth=50_000_000, race=True)
    copies = [layer.weight.to("npu", non_blocking=True) for layer in model.layers]
    controller.load(hand_plan(controller, 2 * MIB, tiers=afterwards))
    others = [torch.full_like(weight, 7.0) for weight in wanted for _ in range(3)]
    torch.npu.configure(bandwidth=0)
    assert all(torch.equal(copy.cpu(), weight) for copy, weight in zip(copies, wanted))
    assert torch.npu.stats()["races"] == 0, torch.npu.stats()["race_message"]
    del others
    controller.detach()
    queue.close()
