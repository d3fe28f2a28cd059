"""Runs on the GPU machine: everything that needs a real device, against one deadline, into rows of figures.

    ./run.sh [--out result] [--deadline-s 500] [--only PART,...] [--smoke] [--list]

`dev.py gpu-kit DIR` packs DIR; this machine has no network, a Python with its own CUDA torch, and no ComfyUI. Each row
is appended to OUT.jsonl when it is known; logs lie in OUT.logs. A part that dies or hangs costs its own rows only; when
the deadline nears, parts are cut from the end, never the core bench; Ctrl-C leaves the rows so far. What this machine
cannot give is a row that says why.

`--smoke` tries the kit itself, in small, on the simulated device (SIMDEV_LIB) or the CPU. For rehearsals of the worse
kind, `--break PART=hang` and `--break PART=crash` have a part do so after its first row; `--limit PART=SECONDS` is its
time. Standard library only: it starts the programs that know more.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bench.kit.parts import PARTS, Part
from bench.kit.runner import Plan, Runner
from bench.kit.unpack import missing_modules, read_manifest, unpack

STOPPED = 130


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kit", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("result"), help="OUT.jsonl and OUT.logs are written")
    parser.add_argument("--deadline-s", type=float, default=500.0, help="for all of it (default %(default)s)")
    parser.add_argument("--device", choices=("cuda", "sim", "cpu"), help="default: cuda; with --smoke sim, or cpu")
    parser.add_argument("--size", default="auto", help="of the core bench's model: full (24 GB), half, tiny")
    parser.add_argument("--only", default="", help="comma-separated parts; a name also stands for what it begins")
    parser.add_argument("--smoke", action="store_true", help="try the kit itself; no device needed")
    parser.add_argument("--list", action="store_true", help="say what the parts are")
    pairs = {"action": "append", "default": [], "metavar": "PART=WORD"}
    parser.add_argument("--break", dest="breaks", help="a rehearsal: hang or crash", **pairs)
    parser.add_argument("--limit", dest="limits", help="seconds for one part", **pairs)
    return parser.parse_args(words)


def chosen(only: str) -> list[Part]:
    """The parts that `--only` names, all for an empty one. `app` stands for every part that begins with `app-`."""
    names = [name for name in only.split(",") if name]
    known = {part.name for part in PARTS}
    unknown = [name for name in names if not any(one == name or one.startswith(name + "-") for one in known)]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: the parts are {', '.join(part.name for part in PARTS)}")
    wanted = {one for one in known for name in names if one == name or one.startswith(name + "-")} or known
    return [part for part in PARTS if part.name in wanted or part.name == "facts"]


def device_of(arguments: argparse.Namespace) -> str:
    if arguments.device or not arguments.smoke:
        return arguments.device or "cuda"
    return "sim" if os.environ.get("SIMDEV_LIB") or os.environ.get("LAYERWISE_DEV_DIR") else "cpu"


def end_by_signal(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(words: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    arguments = parse(words)
    if arguments.list:
        print("\n".join(f"{part.name:24s} {part.gives}" for part in PARTS))
        return 0
    parts = chosen(arguments.only)
    missing = missing_modules()
    if {"torch", "numpy"} & set(missing):
        print(f"this machine's Python ({sys.executable}) lacks {', '.join(missing)}", file=sys.stderr)
        return 2
    manifest = read_manifest(arguments.kit)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    environment, lacking = unpack(arguments.kit, arguments.work, manifest)
    plan = Plan(arguments.out, arguments.work, device_of(arguments), arguments.smoke, arguments.deadline_s,
                arguments.size, pairs_of(arguments.breaks),
                {name: float(text) for name, text in pairs_of(arguments.limits).items()})  # fmt: skip
    runner = Runner(plan, environment, str(manifest["commit"]), started)
    signal.signal(signal.SIGTERM, end_by_signal)
    signal.signal(signal.SIGHUP, end_by_signal)
    if plan.smoke:
        parts = [part for part in parts if part.in_small]
    runner.write("kit", "begun", comfyui=manifest["comfyui"], smoke=plan.smoke, lacking=[*missing, *lacking])
    try:
        runner.run(parts)
    except KeyboardInterrupt as stopped:
        runner.write("kit", "stopped", reason=str(stopped) or "Ctrl-C")
        return STOPPED
    return conclude(runner, started)


def pairs_of(words: Sequence[str]) -> dict[str, str]:
    """`PART=WORD` as a dictionary. Ends the program for a part that is none."""
    pairs = dict(word.partition("=")[::2] for word in words)
    if unknown := set(pairs) - {part.name for part in PARTS}:
        raise SystemExit(f"{', '.join(unknown)}: no such part; --list says which there are")
    return pairs


def conclude(runner: Runner, started: float) -> int:
    """Say how each part ended. 0 if all that were begun ended well, and there was a device to begin them on."""
    why_not = runner.common().get("device", {}).get("why_not", "")
    runner.write("kit", "ended", seconds=time.monotonic() - started, parts=runner.outcomes)
    for name, how in runner.outcomes.items():
        print(f"{name:24s} {how}")
    print(f"rows: {runner.rows_file.resolve()}")
    return 1 if runner.failed() or why_not else 0


if __name__ == "__main__":
    sys.exit(main())
