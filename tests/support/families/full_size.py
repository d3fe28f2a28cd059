"""A family in its full size, built without its memory, and what discovery makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from bench.full_size import give_memory
from offload_core.planning.planner import smallest_budget, usual_budget
from offload_core.runtime import discover

from .entry import Family

SEGMENT_BYTES = 2 << 20
"""Memory of a device is taken in pieces of this size, as the allocator of torch takes it."""


@dataclass(frozen=True)
class Figures:
    """Of one family in full size. Bytes, with 16-bit floats unless the app runs it in another type."""

    name: str
    kind: str
    total_bytes: int
    layers: int
    layer_bytes: int
    table_bytes: int
    """Of embedding tables that stay on the host."""
    largest_bytes: int
    largest_name: str
    loose_bytes: int
    usual_bytes: int
    """What the model asks the app for when no budget is set."""
    least_bytes: int
    """The smallest budget that a plan can be made for."""
    not_called: Sequence[str]
    """Layers that are lists of modules, which are never called themselves."""

    @property
    def share(self) -> float:
        """Of the model's bytes, what need not stay on the device."""
        return (self.layer_bytes + self.table_bytes) / max(1, self.total_bytes)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def built(family: Family) -> nn.Module:
    """The model with true shapes and addresses, in host memory that was hardly touched, in the type it is run in."""
    return give_memory(_shaped(family), family.dtype).to(family.dtype)


def _shaped(family: Family) -> nn.Module:
    """The model on `meta`, but for what it computes while it is built: some have the values of a constant decide."""
    if family.kind != "diffusion":  # the app's classes for these take the device of every tensor from their caller
        with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
            return family.build("meta", False)
    with contextlib.suppress(NotImplementedError, RuntimeError):
        return family.build("meta", False)
    return family.build("cpu", False)


def figures(family: Family) -> Figures:
    model = built(family)
    found = discover(model)
    inventory = found.inventory(family.name, SEGMENT_BYTES)
    largest = max(found.layers, key=lambda layer: layer.nbytes, default=None)
    return Figures(
        name=family.name,
        kind=family.kind,
        total_bytes=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        layers=len(found.layers),
        layer_bytes=sum(layer.nbytes for layer in found.layers),
        table_bytes=sum(table.nbytes for table in found.tables),
        largest_bytes=largest.nbytes if largest else 0,
        largest_name=largest.name if largest else "",
        loose_bytes=found.loose_bytes,
        usual_bytes=usual_budget(inventory),
        least_bytes=smallest_budget(inventory),
        not_called=[layer.name for layer in found.layers if isinstance(layer.module, (nn.ModuleList, nn.ModuleDict))],
    )
