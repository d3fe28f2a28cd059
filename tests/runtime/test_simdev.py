"""The simulated accelerator itself: if it were wrong, every test that stands on it would prove nothing."""

import ctypes
import mmap
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support import simdev
from tests.support.devkit import paths

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")

MIB = 2**20
SLOW = 200e6  # bytes per second: 1 MiB takes 5 ms


@pytest.fixture
def npu():
    module = simdev.load()
    module.synchronize()
    module.configure(mb=256, bandwidth=0, poison=True, race=True)
    module.empty_cache()
    module.reset_stats()
    yield module
    module.synchronize()
    module.configure(mb=8192, bandwidth=0, race=False)


def pinned(count: int = MIB, value: int = 7) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.uint8).pin_memory()


def test_computes_as_the_cpu_does(npu):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(8, 8), torch.randn(2, 8)
    expected = layer(x)
    assert torch.equal(layer.to("npu")(x.to("npu")).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_convolution_accumulates_in_32_bits(npu, dtype):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv3d(8, 8, 3, padding=1), torch.randn(1, 8, 3, 6, 6).to(dtype)
    layer = layer.to(dtype)
    expected = torch.nn.functional.conv3d(x.float(), layer.weight.float(), layer.bias.float(), padding=1).to(dtype)
    assert torch.equal(layer.to("npu")(x.to("npu")).cpu(), expected)


PRODUCTS = {
    "mm": ((6, 300), (300, 5)),
    "bmm": ((2, 6, 300), (2, 300, 5)),
    "mv": ((6, 300), (300,)),
    "dot": ((300,), (300,)),
    "addmm": ((6, 5), (6, 300), (300, 5)),
    "addmv": ((6,), (6, 300), (300,)),
    "addbmm": ((6, 5), (2, 6, 300), (2, 300, 5)),
    "baddbmm": ((2, 6, 5), (2, 6, 300), (2, 300, 5)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_16_bit_matrix_product_accumulates_in_32_bits(npu, product, dtype):
    torch.manual_seed(0)
    operands = [torch.randn(shape).to(dtype) for shape in PRODUCTS[product]]
    run = getattr(torch, product)
    expected = run(*(operand.float() for operand in operands)).to(dtype)
    result = run(*(operand.to("npu") for operand in operands))
    assert (result.dtype, result.device.type) == (dtype, "npu")
    assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("other", [torch.float16, torch.float32])
def test_a_matrix_product_refuses_two_types(npu, other):
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(torch.ones(2, 2, device="npu", dtype=torch.bfloat16), torch.ones(2, 2, device="npu", dtype=other))


@pytest.mark.parametrize("other", ["weight", "bias"])
def test_a_convolution_refuses_two_types(npu, other):
    given = {"weight": torch.ones(1, 1, 1, 1, device="npu"), "bias": torch.ones(1, device="npu")}
    given[other] = given[other].bfloat16()
    with pytest.raises(RuntimeError, match=f"{other} type"):
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3, device="npu"), **given)


def test_memory_limit_and_poison(npu):
    used = npu.stats()["used"]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(300 * MIB, dtype=torch.uint8, device="npu")
    assert torch.isnan(torch.empty(16, device="npu").cpu()).all()
    assert npu.stats()["used"] == used


def test_mixing_devices_is_refused(npu):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(4, device="npu") + torch.ones(4)


def test_an_async_copy_is_late_and_an_event_orders_it(npu):
    source, target = pinned(), torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()  # the zeros are a write of their own, on the default stream
    npu.configure(bandwidth=SLOW)
    stream, done = torch.Stream(device="npu"), torch.Event(device="npu")
    before = npu.stats()
    with npu.stream(stream):
        target.copy_(source, non_blocking=True)
        done.record()
    assert not done.query(), "the copy was not asynchronous"
    torch.accelerator.current_stream().wait_event(done)
    assert int(target.sum()) == 7 * MIB
    after = npu.stats()
    assert after["async_copies"] - before["async_copies"] == 1
    assert after["host_syncs"] == before["host_syncs"] and after["races"] == 0


def test_copies_go_on_while_the_host_keeps_the_interpreter_to_itself(npu):
    sources, target = [pinned() for _ in range(8)], torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    npu.configure(bandwidth=SLOW)
    stream, done = torch.Stream(device="npu"), torch.Event(device="npu")
    with npu.stream(stream):
        for source in sources:
            target.copy_(source, non_blocking=True)
        done.record()
    ctypes.PyDLL(None).usleep(200_000)  # unlike with `CDLL`, no other thread gets the interpreter's lock
    assert done.query()


def test_use_of_a_copy_without_a_wait_is_a_race(npu):
    source, target = pinned(), torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        target.copy_(source, non_blocking=True)
    assert npu.stats()["races"] == 0
    target.add_(1)
    assert npu.stats()["races"] >= 1
    assert "unsynchronised" in npu.stats()["race_message"]


def test_overwriting_before_the_last_read_is_a_race_even_if_the_values_are_right(npu):
    arena = torch.zeros(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    stream, copied = torch.Stream(device="npu"), torch.Event(device="npu")
    arena.clone()  # a read on the default stream that the copy does not wait for
    with npu.stream(stream):
        arena.copy_(pinned(), non_blocking=True)
        copied.record()
    torch.accelerator.current_stream().wait_event(copied)
    assert npu.stats()["races"] == 1


def test_disjoint_ranges_of_one_arena_do_not_race(npu):
    arena = torch.zeros(2 * MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        arena[:MIB].copy_(pinned(), non_blocking=True)
    arena[MIB:].add_(1)
    assert npu.stats()["races"] == 0


def test_memory_freed_with_a_copy_in_flight_and_reused_is_a_race(npu):
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(torch.Stream(device="npu")):
        target.copy_(pinned(), non_blocking=True)
    del target
    torch.zeros(MIB, dtype=torch.uint8, device="npu")
    assert npu.stats()["races"] == 1


def test_record_stream_keeps_memory_back(npu):
    stream = torch.Stream(device="npu")
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    npu.synchronize()
    with npu.stream(stream):
        target.copy_(pinned(), non_blocking=True)
    target.record_stream(stream)
    del target
    torch.zeros(MIB, dtype=torch.uint8, device="npu")
    assert npu.stats()["races"] == 0


def test_every_kind_of_host_wait_is_counted(npu):
    x, event = torch.ones(4, device="npu"), torch.Event(device="npu")
    npu.reset_stats()
    event.record()
    event.synchronize()
    torch.accelerator.current_stream().synchronize()
    npu.synchronize()
    x.sum().item()
    x.cpu()
    counted = npu.stats()
    waits = ("event_syncs", "stream_syncs", "device_syncs", "item_syncs", "blocking_copies")
    assert [counted[kind] for kind in waits] == [1, 1, 1, 1, 1]
    assert counted["d2h_bytes"] == 16


def test_kernels_count_no_traffic_and_no_waits(npu):
    x = torch.randn(64, 64, device="npu")
    npu.reset_stats()
    for _ in range(3):
        x = (x @ x).softmax(-1)
    counted = npu.stats()
    assert counted["kernels"] >= 6
    assert counted["h2d_bytes"] == counted["d2h_bytes"] == counted["host_syncs"] == counted["blocking_copies"] == 0


# ---------------------------------------------------------------------- page-locks, as strict as CUDA's


def fresh(nbytes: int) -> torch.Tensor:
    """Host bytes of pages that were never touched."""
    return torch.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


class Locks:
    """Page-locks ranges by the runtime's calls, and unlocks what is left at the end."""

    def __init__(self, runtime):
        self.runtime, self.kept = runtime, {}

    def __call__(self, memory, start, end):
        code = self.runtime.cudaHostRegister(memory.data_ptr() + start, end - start, 0)
        if code == 0:
            self.kept[memory.data_ptr() + start] = memory
        return code

    def release(self, memory):
        self.kept.pop(memory.data_ptr(), None)
        return self.runtime.cudaHostUnregister(memory.data_ptr())


@pytest.fixture
def locked(npu):
    locks = Locks(npu.cudart())
    yield locks
    npu.synchronize()
    for address in locks.kept:
        locks.runtime.cudaHostUnregister(address)


def test_registered_host_memory_is_pinned_and_overlaps_are_refused(npu, locked):
    memory = torch.zeros(4 * MIB, dtype=torch.uint8)
    assert locked(memory, 0, MIB) == 0 and memory.is_pinned()
    assert locked(memory, MIB // 2, MIB) == 712
    with pytest.raises(RuntimeError, match="CUDA error.*already mapped"):
        torch.ones(4, device="npu")
    assert locked.release(memory) == 0 and not memory.is_pinned()
    assert locked.release(memory) == 713
    with pytest.raises(RuntimeError, match="CUDA error.*registered"):
        torch.ones(4, device="npu")


@pytest.mark.parametrize("allocator, first_to_tell", [("native", "launch"), ("cudaMallocAsync", "allocation")])
def test_a_refused_lock_is_told_once_by_what_comes_next_in_that_thread(npu, locked, allocator, first_to_tell):
    x = torch.ones(4, device="npu")
    npu.configure(allocator=allocator, pin_limit_mb=npu.stats()["pinned"] / MIB)
    try:
        assert locked(fresh(MIB), 0, MIB) == 2
        with ThreadPoolExecutor(1) as other:
            other.submit(x.add_, 1).result()
        if first_to_tell == "launch":
            torch.empty(MIB, dtype=torch.uint8, device="npu")
        with pytest.raises(RuntimeError, match="out of memory"):
            x.add_(1) if first_to_tell == "launch" else torch.empty(4, device="npu")
        assert torch.equal(x.add_(1).cpu(), torch.full((4,), 3.0))
    finally:
        npu.configure(allocator="native", pin_limit_mb=-1)


def test_the_runtime_offers_no_more_than_torch_s_does(npu):
    """Torch's binding of the CUDA runtime has no `cudaGetLastError`; a double that had it once hid a fault from us."""
    offered = {name for name in dir(npu.cudart()) if name.startswith("cuda")}
    assert offered == {"cudaHostRegister", "cudaHostUnregister"}


@pytest.mark.parametrize("non_blocking", [True, False])
@pytest.mark.parametrize("to_device", [True, False])
def test_a_copy_may_not_span_the_end_of_a_registration(npu, locked, non_blocking, to_device):
    memory, target = torch.zeros(4 * MIB, dtype=torch.uint8), torch.zeros(4 * MIB, dtype=torch.uint8, device="npu")
    assert locked(memory, 0, MIB) == locked(memory, MIB, 3 * MIB) == 0

    def copy(start, end):
        host, device = memory[start:end], target[start:end]
        device.copy_(host, non_blocking=non_blocking) if to_device else host.copy_(device, non_blocking=non_blocking)

    for start, end in ((0, MIB), (MIB, 3 * MIB), (3 * MIB, 4 * MIB)):
        copy(start, end)
    for start, end in ((MIB - 1, MIB + 1), (0, 4 * MIB), (3 * MIB - 1, 3 * MIB + 1)):
        with pytest.raises(RuntimeError, match="invalid argument"):
            copy(start, end)


def test_page_locking_takes_time_by_bytes_and_more_where_pages_were_never_touched(npu, locked):
    touched, untouched = fresh(4 * MIB).fill_(1), fresh(4 * MIB)
    npu.configure(pin_bandwidth=40 * MIB, fault_bandwidth=20 * MIB)  # 100 ms, and 200 more
    try:
        npu.reset_stats()
        began = time.perf_counter()
        assert locked(touched, 0, 4 * MIB) == 0
        middle = time.perf_counter()
        counted = npu.stats()
        assert middle - began >= 0.1 and counted["registered_bytes"] == 4 * MIB and counted["faulted_bytes"] == 0
        assert locked(untouched, 0, 4 * MIB) == 0
        assert time.perf_counter() - middle >= 0.3
        assert npu.stats()["faulted_bytes"] == 4 * MIB and npu.stats()["registrations"] == 2
    finally:
        npu.configure(pin_bandwidth=5e9, fault_bandwidth=2.5e9)


def test_a_host_that_waits_spins(npu):
    source, target, done = pinned(), torch.empty(MIB, dtype=torch.uint8, device="npu"), torch.Event(device="npu")
    npu.synchronize()
    npu.configure(bandwidth=10e6)  # 100 ms

    def keeps_asking() -> bool:
        target.copy_(source, non_blocking=True)
        done.record()
        began, before = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD)
        done.synchronize()
        after = resource.getrusage(resource.RUSAGE_THREAD)
        # On a busy machine it hands its core to others, and is there again at once: that is no sleep.
        return time.thread_time() - began > 0.005 or after.ru_nivcsw - before.ru_nivcsw > 20

    assert any(keeps_asking() for _ in range(5)), "waiting cost the processor nothing"


@pytest.mark.parametrize("allocator", ["native", "cudaMallocAsync"])
def test_memory_above_a_mebibyte_is_taken_in_segments_of_two(npu, allocator):
    npu.configure(allocator=allocator)
    try:
        npu.empty_cache()
        before = npu.stats()
        held = [torch.empty(nbytes, dtype=torch.uint8, device="npu") for nbytes in (MIB, MIB + 1, 2 * MIB, 5 * MIB)]
        after = npu.stats()
        assert after["reserved"] - before["reserved"] == (1 + 2 + 2 + 6) * MIB
        assert after["used"] - before["used"] == 9 * MIB + 512
        del held
        assert npu.stats()["reserved"] == after["reserved"], "kept for what comes next"
        npu.empty_cache()
        assert npu.stats()["reserved"] == before["reserved"]
    finally:
        npu.configure(allocator="native")


def test_copies_of_one_direction_take_turns_in_the_order_in_which_they_are_ready(npu):
    """A copy engine is not kept by one stream that has many pieces queued: another's copy comes after one of them."""
    target = torch.empty(2 * MIB, dtype=torch.uint8, device="npu")
    pieces, small = [pinned() for _ in range(8)], pinned(64)
    stream, other = torch.Stream(device="npu"), torch.Stream(device="npu")
    last, between = torch.Event(device="npu"), torch.Event(device="npu")
    npu.synchronize()
    npu.configure(bandwidth=50e6, race=False)  # 21 ms a piece
    with npu.stream(stream):
        for piece in pieces:
            target[:MIB].copy_(piece, non_blocking=True)
        last.record()
    with npu.stream(other):
        target[MIB : MIB + 64].copy_(small, non_blocking=True)
        between.record()
    between.synchronize()
    assert not last.query(), "it waited for all of the pieces"


# ---------------------------------------------------------------------- what queued copies hold

LIVES = 4
"""Processes a case: the crash that this is about came in about two of three."""

IN_FORKS = f"""
import os, sys
import torch
from offload_core.runtime import attach
from tests.support import simdev
from tests.support.tiny_torch_models import Wide

codes = []
for _ in range({LIVES}):
    child = os.fork()  # importing torch takes longer than all the rest
    if not child:
        break
    codes.append(os.waitpid(child, 0)[1])
else:
    sys.exit(f"ended by signal or code: {{codes}}" if any(codes) else 0)
"""

COPIES = """
npu = simdev.load()
npu.configure(bandwidth=200e6)
sources = [torch.frombuffer(bytearray(1 << 20), dtype=torch.uint8) for _ in range(64)]  # 5 ms each
target = torch.empty(1 << 20, dtype=torch.uint8, device="npu")
with npu.stream(torch.Stream(device="npu")):
    for source in sources:
        npu.cudart().cudaHostRegister(source.data_ptr(), 1 << 20, 0)
        if sys.argv[1] == "same layout":
            target.copy_(source, non_blocking=True)
        else:
            target.view(torch.int32).copy_(source[: 1 << 18], non_blocking=True)
del source, sources
"""

STREAMED = """
npu = simdev.load()
npu.configure(bandwidth=100e6)
model = Wide(12, 1024)
handle = attach(model, device="npu", budget_bytes=20_000_000)
with torch.inference_mode():
    model(torch.ones(1, 1024, device="npu"))
del handle, model
"""


@pytest.mark.parametrize(
    ("script", "how"),
    [(COPIES, "same layout"), (COPIES, "converted"), (STREAMED, "")],
    ids=["copies", "converting copies", "a streamed model"],
)
def test_a_process_may_end_while_copies_are_queued(script, how):
    """What they hold may be the last reference to memory that Python gives back, and Python is gone by then."""
    command = [sys.executable, "-c", IN_FORKS + script, how]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr[-500:]) == (0, "")


def test_what_a_copy_held_goes_when_the_host_has_waited_and_not_on_the_streams_thread(npu):
    """There, Python code that runs as it goes would wait for the lock of the host, which may wait for the stream."""
    gone: list[threading.Thread] = []

    class Memory(bytearray):
        def __del__(self):
            gone.append(threading.current_thread())

    npu.configure(bandwidth=SLOW)
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    source = torch.frombuffer(Memory(MIB), dtype=torch.uint8)
    address = source.data_ptr()
    assert npu.cudart().cudaHostRegister(address, MIB, 0) == 0
    stream = torch.Stream(device="npu")
    with npu.stream(stream):
        target.copy_(source, non_blocking=True)
    del source
    assert not gone, "the copy still reads it"
    stream.synchronize()
    assert gone == [threading.main_thread()]
    assert npu.cudart().cudaHostUnregister(address) == 0


def test_what_copies_held_goes_with_later_copies(npu):
    """Also where the host never waits."""
    gone: list[int] = []

    class Memory(bytearray):
        def __del__(self):
            gone.append(1)

    stream = torch.Stream(device="npu")
    target = torch.empty(MIB, dtype=torch.uint8, device="npu")
    memory = torch.frombuffer(Memory(MIB), dtype=torch.uint8)
    address, kept = memory.data_ptr(), pinned()
    assert npu.cudart().cudaHostRegister(address, MIB, 0) == 0
    with npu.stream(stream):
        target.copy_(memory, non_blocking=True)
        del memory
        until = time.monotonic() + 10
        while not gone and time.monotonic() < until:
            target.copy_(kept, non_blocking=True)
            time.sleep(0.01)
    assert gone
    stream.synchronize()
    assert npu.cudart().cudaHostUnregister(address) == 0
