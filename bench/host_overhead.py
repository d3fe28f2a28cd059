"""Host time that offloading adds to each visit of a block: ours, diffusers' group offloading, accelerate's hooks.

    python -m bench.host_overhead [--json] [--repeats N] [--profile]

While the host is busy with hooks it launches no kernels, so this time is what limits an offload engine on fast blocks.
All contenders run in one process on the same stack of 24 blocks, which have the module tree of a Flux block in
diffusers, 32 parameters of 4 KiB, and compute nothing. They take turns, each beside the same stack without any
offloading: the figures are the difference, per visit of a block. "median" is over the turns. "quiet" takes, for each
of a turn's passes, the fastest of all turns, with and without: what a machine with nothing else to do shows. Both are
processor time of the calling thread, where a host that waits for a device counts as idle; that favours the peers: they
wait, ours does not.

Two groups. With a device's copies, on the simulated accelerator, whose copies run on a thread of their own at 1 GB/s;
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

`SIMDEV_DEVICES=2` in the environment shows what a second device in the machine costs: calls have to be told apart.
On a machine with CUDA (`--device cuda`) the first group runs there, with nothing bent; but there waiting spins, and so
counts.
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
from typing import Any

import torch

from bench.kit import rows as kit_rows
from bench.overhead_contenders import BLOCKS, PARAMETERS, Contender, contenders

WARM_UP_PASSES = 4
PASSES = 8
"""Passes per turn: one of them is also measured by our engine, as every eighth is in real use."""


Turn = list[float]
"""Microseconds a visit, in each of its passes."""


def turn(run: Callable[[], Any]) -> Turn:
    """Processor time of this thread; what a device does meanwhile, and waiting for it, is not in it."""
    passes = []
    for _ in range(PASSES):
        start = time.thread_time_ns()
        run()
        passes.append((time.thread_time_ns() - start) / 1e3 / BLOCKS)
    return passes


def measure(found: list[Contender], repeats: int) -> list[dict[str, Any]]:
    """Microseconds a visit for each contender, the plain stack taken off. They take turns, so all see the same load."""
    samples: list[list[tuple[Turn, Turn]]] = [[] for _ in found]
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
                    pairs.append((turn(contender.run), turn(contender.baseline)))
        finally:
            gc.enable()
    return [{"group": c.group, "name": c.name, **_summary(pairs)} for c, pairs in zip(found, samples)]


def _summary(pairs: list[tuple[Turn, Turn]]) -> dict[str, float]:
    """`pairs`: per turn, with offloading and without."""
    with_it, without = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    means = [(statistics.mean(offloaded), statistics.mean(plain)) for offloaded, plain in pairs]
    differences = sorted(offloaded - plain for offloaded, plain in means)
    return {
        "us_per_visit": round(statistics.median(differences), 2),
        "us_quiet": round(_fastest(with_it) - _fastest(without), 2),
        "us_p90": round(differences[int(0.9 * (len(differences) - 1))], 2),
        "plain_us_per_visit": round(statistics.median(plain for _, plain in means), 2),
    }


def _fastest(turns: list[Turn]) -> float:
    """A turn, each of whose passes took as long as the fastest of its place. Our eighth, the measured one, counts."""
    return statistics.mean(map(min, zip(*turns)))


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
    if os.environ.get(kit_rows.ROWS):
        rows = kit_rows.open_rows("overhead")
        for row in result["results"]:
            rows.write(f"{row['name']}, {row['group']}", **{key: row[key] for key in row if key != "name"})
        rows.write("not run", contenders=missing)
    print(json.dumps(result)) if arguments.json else show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
