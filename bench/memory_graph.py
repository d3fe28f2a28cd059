"""Our streaming inside the memory graph of ComfyUI's compiler: is it right there, and is the graph worth having?

    python -m bench.memory_graph [--device cuda|sim] [--size full|tiny] [--steps N] [--out FILE.json]

On CUDA with the library itself (`pip install comfy-aimdo==0.6.0`) and the app's allocator; `sim` runs the same on the
simulated accelerator and the tests' stand-in, whose times mean nothing. No ComfyUI is needed: the graph is opened here
as the app does it, a scope for each block, on a model whose blocks write into their input.

Each case says whether its output equals the resident model's to the bit, how many graph breaks it had in the first pass
and later, and its median step. The cases: streamed without the graph ("compiler off") and with it; patches on arrival
and layers outside the ring, each with the graph paused around what they take and without; a full device in the graph.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES = {"full": (24, 4096, 4096), "tiny": (6, 256, 64)}
"""Blocks, width, rows of the input."""
STAND_IN = Path(__file__).resolve().parents[1] / "tests" / "support" / "simdev" / "dynamic" / "comfy_aimdo"


class Unavailable(Exception):
    """What the probe needs is not here."""


def open_library(kind: str) -> Any:
    """The module with `record`. Before torch is imported, as the library wants it. Raises Unavailable."""
    if kind == "sim":
        from tests.support import simdev

        if not simdev.available():
            raise Unavailable("no simulated accelerator: run `python3 dev.py setup`, which needs a C++ compiler")
        simdev.load().configure(mb=2048, bandwidth=0, poison=True, race=False)
        spec = importlib.util.spec_from_file_location("stand_in_malloc_graph", STAND_IN / "malloc_graph.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    try:
        control = importlib.import_module("comfy_aimdo.control")
        graphs = importlib.import_module("comfy_aimdo.malloc_graph")
    except ImportError as error:
        raise Unavailable(f"no comfy-aimdo with memory graphs ({error}): pip install comfy-aimdo==0.6.0") from None
    import torch

    if not torch.cuda.is_available():
        raise Unavailable("torch finds no CUDA device")
    if not control.init("cuda") or not control.init_device(torch.cuda.current_device()):
        raise Unavailable("comfy-aimdo does not start on this device")
    return graphs


class Graph:
    """The app's way with one graph: begun and ended for each pass, a scope for each block, broken passes counted."""

    def __init__(self, library: Any, stream: Any) -> None:
        self._library, self._stream = library, stream
        self._graph: Any = None
        self._active = False
        self.breaks: list[int] = []

    @contextlib.contextmanager
    def a_pass(self) -> Iterator[None]:
        self.breaks.append(0)
        if self._graph is None:
            self._graph = self._library.record(self._stream)
        else:
            self._graph.push()
        self._active = True
        try:
            yield
        except BaseException:
            graph, self._graph, self._active = self._graph, None, False
            graph.abort()
            raise
        self.breaks[-1] += self._graph.pop()
        self._active = False

    def scope(self, name: str | None) -> None:
        self.breaks[-1] += self._graph.iterate(name)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        if not self._active:
            yield
            return
        self._graph.pause()
        try:
            yield
        finally:
            self._graph.resume()


def make_model(blocks: int, width: int) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            scale = width**-0.5
            self.up = nn.Parameter(torch.randn(4 * width, width, dtype=torch.bfloat16) * scale)
            self.down = nn.Parameter(torch.randn(width, 4 * width, dtype=torch.bfloat16) * scale / 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += F.linear(torch.tanh(F.linear(x, self.up)), self.down)
            return x

    class Stack(nn.Module):
        graph: Graph | None = None

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            graph = self.graph
            with contextlib.nullcontext() if graph is None else graph.a_pass():
                x = x.clone()
                for block in self.blocks:
                    if graph is not None:
                        graph.scope("block")
                    x = block(x)
                if graph is not None:
                    graph.scope(None)
                return x

    torch.manual_seed(0)
    return Stack()


class Probe:
    def __init__(self, library: Any, kind: str, size: str, steps: int) -> None:
        import torch

        self.torch, self.library, self.steps = torch, library, steps
        self.device = torch.device("cuda" if kind == "cuda" else "npu", 0)
        self.module = torch.get_device_module(self.device)
        blocks, width, rows = SIZES[size]
        self.model = make_model(blocks, width)
        self.x = torch.randn(rows, width, dtype=torch.bfloat16).to(self.device)
        self.patched = [f"blocks.{number}.up" for number in range(0, blocks, 2)]
        self.rows: list[dict[str, Any]] = []

    def resident(self, patched: bool) -> Any:
        twin = copy.deepcopy(self.model)
        if patched:
            with self.torch.no_grad():
                for name in self.patched:
                    twin.get_parameter(name).mul_(1.5)
        return twin.to(self.device)(self.x).cpu()

    @contextlib.contextmanager
    def streamed(self, around: Callable[[], Any], patched: bool) -> Iterator[Any]:
        from offload_core.planning.planner import PlanRequest, make_plan
        from offload_core.runtime import Change, DeviceQueue, OffloadController, discover, port_for

        queue = DeviceQueue(port_for(str(self.device)))
        found = discover(self.model, min_layer_bytes=1)
        controller = OffloadController(self.model, queue, discovery=found, around_allocations=around)
        try:
            inventory = controller.inventory
            controller.load(make_plan(PlanRequest(inventory, str(self.device), inventory.total_bytes // 3)))
            if patched:
                changes = {
                    name: Change("half as much again", lambda name=name: self.model.get_parameter(name).detach() * 1.5)
                    for name in self.patched
                }
                controller.prefetcher.versions.may_hold = lambda nbytes: False  # changed on each arrival
                controller.set_changes(changes)
            yield controller
        finally:
            self.model.graph = None
            controller.detach()
            queue.close()

    def case(
        self, name: str, graphed: bool, paused: bool = True, patched: bool = False, unplaced: bool = False
    ) -> None:
        """Measure one case and add its row. What goes wrong is in the row."""
        row: dict[str, Any] = {"case": name}
        graph = Graph(self.library, self.module.current_stream())
        expected = self.resident(patched)
        try:
            with self.streamed(graph.paused if paused else contextlib.nullcontext, patched) as controller:
                if unplaced:
                    controller.prefetcher.owner.may_use_ring = lambda: False
                self.model.graph = graph if graphed else None
                times, equal = [], True
                for _ in range(self.steps + 2):
                    self.module.synchronize()
                    began = time.perf_counter()
                    given = self.model(self.x)
                    self.module.synchronize()
                    times.append((time.perf_counter() - began) * 1e3)
                    equal = equal and bool(self.torch.equal(given.cpu(), expected))
                    del given
                row |= {"equal": equal, "step_ms": round(statistics.median(times[2:]), 3)}
                row |= {"first_ms": round(times[0], 3)}
        except Exception as error:  # a probe tells what happened
            row["error"] = f"{type(error).__name__}: {error}"
        if graphed and graph.breaks:
            row |= {"breaks_first_pass": graph.breaks[0], "breaks_later": sum(graph.breaks[1:])}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def full_device(self) -> None:
        """The device is full in the middle of a graph: what is raised, what the graph says then, and the next run."""
        row: dict[str, Any] = {"case": "out of memory in the graph"}
        graph = Graph(self.library, self.module.current_stream())
        expected = self.resident(patched=False)
        with self.streamed(graph.paused, patched=False):
            self.model.graph = graph
            self.model(self.x)
            taken: list[Any] = []
            step, original = 0, graph.scope

            def filling(name: str | None) -> None:
                nonlocal step
                step += 1
                original(name)
                if step == 3:
                    self._take_all(taken)

            graph.scope = filling  # type: ignore[method-assign]
            try:
                self.model(self.x)
                row["raised"] = "nothing"
            except Exception as error:
                row["raised"] = f"{type(error).__name__}: {str(error)[:120]}"
            taken.clear()
            graph.scope = original  # type: ignore[method-assign]
            self.module.synchronize()
            try:
                row["equal"] = bool(self.torch.equal(self.model(self.x).cpu(), expected))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error)[:120]}"
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def _take_all(self, taken: list[Any]) -> None:
        size = 1 << 36
        while size >= 512:
            try:
                taken.append(self.torch.empty(size, dtype=self.torch.uint8, device=self.device))
            except self.torch.OutOfMemoryError:
                size //= 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])  # type: ignore[union-attr]
    parser.add_argument("--device", choices=("cuda", "sim"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        library = open_library(asked.device)
    except Unavailable as error:
        print(f"bench.memory_graph: not run: {error}", file=sys.stderr)
        return 2
    import torch

    probe = Probe(library, asked.device, asked.size, asked.steps)
    with torch.inference_mode():
        probe.case("streamed, no graph", graphed=False)
        probe.case("streamed, in the graph", graphed=True)
        for paused in (True, False):
            how = "paused around it" if paused else "not paused"
            probe.case(f"patches on arrival, {how}", graphed=True, paused=paused, patched=True)
            probe.case(f"outside the ring, {how}", graphed=True, paused=paused, unplaced=True)
        probe.case("patches on arrival, no graph", graphed=False, patched=True)
        probe.full_device()
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "simulated"
    result = {"device": name, "torch": torch.__version__, "size": asked.size, "rows": probe.rows}
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
