"""The first step after a changed LoRA strength, as a multiple of a step in the steady state; and what it page-locks.

    python -m bench.lora_step [--json] [--strengths N]

57 layers, as many as Flux has, through a ring of three; page-locking at a tenth of the link's rate. A step is what lies
between the ends of two passes on the device's clock; the first one contains what happens between them, too.

virtual clock     two lanes of arithmetic (tests/support/virtual_clock.py): exact, and the same on any machine. A layer
                  takes 4096 ns on the link and 3000 or 5000 ns of compute; its LoRA takes a twentieth of that
simulated device  threads and real time, by the device's own events: 1 MiB a layer at 100 MB/s, so that the link is the
                  limit; kernels run on the host. Median over the strengths, each beside the steady steps that follow it

Each is run as the engine is, and with host memory for patched layers taken in the middle of the pass, anew for each
strength, as it was before decision 165. Neither is a real device: ratios only, of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bench.host_overhead import processor
from offload_core.runtime import OffloadController, attach
from offload_core.runtime.layers.layer import Layer
from offload_core.runtime.patches.versions import Versions
from tests.support import simdev
from tests.support.clocked_model import RATE, equal_layers
from tests.support.hand_plan import hand_plan
from tests.support.lora_strength import strengthened
from tests.support.tiny_torch_models import Wide

LAYERS = 57
LIMITS = {3000: "the link is the limit", 5000: "the compute is the limit"}
"""By the nanoseconds of a layer's compute."""
PIN_SHARE = 10
"""The link's rate over that of page-locking."""
LINK_BYTES_PER_S = 100e6
FIRST_STRENGTH = 0.95
SETTLING_PASSES = 4
STEADY_PASSES = 3


@dataclass
class Steps:
    """One run: the first step after each changed strength, and the steps in the steady state that follow it."""

    clock: str
    limit: str
    memory_taken: str
    first_ns: list[float] = field(default_factory=list)
    steady_ns: list[float] = field(default_factory=list)
    """For each changed strength the median."""
    locks_before_first: list[int] = field(default_factory=list)
    """Page-locks between the passes, for each changed strength."""
    locks_in_first: list[int] = field(default_factory=list)
    """Page-locks within its first pass."""
    copied_back_bytes: int = 0

    @property
    def ratio(self) -> float:
        return statistics.median(first / steady for first, steady in zip(self.first_ns, self.steady_ns))


def measure(
    steps: Steps,
    set_strength: Callable[[float], None],
    a_pass: Callable[[], float],
    locks: Callable[[], int],
    count: int,
) -> None:
    """`a_pass` runs one and returns its end, in nanoseconds. The first strength was not measured: nothing was there."""
    for _ in range(SETTLING_PASSES):
        end = a_pass()
    for number in range(count):
        counted, began = locks(), end
        set_strength(FIRST_STRENGTH * (number + 1) / (count + 1))
        steps.locks_before_first.append(locks() - counted)
        counted = locks()
        ends = [a_pass()]
        steps.locks_in_first.append(locks() - counted)
        ends += [a_pass() for _ in range(1 + STEADY_PASSES)]
        steps.first_ns.append(ends[0] - began)
        steps.steady_ns.append(statistics.median(end - begin for begin, end in zip(ends[1:], ends[2:])))
        end = ends[-1]


def on_the_virtual_clock(compute_ns: int, count: int = 2, taken: str = "between passes") -> Steps:
    bench = equal_layers(compute_ns, LAYERS)
    port, controller = bench.port, bench.controller

    def set_strength(factor: float) -> None:
        controller.set_changes(strengthened(bench.model.blocks, factor, lambda: port.compute(compute_ns // 20)))

    def a_pass() -> int:
        return max(bench.pass_(), port.host_ns)

    controller.load(hand_plan(controller, 3 * 4096))
    port.page_lock_bytes_per_s = RATE / PIN_SHARE
    set_strength(FIRST_STRENGTH)
    steps = Steps("virtual clock", LIMITS[compute_ns], taken)
    measure(steps, set_strength, a_pass, lambda: port.page_locks, count)
    steps.copied_back_bytes = port.copied_back_bytes
    controller.detach()
    return steps


def on_the_simulated_device(count: int, taken: str = "between passes") -> Steps:
    npu = simdev.load()
    npu.configure(mb=512, bandwidth=LINK_BYTES_PER_S, poison=False, race=False)
    model, x = Wide(LAYERS).requires_grad_(False), torch.ones(2, 512).to("npu")
    origin = torch.Event("npu", enable_timing=True)

    def set_strength(factor: float) -> None:
        controller.set_changes(strengthened(model.blocks, factor))

    def a_pass() -> float:
        model(x)
        end = torch.Event("npu", enable_timing=True)
        end.record()
        end.synchronize()
        return origin.elapsed_time(end) * 1e6

    with attach(model, device="npu", min_layer_bytes=1) as attachment, torch.no_grad():
        controller: OffloadController = attachment.controller
        set_strength(FIRST_STRENGTH)
        npu.configure(pin_bandwidth=LINK_BYTES_PER_S / PIN_SHARE)
        origin.record()
        steps = Steps("simulated device", LIMITS[3000], taken)
        measure(steps, set_strength, a_pass, lambda: npu.stats()["registrations"], count)
        steps.copied_back_bytes = controller.counters.copied_back
    return steps


@contextlib.contextmanager
def memory_taken_in_the_pass() -> Iterator[None]:
    """Host memory for a patched layer is taken when it is copied back, anew for each strength."""
    reserve, save = Versions.reserve, Versions.save

    def taken(self: Versions, layer: Layer) -> int:
        buffer = self._take(layer)
        if buffer is not None:
            self._reserved[layer] = buffer
        return save(self, layer)

    Versions.reserve, Versions.save = lambda self, *rest: None, taken  # type: ignore[method-assign]
    try:
        yield
    finally:
        Versions.reserve, Versions.save = reserve, save  # type: ignore[method-assign]


def runs(count: int) -> Iterator[Steps]:
    for compute_ns in LIMITS:
        yield on_the_virtual_clock(compute_ns, count)
        with memory_taken_in_the_pass():
            yield on_the_virtual_clock(compute_ns, count, "in the pass")
    if not simdev.available():
        print("not run: no simulated device; `python3 dev.py setup` builds it", file=sys.stderr)
        return
    yield on_the_simulated_device(count)
    with memory_taken_in_the_pass():
        yield on_the_simulated_device(count, "in the pass")


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--strengths", type=int, default=5, help="how often it is changed (default %(default)s)")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    facts: dict[str, Any] = {
        "command": " ".join(["python -m bench.lora_step", *words]),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "load_average": os.getloadavg()[0],
    }
    results = [{**asdict(steps), "ratio": round(steps.ratio, 3)} for steps in runs(arguments.strengths)]
    if arguments.json:
        print(json.dumps({**facts, "layers": LAYERS, "results": results}))
        return 0
    print(*facts["machine"].values(), *(f"{name} {version}" for name, version in facts["versions"].items()), sep=", ")
    columns = "{:17s} {:25s} {:16s} {:>10s} {:>13s} {:>11s}"
    print(columns.format("clock", "", "memory is taken", "steady ms", "first/steady", "locks in it"))
    for row in results:
        steady = statistics.median(row["steady_ns"]) / 1e6
        figures = f"{steady:.3f}", f"{row['ratio']:.2f}", str(max(row["locks_in_first"]))
        print(columns.format(row["clock"], row["limit"], row["memory_taken"], *figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
