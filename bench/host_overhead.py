"""Host time that offloading adds to each visit of a block: ours, diffusers' group offloading, accelerate's hooks.

    python -m bench.host_overhead [--json] [--repeats N] [--profile]

While the host is busy with hooks it launches no kernels, so this time is what limits an offload engine on fast blocks.
All contenders run in one process on the same stack of 24 blocks, which have the module tree of a Flux block in
diffusers, 32 parameters of 4 KiB, and compute nothing. They take turns, each beside the same stack without any
offloading: the figures are the difference, per visit of a block. "median" is over the turns, "quiet" is between the
fastest turns of both, which is what a machine with nothing else to do shows. Both are processor time of the calling
thread, where a host that waits for a device counts as idle; that favours the peers: they wait, ours does not.

Two groups. With a device's copies, on the simulated accelerator, whose copies run on a thread of their own at 20 GB/s;
streams, events, copies and allocations are torch's real calls:

ours              Swaps 32 parameters in and out, issues one copy some blocks ahead on the copy stream, records two
                  events, waits for two on the device.
diffusers         Block-level group offloading with `use_stream=True`, pinned once: hooks, stream and device
                  synchronisation, 32 copies into fresh allocations, 32 re-pointed parameters. One thing had to be bent:
                  torch refuses `param.data = device_tensor` for out-of-tree devices, so the parameter is pointed at the
                  host tensor and the blocks compute on the CPU; the copies are made all the same.
accelerate        `cpu_offload` to the device: a hook on each of 18 leaves that fetches its parameters and drops them.

Without any copies, hooks and bookkeeping alone, everything on the CPU:

ours              The same calls to a port that does nothing.
diffusers         The same code path with streams that do nothing and moves that find the tensors in place.
diffusers, plain  Without streams, as diffusers supports it on the CPU.
accelerate        Execution device the CPU.

On a machine with CUDA (`--device cuda`) the first group runs there, with nothing bent.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BLOCKS = 24
PARAMETERS = 32
SIDE = 32  # 32 x 32 floats are 4 KiB
WARM_UP_PASSES = 4
PASSES = 8
"""Passes per turn: one of them is also measured by our engine, as every eighth is in real use."""

LINK_BYTES_PER_S = 20e9
"""Of the simulated accelerator. Without a rate every copy would be over at once, and the copy thread asleep again by
the next: what was measured then was mostly the system waking it, which a copy engine does not need."""

COPIES = "with copies"
NO_COPIES = "without copies"


class Leaf(nn.Module):
    """A place of parameters, all of one size so that ours moves all of them too. It computes nothing."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Parameter(torch.rand(SIDE, SIDE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Branch(nn.Module):
    """Children that are called one after the other."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


def block() -> nn.Module:
    """The module tree of diffusers' FluxTransformerBlock, with its 32 parameters."""

    def linear() -> nn.Module:
        return Leaf("weight", "bias")

    def feed_forward() -> nn.Module:
        return Branch(net=nn.Sequential(Branch(proj=linear()), Leaf(), linear()))

    projections = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    attention = {
        **{name: linear() for name in projections},
        **{name: Leaf("weight") for name in norms},
        "to_out": nn.Sequential(linear(), Leaf()),
    }
    return Branch(
        norm1=Branch(silu=Leaf(), linear=linear(), norm=Leaf()),
        norm1_context=Branch(silu=Leaf(), linear=linear(), norm=Leaf()),
        attn=Branch(**attention),
        norm2=Leaf(),
        ff=feed_forward(),
        norm2_context=Leaf(),
        ff_context=feed_forward(),
    )


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@dataclass
class Contender:
    """A stack under some offloading, ready to run, and the plain stack it is compared with."""

    group: str
    name: str
    run: Callable[[], Any]
    baseline: Callable[[], Any]
    close: Callable[[], None] = lambda: None


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().requires_grad_(False).eval()


def plain(device: str) -> Callable[[], Any]:
    model, x = stack().to(device), torch.ones(SIDE, SIDE, device=device)
    return lambda: model(x)


# ---------------------------------------------------------------------- ours


class IdlePort:
    """A device whose every call does nothing: what is left of a visit is the engine's own work."""

    asynchronous = True
    shares_host_memory = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        for name in ("record_copy", "record_compute", "copy_waits", "compute_waits", "copy", "copy_on_compute"):
            setattr(self, name, _nothing)
        self.drain = self.close = self.host_release = self.memory = _nothing

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def event(self, timed: bool = False) -> Any:
        return None

    def elapsed_ns(self, start: Any, end: Any) -> int | None:
        return 0

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        return torch.empty(nbytes, dtype=torch.uint8), False


def _nothing(*_: Any) -> None:
    return None


def ours(group: str, device: str, queue: Any = None) -> Contender:
    from offload_core.runtime import attach

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    attachment = attach(model, device=device, passes=1000, min_layer_bytes=1, queue=queue)
    layers = attachment.controller.layers
    assert len(attachment.plan.streamed) == BLOCKS and all(
        len(layer.found.parameters) == PARAMETERS for layer in layers
    )
    return Contender(group, "ours", lambda: model(x), plain(device), attachment.detach)


def ours_idle() -> Contender:
    from offload_core.runtime import DeviceQueue

    return ours(NO_COPIES, "cpu", DeviceQueue(IdlePort()))


# ---------------------------------------------------------------------- peers


def diffusers_plain() -> Contender:
    from diffusers.hooks import apply_group_offloading

    model, x = stack(), torch.ones(SIDE, SIDE)
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    return Contender(NO_COPIES, "diffusers, plain", lambda: model(x), plain("cpu"))


def diffusers_cuda(device: str) -> Contender:
    from diffusers.hooks import apply_group_offloading

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    places = (torch.device(device), torch.device("cpu"))
    apply_group_offloading(model, *places, offload_type="block_level", num_blocks_per_group=1, use_stream=True)
    return Contender(COPIES, "diffusers", lambda: model(x), plain(device))


def _diffusers_streams(group: str, stream: Any, transfer: Callable[..., None] | None, backend: str) -> Contender:
    """diffusers' stream path with the blocks on the CPU. Its offload device is one that no parameter is on.

    Otherwise diffusers would take every block for not yet onloaded, and move it twice.
    """
    from diffusers.hooks import group_offloading
    from diffusers.utils.torch_utils import TorchDeviceBackend

    torch.cpu.Stream.synchronize = _nothing  # type: ignore[attr-defined]  # torch's has all the others
    model, x = stack(), torch.ones(SIDE, SIDE)
    config = group_offloading.GroupOffloadingConfig(
        **{"onload_device": torch.device("cpu"), "offload_device": torch.device("meta"), "non_blocking": True},
        **{"offload_type": group_offloading.GroupOffloadingType.BLOCK_LEVEL, "record_stream": False},
        **{"low_cpu_mem_usage": False, "num_blocks_per_group": 1, "stream": stream},
    )
    group_offloading._apply_group_offloading(model, config)
    for block in model.blocks:
        moved = block._diffusers_hook.get_hook(group_offloading._GROUP_OFFLOADING).group
        moved._torch_accelerator_module = TorchDeviceBackend(backend)
        if transfer is not None:
            moved._transfer_tensor_to_device = transfer
    return Contender(group, "diffusers", lambda: model(x), plain("cpu"))


def diffusers_simulated(device: str) -> Contender:
    kept: dict[int, torch.Tensor] = {}

    def transfer(tensor: torch.Tensor, source: torch.Tensor, default_stream: Any) -> None:
        kept[id(tensor)] = source.to(device, non_blocking=True)
        tensor.data = source

    return _diffusers_streams(COPIES, torch.get_device_module(device).Stream(), transfer, device)


def diffusers_idle() -> Contender:
    return _diffusers_streams(NO_COPIES, torch.cpu.Stream(), None, "cpu")


def accelerate_hooks(group: str, device: str) -> Contender:
    from accelerate import cpu_offload

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    cpu_offload(model, execution_device=torch.device(device))
    return Contender(group, "accelerate", lambda: model(x), plain(device))


def contenders(device: str) -> tuple[list[Contender], list[str]]:
    """Those that can run here, and why the others cannot. `device`: sim, cuda, or cpu for the second group alone."""
    found, missing = [], []
    makers: list[Callable[[], Contender]] = []
    if device == "sim":
        from tests.support import simdev

        if simdev.available():
            simdev.load().configure(mb=1024, bandwidth=LINK_BYTES_PER_S, poison=False, race=False)
            device = "npu"
        else:
            missing.append(f"{COPIES}: no simulated accelerator here (python3 dev.py setup builds it)")
            device = "cpu"
    if device != "cpu":
        peer = diffusers_simulated if device == "npu" else diffusers_cuda
        makers += [lambda: ours(COPIES, device), lambda: peer(device), lambda: accelerate_hooks(COPIES, device)]
    makers += [ours_idle, diffusers_idle, diffusers_plain, lambda: accelerate_hooks(NO_COPIES, "cpu")]
    for make in makers:
        try:
            found.append(make())
        except (ImportError, RuntimeError) as error:
            missing.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return found, missing


def per_visit_us(run: Callable[[], Any]) -> float:
    """Processor time of this thread; what a device does meanwhile, and waiting for it, is not in it."""
    start = time.thread_time_ns()
    for _ in range(PASSES):
        run()
    return (time.thread_time_ns() - start) / 1e3 / (PASSES * BLOCKS)


def measure(found: list[Contender], repeats: int) -> list[dict[str, Any]]:
    """Microseconds a visit for each contender, the plain stack taken off. They take turns, so all see the same load."""
    samples: list[list[tuple[float, float]]] = [[] for _ in found]
    with torch.no_grad():
        for contender in found:
            for _ in range(WARM_UP_PASSES):
                contender.run()
                contender.baseline()
        gc.collect()
        gc.disable()
        try:
            for _ in range(repeats):
                for contender, pairs in zip(found, samples):
                    pairs.append((per_visit_us(contender.run), per_visit_us(contender.baseline)))
        finally:
            gc.enable()
    return [{"group": c.group, "name": c.name, **_summary(pairs)} for c, pairs in zip(found, samples)]


def _summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """`pairs`: per turn, with offloading and without."""
    with_it, without = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    differences = sorted(one - other for one, other in pairs)
    return {
        "us_per_visit": round(statistics.median(differences), 2),
        "us_quiet": round(min(with_it) - min(without), 2),
        "us_p90": round(differences[int(0.9 * (len(differences) - 1))], 2),
        "plain_us_per_visit": round(statistics.median(without), 2),
    }


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("diffusers", "accelerate"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def report(rows: list[dict[str, Any]], missing: list[str], command: str) -> dict[str, Any]:
    """The result file: every row with its ratio to ours of the same group."""
    own = {row["group"]: row for row in rows if row["name"] == "ours"}
    for row in rows:
        ours_row = own.get(row["group"])
        for figure in ("us_per_visit", "us_quiet"):
            known = ours_row is not None and ours_row[figure] > 0
            row[f"ratio_{figure}"] = round(row[figure] / ours_row[figure], 1) if known else None
    return {
        "schema": 1,
        "command": command,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "blocks": BLOCKS,
        "parameters_a_block": PARAMETERS,
        "results": rows,
        "not_run": missing,
    }


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(f"host time added to each visit of a block of {result['parameters_a_block']} parameters, microseconds:")
    group = None
    for row in result["results"]:
        if row["group"] != group:
            group = row["group"]
            print(f"{group:20s} {'median':>9s} {'ratio':>7s} {'quiet':>9s} {'ratio':>7s} {'p90':>9s}")
        line = f"  {row['name']:18s}"
        for figure in ("us_per_visit", "us_quiet"):
            ratio = row[f"ratio_{figure}"]
            line += f" {row[figure]:9.1f} {'' if ratio is None else f'{ratio:.1f}x':>7s}"
        print(f"{line} {row['us_p90']:9.1f}")
    for line in result["not_run"]:
        print(f"not run: {line}")


def profile(contender: Contender) -> None:
    """Where our own time goes, by function."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    with torch.no_grad():
        for _ in range(WARM_UP_PASSES):
            contender.run()
        profiler.enable()
        for _ in range(20 * PASSES):
            contender.run()
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("sim", "cuda", "cpu"), default="sim", help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=20, help="turns for every contender (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="say where the time of our first contender goes")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    found, missing = contenders(arguments.device)
    try:
        if arguments.profile:
            profile(found[0])
            return 0
        command = " ".join(["python -m bench.host_overhead", *words])
        result = report(measure(found, arguments.repeats), missing, command)
    finally:
        for contender in found:
            contender.close()
    print(json.dumps(result)) if arguments.json else show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
