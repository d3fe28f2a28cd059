"""Memory and pass times of a model on a device, predicted from the headers of its files before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BudgetError
from ..files.model_files import ModelFile
from ..files.model_shape import Compute, components_of, inventory_of
from ..planning.plan import Plan
from ..planning.planner import make_plan, smallest_budget
from ..planning.request import PlanRequest
from ..planning.reserved import SEGMENT_BYTES
from ..planning.simulate import copy_ns

# Dense bf16 TFLOPS and pinned host-to-device GB/s, as reached in practice (lower than the data sheets' figures). The
# 4060 and the 4080 are the data sheets' figures times 0.82, which the other GeForce cards here come to.
GPUS = {
    "RTX 3060": (21.0, 25.0),
    "RTX 4060": (25.0, 12.5),
    "RTX 4080": (80.0, 25.0),
    "RTX 4090": (135.0, 25.0),
    "RTX 5090": (170.0, 54.0),
    "H100 PCIE": (420.0, 54.0),
}
_BISECTIONS = 12
_FREE = 1.002  # streaming counts as free if a pass takes at most this multiple of its compute time


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine to predict for.

    source  where `h2d_bytes_per_s` and `tflops` come from, for display
    tokens  tokens in one pass of the diffusion model; None: the usual number
    passes  passes of the diffusion model in one run
    """

    device_bytes: int
    h2d_bytes_per_s: float
    tflops: float
    source: str
    host_bytes: int | None = None
    tokens: int | None = None
    passes: int = 20


@dataclass(frozen=True, slots=True)
class Advice:
    """The prediction for one component. Times are nanoseconds per pass, sizes are bytes.

    total_bytes     device bytes with every layer resident
    file_bytes      bytes of its tensors in the file
    streamed_bytes  bytes of the streamed layers
    host_bytes      host memory for the streamed layers and for the embedding tables that stay on the host
    plan            None if the device is smaller than `smallest_bytes`; `problem` is then the planner's error message
    resident_ns     a pass with everything resident, which is compute time alone
    layerwise_ns    a pass as planned: the steady pass, or the first one if there is only one; None without a plan
    whole_ns        a pass with the component copied to the device before use, the copy divided among the passes of one
                    use; None: it does not fit
    free_bytes      the smallest device budget with which streaming costs no time; None for a single pass, which cannot
                    hide its copies
    """

    model: str
    component: str
    total_bytes: int
    file_bytes: int
    streamed_bytes: int
    host_bytes: int
    layers: int
    passes: int
    plan: Plan | None
    resident_ns: int
    layerwise_ns: int | None
    whole_ns: int | None
    free_bytes: int | None
    smallest_bytes: int
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "model": self.model,
            "component": self.component,
            "bytes": self.file_bytes,
            "device_bytes_whole": self.total_bytes,
            "layers": self.layers,
            "passes": self.passes,
            "resident_bytes": plan.resident_bytes + plan.loose_bytes if plan else None,
            "streamed_bytes": self.streamed_bytes,
            "ring_bytes": plan.ring_bytes if plan else None,
            "host_bytes": self.host_bytes,
            "smallest_bytes": self.smallest_bytes,
            "free_bytes": self.free_bytes,
            "pass_ns": {"resident": self.resident_ns, "layerwise": self.layerwise_ns, "whole": self.whole_ns},
            "problem": self.problem,
            "plan": plan.to_json() if plan else None,
        }


def advise(models: Iterable[ModelFile], machine: Machine) -> list[Advice]:
    """One answer per component of each model. Each component is planned as if alone on the device."""
    return [
        _advice(model, request, file_bytes, machine)
        for model in models
        for request, file_bytes in _requests(model, machine)
    ]


def _requests(model: ModelFile, machine: Machine) -> Iterator[tuple[PlanRequest, int]]:
    """For each component the request with the whole device as budget, and its bytes in the file."""
    for component, tensors in components_of(model.tensors, model.paths[0].parent.name).items():
        is_dit = component == "dit"  # only a diffusion model makes several passes in one use
        inventory = inventory_of(component, tensors, Compute(machine.tflops, machine.tokens if is_dit else None))
        request = PlanRequest(
            replace(inventory, segment_bytes=SEGMENT_BYTES),
            "the device",
            machine.device_bytes,
            h2d_bytes_per_s=machine.h2d_bytes_per_s,
            link_source=machine.source,
            passes=machine.passes if is_dit else 1,
        )
        yield request, sum(tensor.bytes for tensor in tensors)


def _advice(model: ModelFile, request: PlanRequest, file_bytes: int, machine: Machine) -> Advice:
    inventory, passes = request.inventory, request.passes
    plan, problem = None, None
    try:
        plan = make_plan(request)
    except BudgetError as error:
        problem = str(error)
    streamed_bytes = sum(plan.layers[index].bytes for index in plan.streamed) if plan else 0
    tables_bytes = file_bytes - inventory.loose_bytes - sum(layer.bytes for layer in inventory.layers)
    compute_ns = sum(layer.compute_ns or 0 for layer in inventory.layers)
    move_ns = copy_ns(inventory.total_bytes, machine.h2d_bytes_per_s)
    fits = inventory.total_bytes <= machine.device_bytes
    return Advice(
        model=model.name,
        component=inventory.component,
        total_bytes=inventory.total_bytes,
        file_bytes=file_bytes,
        streamed_bytes=streamed_bytes,
        host_bytes=streamed_bytes + tables_bytes,
        layers=len(inventory.layers),
        passes=passes,
        plan=plan,
        resident_ns=compute_ns,
        layerwise_ns=_pass_ns(plan, passes) if plan else None,
        whole_ns=compute_ns + move_ns // passes if fits else None,
        free_bytes=_free_bytes(request) if passes > 1 else None,
        smallest_bytes=smallest_budget(inventory),
        problem=problem,
    )


def _pass_ns(plan: Plan, passes: int) -> int:
    return plan.predicted.first_pass_ns if passes == 1 else plan.predicted.pass_ns


def _free_bytes(request: PlanRequest) -> int:
    """The smallest budget whose plan has no stalls, by bisection to about 1/4000 of the component's bytes."""
    low, high = smallest_budget(request.inventory), request.inventory.total_bytes
    if _is_free(request, low):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) // 2
        if _is_free(request, middle):
            high = middle
        else:
            low = middle
    return high


def _is_free(request: PlanRequest, budget_bytes: int) -> bool:
    predicted = make_plan(replace(request, budget_bytes=budget_bytes)).predicted
    return predicted.pass_ns <= (predicted.pass_ns - predicted.stall_ns) * _FREE


def budget_curve(model: ModelFile, machine: Machine, points: int = 16) -> dict[str, list[tuple[int, int]]]:
    """For each component `points` pairs (budget in bytes, pass in nanoseconds), from the smallest budget to that with
    which everything is resident."""
    curves: dict[str, list[tuple[int, int]]] = {}
    for request, _ in _requests(model, machine):
        low, high = smallest_budget(request.inventory), request.inventory.total_bytes
        budgets = [low + (high - low) * step // max(1, points - 1) for step in range(points)]
        plans = [make_plan(replace(request, budget_bytes=budget)) for budget in budgets]
        times = [_pass_ns(plan, request.passes) for plan in plans]
        curves[request.inventory.component] = list(zip(budgets, times))
    return curves
