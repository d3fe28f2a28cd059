"""What compute waits for when one component hands over to the next, with and without the next one's head fetched early.

    python -m bench.hand_over [--json] [--prompts N]

An encoder (two texts, a pass each), a diffusion model (six passes) and an autoencoder (one pass) share a ring, prompt
after prompt. The host looks at the result of each use before the next begins, as ComfyUI does. The wait is what the
first pass of a use waits for copies, by the engine's own events, in the last prompt.

virtual clock     two lanes of arithmetic (tests/support/virtual_clock.py): exact, and the same on any machine
simulated device  threads and real time, 1 MiB a layer at 800 MB/s; the shortest wait of several prompts counts

"off" is the same engine, whose look-ahead ends with its component, as it was before decision 183. Neither is a real
device: ratios only, of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.host_overhead import processor
from offload_core.planning.plan import Plan
from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.planning.succession import Succession
from offload_core.runtime import DeviceQueue, OffloadController, attach, discover
from offload_core.runtime.device.ports import port_for
from offload_core.trace.events import Trace
from tests.support import simdev
from tests.support.clocked_model import RATE
from tests.support.tiny_torch_models import DIM, Model, Wide, on_run
from tests.support.virtual_clock import VirtualClockPort

LAYERS = {"encoder": 12, "diffusion model": 16, "autoencoder": 8}
USES = (("encoder", 1), ("encoder", 1), ("diffusion model", 6), ("autoencoder", 1))
"""Component and passes of each use in a prompt."""
COMPUTE_NS = 6000
"""Of a layer on the virtual clock, which takes 4096 ns on the link."""
LINK_BYTES_PER_S = 800e6
ROWS = 256
"""Of the simulated device's input, so that a layer's compute takes about twice its copy."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """The first pass of a use."""

    clock: str
    early: bool
    before: str
    component: str
    wait_ns: int
    demand_loads: int
    early_copies: int


class Stage:
    """Components that share a ring. `runs[name]` makes a pass of one; in `wait` the host waits for the device."""

    def __init__(
        self,
        controllers: dict[str, OffloadController],
        runs: dict[str, Callable[[], Any]],
        wait: Callable[[], Any],
    ) -> None:
        self.controllers, self._runs, self._wait = controllers, runs, wait
        self._counted = {name: controller.counters.as_dict() for name, controller in controllers.items()}
        """The counters at the end of the last use of each."""
        trace = Trace()
        trace.watch(True)  # so that each pass is measured
        for name, controller in controllers.items():
            controller.record(trace, name)

    def prompt(self, uses: Sequence[tuple[str, int]] = USES) -> list[tuple[str, dict[str, int]]]:
        """Runs a prompt. For each use the component and what its counters grew by until its first pass had ended, the
        copies that were made for it in the use before included."""
        results = []
        for name, passes in uses:
            controller = self.controllers[name]
            controller.use_begins()
            for number in range(passes):
                self._runs[name]()
                if number == 0:
                    self._wait()
                    controller.prefetcher.read_times()
                    before = self._counted[name]
                    counts = controller.counters.as_dict()
                    results.append((name, {key: counts[key] - before[key] for key in counts}))
            self._wait()
            controller.prefetcher.read_times()
            self._counted[name] = controller.counters.as_dict()
        return results

    def close(self) -> None:
        for controller in self.controllers.values():
            controller.detach()


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Look-ahead ends with its component."""
    pass_begins = Succession.pass_begins
    Succession.pass_begins = lambda self, component: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Succession.pass_begins = pass_begins  # type: ignore[method-assign]


def plan_of(controller: OffloadController, ring_layers: int, rate: float, compute_ns: int) -> Plan:
    """The planner's for several passes in a row, with a ring of so many layers and no residents, by measured times, as
    in the app from a model's second step on."""
    inventory = controller.inventory
    ring_bytes = ring_layers * max(layer.bytes for layer in inventory.layers)
    layers = tuple(replace(layer, compute_ns=compute_ns) for layer in inventory.layers)
    inventory = replace(inventory, layers=layers)
    budget = inventory.reserved(ring_bytes) + inventory.reserved(inventory.loose_bytes)
    device = str(controller.queue.port.device)
    return make_plan(PlanRequest(inventory, device, budget, ring_bytes, passes=2, h2d_bytes_per_s=rate))


def virtual_stage() -> Stage:
    port = VirtualClockPort(RATE)
    queue = DeviceQueue(port)
    controllers, runs = {}, {}
    for name, count in LAYERS.items():
        model = Model([4] * count)
        discovery = discover(model, min_layer_bytes=1)
        controllers[name] = OffloadController(model, queue, component=name, discovery=discovery)
        controllers[name].load(plan_of(controllers[name], 3, RATE, COMPUTE_NS))

        def run(model: Model = model) -> None:
            with torch.no_grad(), on_run(lambda block: port.compute(COMPUTE_NS, block.tag)):
                model(torch.ones(1, DIM))

        runs[name] = run

    def wait() -> None:
        port.host_ns = max(port.host_ns, port.compute_ns)

    return Stage(controllers, runs, wait)


def simulated_stage() -> Stage:
    npu = simdev.load()
    npu.configure(mb=512, bandwidth=LINK_BYTES_PER_S, poison=False, race=False)
    queue = DeviceQueue(port_for("npu"))
    x = torch.ones(ROWS, 512).to("npu")
    controllers, runs = {}, {}
    for name, count in LAYERS.items():
        model = Wide(count).requires_grad_(False)
        attachment = attach(model, device="npu", component=name, min_layer_bytes=1, queue=queue)
        controllers[name] = attachment.controller
        layer_bytes = max(layer.bytes for layer in controllers[name].inventory.layers)
        compute_ns = int(2e9 * layer_bytes / LINK_BYTES_PER_S)
        controllers[name].load(plan_of(controllers[name], 3, LINK_BYTES_PER_S, compute_ns))

        def run(model: Wide = model) -> None:
            with torch.no_grad():
                model(x)

        runs[name] = run

    def wait() -> None:
        end = torch.Event("npu")
        end.record()
        end.synchronize()

    return Stage(controllers, runs, wait)


def hand_overs(clock: str, stage: Stage, early: bool, prompts: int) -> list[HandOver]:
    """The hand-overs of a prompt, after two from which the order is learned: of `prompts` the shortest wait of each,
    since a busy machine adds to the wait on the simulated device."""
    rows: list[HandOver] = []
    with contextlib.nullcontext() if early else off():
        for _ in range(2):
            stage.prompt()
        results = [stage.prompt() for _ in range(prompts)]
    names = [name for name, _ in results[0]]
    for place, (before, name) in enumerate(zip([names[-1], *names], names)):
        counts = [result[place][1] for result in results]
        wait_ns = min(count["stall_ns"] for count in counts)
        demand, copies = (max(count[key] for count in counts) for key in ("demand_loads", "early_copies"))
        rows.append(HandOver(clock, early, before, name, wait_ns, demand, copies))
    stage.close()
    return rows


def on_the_virtual_clock() -> list[HandOver]:
    return [row for early in (False, True) for row in hand_overs("virtual clock", virtual_stage(), early, 1)]


def on_the_simulated_device(prompts: int) -> list[HandOver]:
    return [row for early in (False, True) for row in hand_overs("simulated device", simulated_stage(), early, prompts)]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--prompts", type=int, default=3, help="on the simulated device (default %(default)s)")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = on_the_virtual_clock()
    if simdev.available():
        rows += on_the_simulated_device(arguments.prompts)
    else:
        print("not run: no simulated device; `python3 dev.py setup` builds it", file=sys.stderr)
    facts: dict[str, Any] = {
        "command": " ".join(["python -m bench.hand_over", *words]),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "load_average": os.getloadavg()[0],
    }
    if arguments.json:
        print(json.dumps({**facts, "results": [asdict(row) for row in rows]}))
        return 0
    print(*facts["machine"].values(), *(f"{name} {version}" for name, version in facts["versions"].items()), sep=", ")
    columns = "{:17s} {:5s} {:35s} {:>12s} {:>13s} {:>13s}"
    print(columns.format("clock", "early", "hand-over", "wait, us", "demand loads", "early copies"))
    for row in rows:
        way, early = f"{row.before} -> {row.component}", "on" if row.early else "off"
        figures = f"{row.wait_ns / 1e3:.1f}", str(row.demand_loads), str(row.early_copies)
        print(columns.format(row.clock, early, way, *figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
