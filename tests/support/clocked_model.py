"""A toy model under layerwise offload on the virtual clock, with a compute time per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offload_core.planning.plan import Plan
from offload_core.runtime import DeviceQueue, OffloadController, discover
from tests.support.tiny_torch_models import DIM, Block, Model, on_run
from tests.support.virtual_clock import VirtualClockPort

RATE = 1e9
SETTLED = 9
"""Passes after which random plans are in their steady state."""


@dataclass
class Measured:
    first_pass_ns: int
    pass_ns: int
    bytes_per_pass: int
    host_waits: int
    allocations: int
    peak_ring_bytes: int


class _WithEntries(Model):
    """A pass may begin in three ways, as an autoencoder's does."""

    encode = decode = Model.forward


class Bench:
    """A toy model on a virtual clock, with a compute time per layer.

    `in_step`: the host goes on only when the device has done the layer, as with a model that looks at its numbers.
    Then copies hide only if they were issued ahead.
    """

    def __init__(
        self,
        kilobytes: list[int],
        compute_ns: list[int],
        in_step: bool = False,
        entries: tuple[str, ...] = ("forward",),
    ) -> None:
        self.in_step = in_step
        self.port = VirtualClockPort(RATE)
        self.queue = DeviceQueue(self.port)
        self.model = _WithEntries(kilobytes)
        self.compute_ns = compute_ns
        found = discover(self.model, min_layer_bytes=1)
        self.controller = OffloadController(
            self.model, self.queue, discovery=found, entries=[(self.model, method) for method in entries]
        )

    def pass_(self, visits: list[int] | None = None, entry: str = "forward") -> int:
        """Runs a pass; when the compute lane is done with it."""
        with torch.no_grad(), on_run(self._visited):
            getattr(self.model, entry)(torch.ones(1, DIM), visits)
        return self.port.compute_ns

    def call(self, visits: list[int]) -> None:
        """Calls blocks by themselves, outside of any pass."""
        with torch.no_grad(), on_run(self._visited):
            for number in visits:
                self.model.blocks[number](torch.ones(1, DIM))

    def _visited(self, block: Block) -> None:
        self.port.compute(self.compute_ns[block.number], block.tag)
        if self.in_step:
            self.port.host_ns = max(self.port.host_ns, self.port.compute_ns)

    def measure(self, plan: Plan) -> Measured:
        self.controller.load(plan)
        port, visits = self.port, list(plan.visits)
        start, waited = port.compute_ns, port.host_waits
        ends = [self.pass_(visits)]
        allocated = port.allocations
        while len(ends) < SETTLED:
            copied = port.copied_bytes
            ends.append(self.pass_(visits))
        return Measured(
            first_pass_ns=ends[0] - start,
            pass_ns=ends[-1] - ends[-2],
            bytes_per_pass=port.copied_bytes - copied,
            host_waits=port.host_waits - waited,
            allocations=port.allocations - allocated,
            peak_ring_bytes=0 if self.queue.arena is None else port.peak_bytes(self.queue.arena),
        )


def equal_layers(compute_ns: int, count: int = 8) -> Bench:
    return Bench([4] * count, [compute_ns] * count)  # 4096 bytes: 4096 ns on the link
