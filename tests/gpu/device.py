"""The device under test: real CUDA, or with LAYERWISE_GPU_TESTS=sim the simulated one, to try the tests themselves.

What differs between the two is here: counting allocations, forbidding host waits, peaks of memory.
"""

import contextlib
import os
import time

import torch

SIMULATED = os.environ.get("LAYERWISE_GPU_TESTS") == "sim"
NAME = "npu" if SIMULATED else "cuda"


def why_not() -> str:
    """Why there is no device to test on; empty if there is one."""
    if SIMULATED:
        from tests.support import simdev

        return "" if simdev.available() else "no simulated accelerator"
    return "" if torch.cuda.is_available() else "no CUDA device"


def open_device() -> None:
    if SIMULATED:
        from tests.support import simdev

        simdev.load().configure(mb=4096, bandwidth=8e9, poison=True, race=True)


def module():
    return torch.get_device_module(NAME)


def allocations() -> int:
    """How often memory was asked for since the process began."""
    if SIMULATED:
        return module().stats()["allocs"]
    return torch.cuda.memory_stats()["allocation.all.allocated"]


def segments() -> int:
    """How often the allocator went to the driver."""
    return 0 if SIMULATED else torch.cuda.memory_stats()["segment.all.allocated"]


@contextlib.contextmanager
def no_host_sync():
    """Any wait of the host for the device is an error."""
    if SIMULATED:
        before = module().stats()["host_syncs"]
        yield
        assert module().stats()["host_syncs"] == before, "the host waited for the device"
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def fresh_memory() -> int:
    """Give back what is cached, start the peak anew; the bytes in use now."""
    module().synchronize()
    module().empty_cache()
    module().reset_peak_memory_stats()
    return module().memory_allocated()


def peak() -> int:
    return module().max_memory_allocated()


def seconds(run, times: int) -> float:
    """Per call, the device's work included; between the calls the host does not wait."""
    module().synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    module().synchronize()
    return (time.perf_counter() - start) / times


def link_bytes_per_s(port, nbytes=256 << 20) -> float:
    """What the copy lane does with page-locked memory."""
    source, _ = port.host_empty(nbytes, True)
    target = port.empty(nbytes)
    port.copy(target, source)
    rate = nbytes / seconds(lambda: port.copy(target, source), 8)
    port.host_release(source)
    return rate
