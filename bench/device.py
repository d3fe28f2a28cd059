"""The device that is measured or tested: CUDA, the simulated accelerator, or the CPU, behind one set of calls.

What differs between them is here and nowhere else under bench/ and tests/gpu: counting allocations, forbidding the host
to wait, peaks of memory, what the driver says is in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

CUDA, SIM, CPU = "cuda", "sim", "cpu"
KINDS = (CUDA, SIM, CPU)
ASYNC = "cudaMallocAsync"
"""The app's allocator on NVIDIA."""


class Device:
    """`kind` is one of KINDS. Nothing is opened before `open`, so a process without the device can still ask why."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.simulated = kind == SIM
        self.name = {CUDA: "cuda", SIM: "npu", CPU: "cpu"}[kind]
        """What torch calls it."""

    def why_not(self) -> str:
        """Why there is no such device here; empty if there is one."""
        if self.simulated:
            from tests.support import simdev

            return "" if simdev.available() else "no simulated accelerator: `python3 dev.py setup` builds it"
        if self.kind == CUDA and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return ""

    def open(self, **knobs: Any) -> Device:
        """Make the device usable; `knobs` are those of the simulated one (its README). Returns itself."""
        if self.simulated:
            from tests.support import simdev

            torch.version.cuda = None  # the app tells by it whose device it has, and a CUDA build can play this one
            usual = {"mb": 4096, "bandwidth": 8e9, "poison": True, "race": False, "allocator": self.allocator()}
            simdev.load().configure(**{**usual, **knobs})
        return self

    @property
    def module(self) -> Any:
        """torch.cuda or torch.npu; None for the CPU."""
        return None if self.kind == CPU else torch.get_device_module(self.name)  # torch.npu is there once it is open

    def describe(self) -> str:
        """The card's name and size in one line."""
        if self.kind != CUDA:
            return {SIM: "simulated", CPU: "cpu"}[self.kind]
        return f"{torch.cuda.get_device_name()} ({torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB)"

    def allocator(self) -> str:
        """`native` or `cudaMallocAsync`, as PYTORCH_CUDA_ALLOC_CONF says; the simulated device plays both."""
        if self.kind == CUDA:
            return torch.cuda.get_allocator_backend()
        return ASYNC if self.simulated and ASYNC in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") else "native"

    def synchronize(self) -> None:
        if self.module is not None:
            self.module.synchronize()

    # ------------------------------------------------------------------ memory

    @property
    def counts_allocations(self) -> bool:
        """Whether `allocations` counts: under cudaMallocAsync torch's counters stay at zero."""
        return self.kind != CPU and self.allocator() == "native"

    def allocations(self) -> int:
        """How often memory was asked for since the process began."""
        if self.simulated:
            return int(self.module.stats()["allocs"])
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    def segments(self) -> int:
        """How often the allocator went to the driver; 0 where it is not counted."""
        return 0 if self.simulated else int(torch.cuda.memory_stats().get("segment.all.allocated", 0))

    def fresh_memory(self) -> int:
        """Give back what is cached and start the peaks anew. The bytes that tensors hold now."""
        gc.collect()
        if self.module is None:
            return 0
        self.synchronize()
        self.module.empty_cache()
        self.module.reset_peak_memory_stats()
        return int(self.module.memory_allocated())

    def peak(self) -> int:
        """The most bytes that tensors held since `fresh_memory`."""
        return int(self.module.max_memory_allocated())

    def peaks(self) -> dict[str, int | None]:
        """The peaks since `fresh_memory`, in bytes, as torch counts them; None on the CPU."""
        if self.module is None:
            return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}
        return {
            "peak_allocated_bytes": self.module.max_memory_allocated(),
            "peak_reserved_bytes": self.module.max_memory_reserved(),
        }

    # ------------------------------------------------------------------ time

    @contextlib.contextmanager
    def no_host_sync(self) -> Iterator[None]:
        """Any wait of the host for the device is an error."""
        if self.simulated:
            before = self.module.stats()["host_syncs"]
            yield
            assert self.module.stats()["host_syncs"] == before, "the host waited for the device"
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def seconds(self, run: Callable[[], Any], times: int) -> float:
        """Per call, the device's work included; between the calls the host does not wait."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        self.synchronize()
        return (time.perf_counter() - start) / times

    def link_bytes_per_s(self, port: Any, nbytes: int = 256 << 20) -> float:
        """What the copy lane of `port` does with page-locked memory."""
        source, _ = port.host_empty(nbytes, True)
        source.fill_(1)  # pages that were never touched are no host memory
        target = port.empty(nbytes)
        port.copy(target, source)
        port.drain()
        start = time.perf_counter()
        for _ in range(8):
            port.copy(target, source)
        port.drain()
        rate = 8 * nbytes / (time.perf_counter() - start)
        port.host_release(source)
        return rate


class DriverMemory:
    """What the driver says is in use on the card, by all processes: memory of no torch allocator is in it too."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.source = "none"
        self._read = self._by_nvml() or self._by_device()

    def used(self) -> int | None:
        """Bytes in use now; None where it cannot be read."""
        return None if self._read is None else self._read()

    def _by_device(self) -> Callable[[], int] | None:
        module = self._device.module
        if module is None:
            return None
        self.source = "mem_get_info"

        def read() -> int:
            free, total = module.mem_get_info()
            return int(total - free)

        return read

    def _by_nvml(self) -> Callable[[], int] | None:
        """The management library: it needs no context, and reading it does not wait for the device."""
        if self._device.kind != CUDA:
            return None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
        handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        index = int(visible) if visible.isdigit() else 0
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            return None

        def read() -> int:
            library.nvmlDeviceGetMemoryInfo(handle, memory)  # total, free, used
            return int(memory[2])

        if not read():
            return None
        self.source = "nvml"
        return read


def memory_of_machine() -> dict[str, int]:
    """MemTotal and MemAvailable of the host, in bytes; empty where there is no /proc."""
    try:
        with open("/proc/meminfo") as file:
            lines = [line.split() for line in file if line.startswith(("MemTotal:", "MemAvailable:"))]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
