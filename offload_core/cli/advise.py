"""`python3 -m offload_core advise FILE [FILE ...] --device-gb 8`: memory and pass times of models before they load."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import OffloadError, PlanError
from ..files.model_files import ModelFile, read_models
from ..planning.cost_model import ASSUMED_FLOPS
from ..planning.simulate import copy_ns
from ..units import format_bytes, format_ns
from .adviser import GPUS, Advice, Machine, advise, budget_curve
from .json_io import write_json

_SCHEMA = 1
_AS_FAST = 1.005  # ratios of times below this are shown as "as long as"
_PLOT_POINTS = 49
_DEFAULT_H2D_GBPS = 25.0
_HEADINGS = (
    *("model", "component", "passes", "size"),
    *("resident", "ring", "streamed", "host"),
    *("all resident", "layerwise", "moved whole"),
)
_GROUPS = ((4, ""), (2, "on the device"), (2, "in host memory"), (3, "time of one pass"))
"""The line above the headings: (number of columns, their common title)."""


def add_parser(subparsers: Any) -> None:
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
    """Returns exit code 0. Raises OffloadError for bad input, OSError for files that cannot be read."""
    machine = _machine(args)
    models = read_models(args.files)
    answers = advise(models, machine)
    if args.png is not None:
        _draw(args.png, models, machine)
    if args.json:
        components = [answer.to_json() for answer in answers]
        write_json({"schema": _SCHEMA, "machine": asdict(machine), "components": components})
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


def _text(answers: Sequence[Advice], machine: Machine) -> list[str]:
    lines = [
        f"{format_bytes(machine.device_bytes)} of device memory for weights (activations come on top), "
        f"{_speeds(machine)}",
        "",
        *_columns(answers),
    ]
    for answer in answers:
        lines += ["", f"{answer.component} of {answer.model}:", *(f"  {line}" for line in _remarks(answer, machine))]
    host = sum(answer.host_bytes for answer in answers)
    lines += ["", f"host memory for what is not resident: {format_bytes(host)}"]
    if machine.host_bytes is not None and host > machine.host_bytes:
        missing = format_bytes(host - machine.host_bytes)
        lines.append(f"  that is {missing} more than there is: that much would be read from the files in every use")
    return lines


def _speeds(machine: Machine) -> str:
    return f"link {machine.h2d_bytes_per_s / 1e9:g} GB/s, {machine.tflops:g} TFLOPS ({machine.source})"


def _columns(answers: Sequence[Advice]) -> list[str]:
    rows = [_HEADINGS, *map(_row, answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [_group_line(widths)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths)]  # left-aligned: model and component
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(answer: Advice) -> tuple[str, ...]:
    plan = answer.plan
    on_device = (plan.resident_bytes + plan.loose_bytes, plan.ring_bytes) if plan else (0, 0)
    sizes = (*on_device, answer.streamed_bytes, answer.host_bytes)
    times = (answer.resident_ns, answer.layerwise_ns, answer.whole_ns)
    return (
        answer.model if len(answer.model) <= 40 else f"...{answer.model[-37:]}",
        answer.component,
        str(answer.passes),
        format_bytes(answer.file_bytes),
        *(format_bytes(size) if plan else "-" for size in sizes),
        *("does not fit" if time is None else format_ns(time) for time in times),
    )


def _group_line(widths: Sequence[int]) -> str:
    cells, column = [], 0
    for count, words in _GROUPS:
        width = sum(widths[column : column + count]) + 2 * (count - 1)
        cells.append(f" {words} ".center(width, "-") if words else " " * width)
        column += count
    return "  ".join(cells)


def _remarks(answer: Advice, machine: Machine) -> list[str]:
    """What the figures of one component mean, a sentence per line."""
    least = format_bytes(answer.smallest_bytes)
    if answer.component == "lora":
        return ["patches another model's weights: takes no device memory of its own"]
    if answer.plan is None or answer.layerwise_ns is None:
        return [f"does not fit: {least} is the least that works, {format_bytes(machine.device_bytes)} were given"]
    whole = format_bytes(answer.total_bytes)
    if not answer.plan.streamed:
        fits = answer.total_bytes <= machine.device_bytes
        lines = ["everything stays on the device" if fits else "nothing can be streamed"]
    elif answer.passes == 1:
        moved = answer.resident_ns + copy_ns(answer.total_bytes, machine.h2d_bytes_per_s)
        lines = [
            f"a pass takes {format_ns(answer.layerwise_ns)}, copies included; moving everything in first and computing "
            f"then takes {format_ns(moved)} and {whole}"
        ]
    else:
        ratio = answer.layerwise_ns / answer.resident_ns if answer.resident_ns else 1.0
        times = "as long as" if ratio < _AS_FAST else f"{ratio:.2f} times as long as"
        lines = [f"a pass takes {times} with everything on the device ({whole})"]
    if answer.smallest_bytes < answer.total_bytes:
        lines.append(f"{least} is the least that works")
        if answer.free_bytes is None:
            lines[-1] += "; more saves next to nothing: one pass copies every layer once, whatever stays"
        elif answer.free_bytes < answer.total_bytes:
            lines[-1] += f"; streaming costs nothing from {format_bytes(answer.free_bytes)} on"
        else:
            lines[-1] += f"; every byte less than {whole} costs time"
    return lines


def _draw(path: Path, models: Sequence[ModelFile], machine: Machine) -> None:
    """Writes a PNG of pass time against budget, one panel per component: scales differ by orders of magnitude.

    Raises PlanError for a name that does not end in .png, OffloadError without matplotlib.
    """
    if path.suffix.lower() != ".png":
        raise PlanError.bad_field("--png", str(path), "a name that ends in .png")
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(layout="constrained")
    except ImportError:
        raise OffloadError("--png needs matplotlib, which is not installed here; leave --png out") from None
    curves = [
        (f"{component} of {model.name}", curve)
        for model in models
        for component, curve in budget_curve(model, machine, _PLOT_POINTS).items()
    ]
    figure.set_size_inches(8, 0.7 + 3.4 * len(curves))
    figure.suptitle(_speeds(machine), fontsize="medium")
    for axes, (title, curve) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves):
        _draw_curve(axes, title, curve, machine.device_bytes)
    figure.savefig(str(path), dpi=150)


def _draw_curve(axes: Any, title: str, curve: Sequence[tuple[int, int]], device_bytes: int) -> None:
    smallest, whole = curve[0][0], curve[-1][0]
    unit, word = (1e9, "GB") if whole >= 1e9 else (1e6, "MB")
    fastest = curve[-1][1] / 1e6
    times = [time / 1e6 for _, time in curve]
    axes.plot([budget / unit for budget, _ in curve], times, drawstyle="steps-post", label="layerwise")
    resident = f"everything fits, {whole / unit:.3g} {word}"
    device = f"the device, {device_bytes / unit:.3g} {word}"
    axes.axhline(fastest, color="grey", linestyle="--", linewidth=1, label=resident)
    axes.axvspan(0, smallest / unit, color="grey", alpha=0.15, linewidth=0, label="too little")
    if device_bytes <= whole * 1.1:  # further right it would compress the curve
        axes.axvline(device_bytes / unit, color="tab:red", linestyle=":", label=device)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel(f"device memory for weights ({word})")
    axes.set_ylabel("one pass (ms)")
    axes.set_xlim(0, max(whole, min(device_bytes, whole * 1.1)) * 1.02 / unit)
    axes.set_ylim(0, max(times) * 1.08 or 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
