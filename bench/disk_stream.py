"""A model larger than its memory, streamed from its file: ours, tensors mapped in place, accelerate's disk offload.

    python -m bench.disk_stream [--gb 2] [--rows 64] [--passes 8] [--rounds 2] [--limit cold|cgroup] [--json FILE]

One generated file of equal linear blocks; every contender runs the same stack on the CPU, in a process of its own, in
turns, with nothing of the file in the page cache at first. With `--limit cgroup`, the default where the machine lets us
make one, each process runs in a memory cgroup of half the file's size (a child of its own group; what Python and torch
hold is not counted, for it was there before). With `--limit cold` there is no limit, and before every pass mapped pages
are let go and the page cache of the file is dropped by hand: a scan that goes round a file larger than the cache finds
nothing of it there. The result says which it was.

disk      the file, read once from end to end into one buffer: what the disk takes
compute   a pass with everything in memory: what the processor takes
ours      weights left in the file, a ring and nothing more, as `attach` with a budget does it
mapped    parameters that look into the mapped file
accelerate  `disk_offload`: its own copy of the weights on disk, hooks that load and drop

A pass cannot take less than the longer of disk and compute. The first passes of everybody are listed and not counted:
ours measures in them, and changes its plan. `fetched_bytes` is what the kernel fetched from the device for a pass
(/proc/self/io), `streamed_bytes` what the plan wants read, `peak_rss_bytes` the most the process held from the second
pass on, less what it held with torch imported.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZE = 4096
CONTENDERS = ("disk", "compute", "ours", "mapped", "accelerate")
FIRST_PASSES = 4
"""Two that are measured, one to change the plan, one that finds the page cache as the change has left it."""

_MADV_DONTNEED = 4


class Stack(nn.Module):
    """Linear blocks of 64 MiB in float32."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def write_model(path: Path, blocks: int) -> None:
    """The file. It is in memory once while it is written."""
    import safetensors.torch

    block = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) / SIZE**0.5
    safetensors.torch.save_file({f"blocks.{number}.weight": block + number / 1e6 for number in range(blocks)}, path)
    os.sync()


# ---------------------------------------------------------------------- one contender, in its own process


def empty_stack(blocks: int) -> Stack:
    with torch.device("meta"):
        return Stack(blocks).requires_grad_(False)


def make(name: str, path: Path, blocks: int, folder: Path, join: Callable[[], None]) -> Any:
    """A callable that runs one pass. `join` puts the process under its memory limit.

    Who has to hold the whole model once, to copy it or because that is what is measured, may do so before.
    """
    from offload_core.runtime import attach
    from offload_core.runtime.tensors.safetensors_map import weights_from_file

    if name not in ("accelerate", "compute"):
        join()
    if name == "disk":
        buffer = memoryview(bytearray(8 << 20))
        return lambda x: read_all(path, buffer)
    model = empty_stack(blocks)
    if name == "accelerate":
        import accelerate

        model = Stack(blocks).requires_grad_(False)
        load_in_memory(model, path)
        accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
        drop(sorted(folder.glob("*.dat")))
        join()
        return model
    if name == "compute":
        model = Stack(blocks).requires_grad_(False)
        load_in_memory(model, path)
        return model
    weights_from_file(model, path)
    return OurStack(model, attach(model, device="cpu", budget_bytes=4 * SIZE * SIZE * 4)) if name == "ours" else model


class OurStack:
    """A pass of ours, and what the plan in effect has read in one."""

    def __init__(self, model: Stack, attachment: Any) -> None:
        self._model, self._attachment = model, attachment

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._model(x)

    def streamed_bytes(self) -> int:
        plan = self._attachment.plan
        return sum(plan.layers[index].bytes for index in plan.streamed)


def load_in_memory(model: Stack, path: Path) -> None:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as tensors:
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors.get_tensor(name))


def read_all(path: Path, buffer: memoryview) -> None:
    """As fast as the disk gives it: what was read is let go at once, which costs less than to make room for more."""
    with open(path, "rb", buffering=0) as file:
        done = 0
        while got := file.readinto(buffer):
            os.posix_fadvise(file.fileno(), done, got, os.POSIX_FADV_DONTNEED)
            done += got


def drop(paths: list[Path]) -> None:
    """Nothing of these files is in memory afterwards, mapped or cached."""
    libc = ctypes.CDLL(None)
    names = {str(path) for path in paths}
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].strip() in names:
                first, end = (int(part, 16) for part in fields[0].split("-"))
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_DONTNEED)
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fetched_bytes() -> int:
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


def status_bytes(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def one(arguments: argparse.Namespace) -> None:
    """Run one contender and print what it took."""
    torch.set_num_threads(arguments.threads)
    base = status_bytes("VmHWM")
    path, folder = Path(arguments.file), Path(arguments.folder)
    with torch.no_grad():
        run = make(arguments.one, path, arguments.blocks, folder, lambda: join(arguments.group))
        x = torch.randn(arguments.rows, SIZE, generator=torch.Generator().manual_seed(2))
        cold = [path, *sorted(folder.glob("*.dat"))] if arguments.one != "compute" else []
        seconds, fetched, output = [], [], None
        reset = Path("/proc/self/clear_refs")
        for number in range(FIRST_PASSES + arguments.passes):
            if arguments.limit == "cold":
                drop(cold)
            if number == 1:  # the peak that counts is that of running, for accelerate has to hold the model once first
                reset.write_text("5")
            before, began = fetched_bytes(), time.perf_counter()
            output = run(x)
            seconds.append(time.perf_counter() - began)
            fetched.append(fetched_bytes() - before)
    print(
        json.dumps(
            {
                "first_seconds": seconds[:FIRST_PASSES],
                "seconds": seconds[FIRST_PASSES:],
                "fetched_bytes": fetched[FIRST_PASSES:],
                "streamed_bytes": run.streamed_bytes() if isinstance(run, OurStack) else None,
                "peak_rss_bytes": max(0, status_bytes("VmHWM") - base),
                "load": os.getloadavg()[0],
                "sum": float(output.double().sum()) if output is not None else None,
            }
        )
    )


# ---------------------------------------------------------------------- all of them, in turns


def join(group: Path | None) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def in_cgroup(limit_bytes: int) -> Path:
    """A memory cgroup of the given size below our own; raises OSError where the machine lets us make none."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        v1 = "memory" in controllers.split(",")
        if v1 or not controllers:
            base = Path("/sys/fs/cgroup/memory" if v1 else "/sys/fs/cgroup") / path.strip("/")
            group = base / f"layerwise-bench-{os.getpid()}"
            group.mkdir()
            (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit_bytes))
            return group
    raise OSError("no memory cgroup")


def run_one(name: str, arguments: argparse.Namespace, file: Path, group: Path | None) -> dict[str, Any]:
    drop([file])  # pages that another process has cached do not count towards this one's limit
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [
            *(sys.executable, "-m", "bench.disk_stream", "--one", name, "--file", str(file), "--folder", folder),
            *("--blocks", str(arguments.blocks), "--rows", str(arguments.rows), "--passes", str(arguments.passes)),
            *("--threads", str(arguments.threads), "--limit", arguments.limit),
        ]
        if group is not None and name != "compute":
            command += ["--group", str(group)]
        quiet = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin while they wait disturb everybody
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
        if done.returncode:
            raise SystemExit(f"{name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        file = Path(folder) / "model.safetensors"
        write_model(file, arguments.blocks)
        size = file.stat().st_size
        group = None
        if arguments.limit != "cold":
            try:
                group = in_cgroup(size // 2)
            except OSError as error:
                if arguments.limit == "cgroup":
                    raise SystemExit(
                        f"asked for a memory cgroup; found none to be made here: {error}; use cold"
                    ) from error
        arguments.limit = "cold" if group is None else "cgroup"
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        try:
            for number in range(arguments.rounds):
                for name in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
                    runs[name].append(run_one(name, arguments, file, group))
                    first, rest = ([round(s, 2) for s in runs[name][-1][key]] for key in ("first_seconds", "seconds"))
                    print(f"round {number + 1}: {name}: {first} {rest}", flush=True)
        finally:
            if group is not None:
                group.rmdir()
    return summary(arguments, size, runs)


def summary(arguments: argparse.Namespace, size: int, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    from importlib.metadata import version

    figures = {
        name: {
            "median_s": statistics.median(s for run in own for s in run["seconds"]),
            "best_s": min(s for run in own for s in run["seconds"]),
            "fetched_bytes_per_pass": int(statistics.mean(b for run in own for b in run["fetched_bytes"])),
            "first_passes_s": [[round(second, 3) for second in run["first_seconds"]] for run in own],
            "passes_s": [[round(second, 3) for second in run["seconds"]] for run in own],
            "peak_rss_bytes": max(run["peak_rss_bytes"] for run in own),
        }
        for name, own in runs.items()
    }
    sums = {run["sum"] for name in ("compute", "ours", "mapped", "accelerate") for run in runs[name]}
    streamed = sum(run["streamed_bytes"] * len(run["fetched_bytes"]) for run in runs["ours"])
    ratios = {}
    for kind in ("median_s", "best_s"):
        bound = max(figures["disk"][kind], figures["compute"][kind])
        ours = figures["ours"][kind]
        ratios[kind] = {
            "ours_over_bound": ours / bound,
            "mapped_over_ours": figures["mapped"][kind] / ours,
            "accelerate_over_ours": figures["accelerate"][kind] / ours,
        }
    return {
        "command": f"python -m bench.disk_stream {' '.join(sys.argv[1:])}".strip(),
        "limit": arguments.limit,
        "file_bytes": size,
        "rows": arguments.rows,
        "figures": figures,
        "ratios": ratios,
        "fetched_over_streamed": sum(b for run in runs["ours"] for b in run["fetched_bytes"]) / streamed,
        "same_output": len(sums) == 1,
        "load_average": [run["load"] for own in runs.values() for run in own],
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "safetensors", "accelerate")},
    }


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")


def show(result: dict[str, Any]) -> None:
    for name, figure in result["figures"].items():
        print(
            f"{name:11s} {figure['median_s']:7.2f} s median {figure['best_s']:7.2f} s best  "
            f"{figure['fetched_bytes_per_pass'] / 1e9:6.2f} GB fetched a pass  "
            f"{figure['peak_rss_bytes'] / 1e9:5.2f} GB at most"
        )
    for kind, ratios in result["ratios"].items():
        print(f"{kind}: " + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in ratios.items()))
    print(f"fetched over streamed {result['fetched_over_streamed']:.3f}; same output: {result['same_output']}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.disk_stream")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the file")
    parser.add_argument("--rows", type=int, default=64, help="of the input: more makes compute longer")
    parser.add_argument("--passes", type=int, default=8, help="that count, after the first")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", choices=("cold", "cgroup"), help="default: a cgroup where one can be made")
    parser.add_argument("--dir", default=None, help="where the file is written: the disk to measure")
    parser.add_argument("--json", type=Path)
    for name in ("--one", "--file", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments)
        return
    arguments.blocks = max(6, round(arguments.gb * 1e9 / (SIZE * SIZE * 4)))
    result = measure(arguments)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
