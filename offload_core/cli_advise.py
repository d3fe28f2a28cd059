"""`python3 -m offload_core advise FILE [FILE ...] --device-gb 8`: what models will need and cost, before loading them.

Reads headers only. Knows the command's options and its table, nothing about how the answers are found.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .advise import GPUS, Advice, Machine, advise, budget_curve
from .cost_model import ASSUMED_FLOPS
from .errors import OffloadError, PlanError
from .model_files import ModelFile, read_models
from .plan_text import format_bytes, format_ns

__all__ = ["add_parser", "run"]

_SCHEMA = 1
_DEFAULT_H2D_GBPS = 25.0
_HEADINGS = (
    "model",
    "component",
    "size",
    "resident",
    "streamed",
    "ring",
    "host",
    "all resident",
    "layerwise",
    "moved whole",
)


def add_parser(subparsers: Any) -> None:
    """Declare the sub-command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "advise",
        help="say what model files will need and cost on a device, from their headers",
        description="Read the headers of safetensors or GGUF files (or the index of a sharded model) and say, for each "
        "component: what would be resident, streamed and on the host, and how long a pass would take. "
        "Weights only: leave room for activations. GB are 10^9 bytes.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--device-gb", type=_positive, required=True, help="device memory the weights may use")
    parser.add_argument("--host-gb", type=_positive, help="host memory there is")
    parser.add_argument("--gpu", help=f"one of: {', '.join(GPUS)}; sets --h2d-gbps and --tflops")
    parser.add_argument("--h2d-gbps", type=_positive, help="pinned host-to-device rate in GB/s (default 25)")
    parser.add_argument("--tflops", type=_positive, help="dense 16-bit TFLOPS the device reaches (default 100)")
    parser.add_argument("--tokens", type=_count, help="tokens of one pass of the diffusion model (default 4096)")
    parser.add_argument("--passes", type=_count, default=20, help="passes of the diffusion model in a run (default 20)")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--png", type=Path, help="draw pass time against budget into this file (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Run it. Raises OffloadError for bad input, OSError for files that cannot be read."""
    from .cli import write_json  # here: `cli` imports this module

    machine = _machine(args)
    models = read_models(args.files)
    answers = advise(models, machine)
    if args.png is not None:
        _draw(args.png, models, machine)
    if args.json:
        write_json({"schema": _SCHEMA, "machine": _machine_json(machine), "components": [a.to_json() for a in answers]})
    else:
        print("\n".join(_text(answers, machine)))
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number above 0, at most 1000000")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= value <= 10_000_000:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number from 1 to 10000000")
    return value


def _machine(args: argparse.Namespace) -> Machine:
    tflops, rate, source = ASSUMED_FLOPS / 1e12, _DEFAULT_H2D_GBPS, "assumed"
    if args.gpu is not None:
        name = args.gpu.upper().replace("NVIDIA ", "").replace("GEFORCE ", "").strip()
        if name not in GPUS:
            raise PlanError.bad_field("--gpu", args.gpu, f"{', '.join(GPUS)} (or give --h2d-gbps and --tflops)")
        (tflops, rate), source = GPUS[name], name
    if args.tflops is not None or args.h2d_gbps is not None:
        source = "as given" if args.gpu is None and args.tflops and args.h2d_gbps else f"{source}, in part as given"
    return Machine(
        device_bytes=int(args.device_gb * 1e9),
        h2d_bytes_per_s=(args.h2d_gbps or rate) * 1e9,
        tflops=args.tflops or tflops,
        source=source,
        host_bytes=None if args.host_gb is None else int(args.host_gb * 1e9),
        tokens=args.tokens,
        passes=args.passes,
    )


def _machine_json(machine: Machine) -> dict[str, Any]:
    return {field: getattr(machine, field) for field in Machine.__slots__}


# ---- text


def _text(answers: Sequence[Advice], machine: Machine) -> list[str]:
    lines = [
        f"device {format_bytes(machine.device_bytes)} for weights, link {machine.h2d_bytes_per_s / 1e9:g} GB/s, "
        f"{machine.tflops:g} TFLOPS ({machine.source})",
        "",
        *_columns(answers),
        "",
    ]
    for answer in answers:
        lines += _remarks(answer)
    host = sum(answer.host_bytes for answer in answers)
    lines.append(f"host memory for what is not resident: {format_bytes(host)}")
    if machine.host_bytes is not None and host > machine.host_bytes:
        missing = format_bytes(host - machine.host_bytes)
        lines.append(f"  that is {missing} more than there is: that much would be read from the files in every use")
    return lines


def _columns(answers: Sequence[Advice]) -> list[str]:
    rows = [_HEADINGS]
    for answer in answers:
        plan = answer.plan
        layerwise = answer.layerwise_ns
        rows.append(
            (
                answer.model if len(answer.model) <= 40 else f"...{answer.model[-37:]}",
                f"{answer.component} x{answer.passes}",
                format_bytes(answer.file_bytes),
                format_bytes(plan.resident_bytes + plan.loose_bytes) if plan else "-",
                format_bytes(answer.streamed_bytes) if plan else "-",
                format_bytes(plan.ring_bytes) if plan else "-",
                format_bytes(answer.host_bytes) if plan else "-",
                format_ns(answer.resident_ns),
                "does not fit" if layerwise is None else format_ns(layerwise),
                "does not fit" if answer.whole_ns is None else format_ns(answer.whole_ns),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths)]  # names left, figures right
        lines.append("  ".join(cells))
    return lines


def _remarks(answer: Advice) -> list[str]:
    lines = []
    if answer.problem is not None:
        lines.append(f"{answer.component} of {answer.model}: {answer.problem}")
    elif answer.free_bytes is not None:
        lines.append(
            f"{answer.component} of {answer.model}: streaming costs nothing from {format_bytes(answer.free_bytes)} of "
            f"device memory on; {format_bytes(answer.smallest_bytes)} is the least that works"
        )
    return lines


# ---- picture


def _draw(path: Path, models: Sequence[ModelFile], machine: Machine) -> None:
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(8, 5))
    except ImportError:
        raise OffloadError("--png needs matplotlib, which is not installed here; leave --png out") from None
    axes = figure.subplots()
    for model in models:
        for component, curve in budget_curve(model, machine).items():
            budgets, times = [budget / 1e9 for budget, _ in curve], [time / 1e6 for _, time in curve]
            axes.plot(budgets, times, "o-", label=f"{component} of {model.name}")
    axes.axvline(machine.device_bytes / 1e9, color="grey", linestyle=":", label="the device")
    axes.set_xlabel("device memory for weights (GB)")
    axes.set_ylabel("one pass (ms)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(str(path), dpi=150)
