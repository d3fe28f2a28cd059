"""The adviser: what a model will need and cost on a device, from its files' headers, before anything is loaded.

For every component: what would be resident, streamed and on the host, and how long a pass takes with everything
resident, with layers streamed, and with the component moved whole. Knows nothing about how its answers are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .errors import BudgetError
from .inventory import Inventory
from .model_files import ModelFile
from .model_shape import Compute, components_of, inventory_of
from .plan import Plan
from .planner import make_plan, smallest_budget
from .request import PlanRequest
from .reserved import SEGMENT_BYTES
from .simulate import copy_ns

__all__ = ["GPUS", "Advice", "Machine", "advise", "budget_curve"]

# Effective dense bf16 TFLOPS and pinned host-to-device GB/s, as an engine gets them, not as a data sheet has them.
GPUS = {
    "RTX 3060": (21.0, 25.0),
    "RTX 4090": (135.0, 25.0),
    "RTX 5090": (170.0, 54.0),
    "H100 PCIE": (420.0, 54.0),
}
_BISECTIONS = 12
_FREE = 1.002  # a pass this close to its compute time counts as free


@dataclass(frozen=True, slots=True)
class Machine:
    """What the models would run on. `h2d_bytes_per_s` and `tflops` with the word of whoever said so."""

    device_bytes: int
    h2d_bytes_per_s: float
    tflops: float
    source: str
    host_bytes: int | None = None
    tokens: int | None = None
    passes: int = 20


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer for one component. Times are nanoseconds a pass, sizes bytes.

    plan          None when not even the smallest budget fits; `problem` then says so
    resident_ns   everything on the device: compute alone
    whole_ns      the component moved in before use and computed then, the move shared among the passes of one use;
                  None: it does not fit
    tables_bytes  of the file's bytes, those of tables that are gathered on the host
    free_bytes    the device memory from which streaming costs nothing; None: a single pass cannot hide its copies
    """

    model: str
    component: str
    total_bytes: int
    file_bytes: int
    tables_bytes: int
    layers: int
    passes: int
    plan: Plan | None
    resident_ns: int
    whole_ns: int | None
    free_bytes: int | None
    smallest_bytes: int
    problem: str | None

    @property
    def layerwise_ns(self) -> int | None:
        """One pass as planned: the first pass where there is one only, else the steady one."""
        if self.plan is None:
            return None
        return self.plan.predicted.first_pass_ns if self.passes == 1 else self.plan.predicted.pass_ns

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the layers that pass through the ring."""
        return sum(self.plan.layers[index].bytes for index in self.plan.streamed) if self.plan else 0

    @property
    def host_bytes(self) -> int:
        """Host memory for what is not resident: streamed layers and tables gathered on the host."""
        return self.streamed_bytes + self.tables_bytes

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "component": self.component,
            "bytes": self.file_bytes,
            "device_bytes_whole": self.total_bytes,
            "layers": self.layers,
            "passes": self.passes,
            "resident_bytes": self.plan.resident_bytes + self.plan.loose_bytes if self.plan else None,
            "streamed_bytes": self.streamed_bytes,
            "ring_bytes": self.plan.ring_bytes if self.plan else None,
            "host_bytes": self.host_bytes,
            "smallest_bytes": self.smallest_bytes,
            "free_bytes": self.free_bytes,
            "pass_ns": {"resident": self.resident_ns, "layerwise": self.layerwise_ns, "whole": self.whole_ns},
            "problem": self.problem,
            "plan": self.plan.to_json() if self.plan else None,
        }


def advise(models: Iterable[ModelFile], machine: Machine) -> list[Advice]:
    """The answer for every component of every model, each alone on the device (they are used one after the other)."""
    return [
        _advice(model, component, inventory, machine)
        for model in models
        for component, inventory in _inventories(model, machine)
    ]


def _inventories(model: ModelFile, machine: Machine) -> Iterator[tuple[str, Inventory]]:
    hint = model.paths[0].parent.name
    for component, tensors in components_of(model.tensors, hint).items():
        tokens = machine.tokens if component == "dit" else None
        inventory = inventory_of(component, tensors, Compute(machine.tflops, tokens))
        yield component, replace(inventory, segment_bytes=SEGMENT_BYTES)


def _advice(model: ModelFile, component: str, inventory: Inventory, machine: Machine) -> Advice:
    passes = machine.passes if component == "dit" else 1
    plan, problem = None, None
    try:
        plan = make_plan(_request(inventory, machine, machine.device_bytes, passes))
    except BudgetError as error:
        problem = str(error)
    compute = sum(layer.compute_ns or 0 for layer in inventory.layers)
    move = copy_ns(inventory.total_bytes, machine.h2d_bytes_per_s)
    fits = inventory.total_bytes <= machine.device_bytes
    tensors = components_of(model.tensors, model.paths[0].parent.name)[component]
    file_bytes = sum(tensor.bytes for tensor in tensors)
    return Advice(
        model=model.name,
        component=component,
        total_bytes=inventory.total_bytes,
        file_bytes=file_bytes,
        tables_bytes=file_bytes - inventory.loose_bytes - sum(layer.bytes for layer in inventory.layers),
        layers=len(inventory.layers),
        passes=passes,
        plan=plan,
        resident_ns=compute,
        whole_ns=compute + move // passes if fits else None,
        free_bytes=_free_bytes(inventory, machine, passes) if passes > 1 else None,
        smallest_bytes=smallest_budget(inventory),
        problem=problem,
    )


def _request(inventory: Inventory, machine: Machine, budget_bytes: int, passes: int) -> PlanRequest:
    return PlanRequest(
        inventory,
        "the device",
        budget_bytes,
        h2d_bytes_per_s=machine.h2d_bytes_per_s,
        link_source=machine.source,
        passes=passes,
    )


def _free_bytes(inventory: Inventory, machine: Machine, passes: int) -> int:
    """Bisects for the smallest budget whose plan waits for nothing, to about 1/4000 of the component."""
    low, high = smallest_budget(inventory), inventory.total_bytes
    if _is_free(inventory, machine, low, passes):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) // 2
        if _is_free(inventory, machine, middle, passes):
            high = middle
        else:
            low = middle
    return high


def _is_free(inventory: Inventory, machine: Machine, budget_bytes: int, passes: int) -> bool:
    predicted = make_plan(_request(inventory, machine, budget_bytes, passes)).predicted
    return predicted.pass_ns <= (predicted.pass_ns - predicted.stall_ns) * _FREE


def budget_curve(model: ModelFile, machine: Machine, points: int = 16) -> dict[str, list[tuple[int, int]]]:
    """For each component (budget in bytes, pass in nanoseconds), from the smallest budget to everything resident."""
    curves: dict[str, list[tuple[int, int]]] = {}
    for component, inventory in _inventories(model, machine):
        low, high = smallest_budget(inventory), inventory.total_bytes
        passes = machine.passes if component == "dit" else 1
        curves[component] = []
        for step in range(points):
            budget = low + (high - low) * step // max(1, points - 1)
            predicted = make_plan(_request(inventory, machine, budget, passes)).predicted
            curves[component].append((budget, predicted.first_pass_ns if passes == 1 else predicted.pass_ns))
    return curves
