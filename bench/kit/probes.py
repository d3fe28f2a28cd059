"""The parts `probes-...`: what the engine rests on and only a real device can tell. A row for each, a second or a few.

    python -m bench.kit.probes [--device cuda|sim] [--gib 1]

Run once for each allocator, in a process of its own: PYTORCH_CUDA_ALLOC_CONF says which, and each row says so too. A
probe that fails says how in its row; after an error that the device keeps, those after it fail as well.
"""

from __future__ import annotations

import argparse
import mmap
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.device import KINDS, Device
from bench.kit.rows import open_rows
from offload_core.runtime.device.accelerator_port import AcceleratorPort, page_aligned_bytes

GIB = 1 << 30
LAYER_BYTES = (9_437_184 + 512, 141_000_192, 283_213_824, 679_477_248)
"""Of a small layer, and of Flux's and Qwen-Image's blocks."""


class Bench:
    """The device, a port of the engine's, and how large "large" is."""

    def __init__(self, device: Device, gib: float) -> None:
        self.device = device
        self.big = int(gib * GIB) & ~4095
        self.port = AcceleratorPort(device.name)

    def locked(self, nbytes: int) -> torch.Tensor:
        """Page-locked host memory that has been written to. Raises RuntimeError if it cannot be had."""
        host, pinned = self.port.host_empty(nbytes, True)
        host.fill_(1)
        if not pinned:
            raise RuntimeError(f"{nbytes} bytes could not be page-locked")
        return host


def copy_across_registrations(bench: Bench) -> dict[str, Any]:
    """A layer of over 1 GiB there and back: Flux 2 (1.96 GB), Mistral 24B (1.11 GB)."""
    nbytes = bench.big + bench.big // 2
    host, pinned = bench.port.host_empty(nbytes, True)
    host.view(torch.int64).copy_(torch.arange(nbytes // 8))
    on_device = bench.port.empty(nbytes)
    bench.port.copy(on_device, host)
    bench.port.drain()
    same = torch.equal(on_device.cpu(), host)
    bench.port.host_release(host)
    return {"pinned": pinned, "ok": same, "bytes": nbytes}


def a_refused_lock_leaves_no_error(bench: Bench) -> dict[str, Any]:
    """What is locked already is refused: is the next kernel, or the next allocation, hit by that?"""
    host = bench.locked(1 << 20)
    again = AcceleratorPort(bench.device.name).host_pin(host)
    total = (torch.ones(1 << 20, device=bench.device.name) + 1).sum().item()
    bench.port.host_release(host)
    return {"second_lock": again, "ok": total == 2 << 20}


def overlapping_pages(bench: Bench) -> dict[str, Any]:
    """Whether the driver locks a range inside one that is locked: what the app does to weights that look into ours."""
    host = bench.locked(4 << 20)
    runtime = bench.device.module.cudart()
    code = int(runtime.cudaHostRegister(host.data_ptr() + (1 << 20), 1 << 20, 1))
    if code == 0:
        runtime.cudaHostUnregister(host.data_ptr() + (1 << 20))
    try:
        torch.ones(8, device=bench.device.name).add_(1)
    except RuntimeError:  # the refusal, met by the next kernel
        bench.device.synchronize()
    bench.port.host_release(host)
    return {"code": code}


def what_page_locking_costs(bench: Bench) -> dict[str, Any]:
    """Seconds to lock and to unlock `bytes`, on small and on huge pages, written to before or not."""
    found: dict[str, Any] = {"bytes": bench.big}
    for pages in ("huge", "small"):
        for filled in (True, False):
            mapping = mmap.mmap(-1, bench.big, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            mapping.madvise(mmap.MADV_HUGEPAGE if pages == "huge" else mmap.MADV_NOHUGEPAGE)
            buffer = torch.frombuffer(mapping, dtype=torch.uint8)
            if filled:
                buffer.fill_(1)
            start = time.perf_counter()
            pinned = bench.port.host_pin(buffer)
            locked = time.perf_counter()
            bench.port.host_release(buffer)
            key = f"{pages}_{'filled' if filled else 'fresh'}"
            found[key] = {"pinned": pinned, "lock_s": locked - start, "unlock_s": time.perf_counter() - locked}
    return found


def page_locking_beside_kernels(bench: Bench) -> dict[str, Any]:
    """Does locking wait for the device? Kernels are queued, then a buffer is locked."""
    side, times = (8192, 150) if bench.device.kind == "cuda" else (256, 4)
    matrix = torch.ones(side, side, device=bench.device.name, dtype=torch.bfloat16)
    result = matrix @ matrix
    buffer = page_aligned_bytes(bench.big // 4)
    buffer.fill_(1)
    bench.device.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        torch.mm(matrix, matrix, out=result)
    queued = time.perf_counter()
    pinned = bench.port.host_pin(buffer)
    locked = time.perf_counter()
    bench.device.synchronize()
    idle = time.perf_counter()
    bench.port.host_release(buffer)
    return {"pinned": pinned, "queue_s": queued - start, "lock_s": locked - queued, "then_until_idle_s": idle - locked}


def link_by_size(bench: Bench) -> dict[str, Any]:
    """Bytes per second by the size of a copy, what issuing one costs, pageable memory, and both ways at once."""
    host, on_device = bench.locked(bench.big), bench.port.empty(bench.big)
    found: dict[str, Any] = {}
    for nbytes in sorted({min(size, bench.big) for size in (1 << 20, 16 << 20, 64 << 20, 256 << 20, bench.big)}):
        times = max(4, min(64, 2 * bench.big // nbytes))
        bench.port.copy(on_device[:nbytes], host[:nbytes])
        bench.port.drain()
        start = time.perf_counter()
        for _ in range(times):
            bench.port.copy(on_device[:nbytes], host[:nbytes])
        issued = time.perf_counter()
        bench.port.drain()
        rate = times * nbytes / (time.perf_counter() - start)
        found[f"{nbytes >> 20}_mib"] = {"gb_per_s": rate / 1e9, "issue_us": (issued - start) / times * 1e6}
    found["pageable_gb_per_s"] = _pageable_rate(bench, on_device) / 1e9
    half = bench.big // 2
    back, done = bench.locked(half), bench.port.event()
    start = time.perf_counter()
    bench.port.copy(on_device[:half], host[:half])
    bench.port.copy_back(back, on_device[half : 2 * half], done)
    bench.port.drain()
    found["both_ways_gb_per_s"] = 2 * half / (time.perf_counter() - start) / 1e9
    bench.port.host_release(host)
    bench.port.host_release(back)
    return found


def _pageable_rate(bench: Bench, on_device: torch.Tensor) -> float:
    quarter = bench.big // 4
    pageable = torch.ones(quarter, dtype=torch.uint8)
    on_device[:quarter].copy_(pageable)
    return quarter / bench.device.seconds(lambda: on_device[:quarter].copy_(pageable), 1)


def a_small_copy_behind_look_ahead(bench: Bench) -> dict[str, Any]:
    """Milliseconds that 1 MiB on the compute stream waits while much is queued on the copy lane, whole or in pieces."""
    host, small = bench.locked(bench.big), bench.locked(1 << 20)
    on_device, target = bench.port.empty(bench.big), bench.port.empty(1 << 20)
    found = {}
    for piece in (bench.big, 32 << 20):
        bench.device.synchronize()
        for start in range(0, bench.big, piece):
            bench.port.copy(on_device[start : start + piece], host[start : start + piece])
        began = time.perf_counter()
        target.copy_(small, non_blocking=True)
        event = bench.port.event()
        bench.port.record_compute(event)
        bench.port.host_waits(event)
        found[f"{piece >> 20}_mib_pieces_ms"] = (time.perf_counter() - began) * 1e3
        bench.port.drain()
    bench.port.host_release(host)
    bench.port.host_release(small)
    return found


def what_the_allocator_takes(bench: Bench) -> dict[str, Any]:
    """Bytes beyond its size that a layer takes, by the driver and by torch: rounding that a budget does not count."""
    module, found = bench.device.module, {}
    for nbytes in LAYER_BYTES:
        bench.device.fresh_memory()
        free, allocated, reserved = module.mem_get_info()[0], module.memory_allocated(), module.memory_reserved()
        tensor = torch.empty(nbytes, dtype=torch.uint8, device=bench.device.name)
        bench.device.synchronize()
        found[str(nbytes)] = {
            "driver": free - module.mem_get_info()[0] - nbytes,
            "allocated": module.memory_allocated() - allocated - nbytes,
            "reserved": module.memory_reserved() - reserved - nbytes,
        }
        del tensor
    return found


PROBES: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    copy_across_registrations,
    a_refused_lock_leaves_no_error,
    what_page_locking_costs,
    page_locking_beside_kernels,
    link_by_size,
    a_small_copy_behind_look_ahead,
    what_the_allocator_takes,
    overlapping_pages,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=KINDS, default="cuda")
    parser.add_argument("--gib", type=float, default=1.0, help="how large a large buffer is (default %(default)s)")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    rows = open_rows("probes")
    if reason := device.why_not() or ("the CPU has nothing to probe" if device.kind == "cpu" else ""):
        rows.write("not run", reason=reason)
        return
    bench = Bench(device.open(bandwidth=8e9), arguments.gib)
    for probe in PROBES:
        try:
            facts = {"ok": True, **probe(bench)}
        except (RuntimeError, AttributeError, OSError) as error:
            text = (str(error).splitlines() or [""])[0]
            facts = {"ok": False, "error": f"{type(error).__name__}: {text[:300]}"}
        rows.write(probe.__name__, allocator=device.allocator(), **facts)


if __name__ == "__main__":
    main()
