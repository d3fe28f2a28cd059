"""One component under layerwise offload: puts a plan into effect on a module, changes it, and takes it off again.

    attach   host masters are built: the parameters look into them; the module is an ordinary one on the host
    load     a plan takes effect: the layers' calls are interposed, loose tensors and the ring come to the device,
             residents with their first visit
    unload   the device is given back; the module is an ordinary one on the host again, for anybody to use
    detach   the masters are nobody's any more: the same parameter objects, values included

The controller obeys: which layer streams, where it lies in the ring and how large that is, the plan says. It knows
nothing about the app.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import PlanError
from ..inventory import Inventory
from ..plan import Plan
from .counters import RunCounters
from .device_queue import DeviceQueue
from .discovery import Discovery, discover
from .interpose import HostGather, Interposed, LayerForward, PassBoundary
from .layer import Layer
from .loose import LooseTensors
from .prefetcher import Prefetcher
from .ring import link_overlaps, place_layers

Entry = tuple[nn.Module, str]
"""A module and the name of its method that runs a pass."""


class OffloadController:
    """Layerwise offload of one module on one device. Close it by `detach`."""

    def __init__(
        self,
        root: nn.Module,
        queue: DeviceQueue,
        *,
        component: str = "model",
        discovery: Discovery | None = None,
        entries: Sequence[Entry] | None = None,
        pinned: bool = True,
    ) -> None:
        """Attach to `root`, whose parameters are on the CPU.

        entries: the methods a pass goes through, by default `root.forward`. `pinned`: whether to ask for page-locked
        host masters; the ones that cannot be had are pageable.
        """
        self.root = root
        self.queue = queue
        self.component = component
        self.plan: Plan | None = None
        found = discovery or discover(root)
        self.inventory: Inventory = found.inventory(component)
        port = queue.port
        self.layers = [Layer(index, layer, port, pinned) for index, layer in enumerate(found.layers)]
        self._tables = found.tables
        self._loose = self._find_loose()
        self.prefetcher = Prefetcher(port, self.layers)
        self.prefetcher.may_use_ring = self._may_use_ring
        self._offsets: list[int] = []
        self._streamed: list[Layer] = []
        self._interposed: list[Interposed] = [
            *(LayerForward(layer, self.prefetcher) for layer in self.layers),
            *(HostGather(table.module) for table in found.tables),
            *(PassBoundary(module, method, self.prefetcher) for module, method in entries or ((root, "forward"),)),
        ]

    # ------------------------------------------------------------------ state

    @property
    def counters(self) -> RunCounters:
        return self.prefetcher.counters

    @property
    def loaded(self) -> bool:
        return self.plan is not None

    @property
    def outside_touches(self) -> dict[str, int]:
        """Layers whose weights were used outside the layer's own call, and how often. Each cost a copy of its own."""
        return {layer.name: layer.host.touches.count for layer in self.layers if layer.host.touches.count}

    def device_bytes(self) -> int:
        """What the component holds on the device now: its ring, its residents, the loose tensors."""
        if self.plan is None:
            return 0
        residents = sum(
            layer.nbytes for layer in self.layers if layer.keep_resident and layer.device_buffer is not None
        )
        return self.plan.ring_bytes + residents + (self._loose.nbytes if self._loose.loaded else 0)

    def pinned_bytes(self) -> int:
        """Page-locked host memory of the masters."""
        return sum(layer.nbytes for layer in self.layers if layer.host.pinned)

    def is_running(self) -> bool:
        return any(layer.in_use for layer in self.layers)

    # ------------------------------------------------------------------ plan

    def load(self, plan: Plan) -> None:
        """Put `plan` into effect, from nothing or from another plan; layers that stay where they are do not move.

        Between passes only. Raises PlanError if the plan is not for these layers. If the device runs out of memory
        on the way, everything is given back and the error passed on.
        """
        self._check(plan)
        if self.is_running():
            raise PlanError(f"{self.component}: asked for a new plan while a layer is running; do it between passes")
        self.prefetcher.forget_look_ahead()
        if self.plan is None:
            self._take_hold()
        try:
            self._release_demoted(plan)
            self._loose.load(self.queue.port)
            self._place(plan)
        except BaseException:
            self.unload()
            raise
        self.plan = plan

    def unload(self) -> None:
        """Give all device memory back. Nothing is copied: the host masters were never out of date."""
        self.prefetcher.forget_look_ahead()
        self.queue.release(self)  # waits for what is in flight
        self.queue.port.drain()
        for layer in self.layers:
            layer.unbind()
            layer.keep_resident = False
            layer.overlaps = ()
        self._offsets, self._streamed = [], []
        self._loose.unload()
        self._let_go()
        self.plan = None

    def _take_hold(self) -> None:
        """Stand before the layers' calls. Whoever used the module meanwhile may have moved or replaced parameters."""
        for layer in self.layers:
            if not layer.take_hold():
                self._let_go()
                raise PlanError(
                    f"{self.component}: asked to load; found that a weight of {layer.name} has been replaced by one of "
                    "another shape or type since it was attached; detach and attach the module again"
                )
        self._loose = self._find_loose()
        for interposed in self._interposed:
            interposed.install()

    def _find_loose(self) -> LooseTensors:
        masters = {id(p) for layer in self.layers for p in layer.host.parameters}
        return LooseTensors(self.root, masters | {id(p) for table in self._tables for p in table.module.parameters()})

    def _let_go(self) -> None:
        for interposed in reversed(self._interposed):
            interposed.remove()
        for layer in self.layers:
            layer.let_go()

    def detach(self) -> None:
        """Leave the module as it was found: the same parameter objects, values included, and its own forward."""
        self.unload()
        self._interposed = []
        for layer in self.layers:
            layer.close(self.queue.port)
        self.layers = []

    def write_master(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Change the host value of a parameter, of a layer or loose. Copies on the device are fetched again.

        Waits for what is in flight; not for use inside a pass.
        """
        layer = self._layer_of(parameter)
        if layer is None:
            was_loaded = self._loose.loaded
            self._loose.unload()
            with torch.inference_mode(False), torch.no_grad():
                parameter.data.copy_(value)
            if was_loaded:
                self._loose.load(self.queue.port)
            return
        self.prefetcher.forget_look_ahead()
        self.queue.port.drain()
        layer.host.write(parameter, value)
        self._refetch(layer)

    def _refetch(self, layer: Layer) -> None:
        """The device copy of a layer is out of date: fetch it again on its next visit, after its last reader."""
        layer.valid = False
        self.queue.fence()

    def _layer_of(self, parameter: nn.Parameter) -> Layer | None:
        for layer in self.layers:
            if any(parameter is own for own in layer.host.parameters):
                return layer
        return None

    def _check(self, plan: Plan) -> None:
        mine = [(layer.name, layer.nbytes) for layer in self.layers]
        theirs = [(layer.name, layer.bytes) for layer in plan.layers]
        if mine != theirs:
            raise PlanError(
                f"{self.component}: asked for a plan of {len(theirs)} layers; found {len(mine)} layers with other names "
                "or sizes; make the plan from this component's inventory"
            )

    def _release_demoted(self, plan: Plan) -> None:
        """Residents of the old plan that the new one streams give their memory back first, to make room."""
        drained = False
        for layer, planned in zip(self.layers, plan.layers):
            if layer.keep_resident and planned.placement != "resident":
                if not drained:
                    self.queue.port.drain()
                    drained = True
                layer.unbind()
                layer.keep_resident = False

    def _place(self, plan: Plan) -> None:
        self._streamed, self._offsets = [], []
        for layer, planned in zip(self.layers, plan.layers):
            if planned.placement == "resident":
                if not layer.keep_resident:
                    layer.unbind()
                    layer.overlaps = ()
                    layer.keep_resident = True
                    # The memory is taken now, so that what the device has left is true; the bytes come in the order
                    # of the first pass.
                    if not self.queue.port.shares_host_memory:
                        with torch.inference_mode(False):
                            layer.bind(self.queue.port.empty(layer.nbytes))
                    else:
                        layer.device_buffer, layer.valid = layer.host.buffer, True  # the master is where it is needed
            else:
                assert planned.offset is not None  # check_plan and the planner see to it
                self._streamed.append(layer)
                self._offsets.append(planned.offset)
        link_overlaps(self._streamed, self._offsets)
        self.queue.lease(self, plan.ring_bytes)
        self.queue.fence()

    # ------------------------------------------------------------------ the queue's lessee

    def ring_moved(self, arena: torch.Tensor | None) -> None:
        self.prefetcher.forget_look_ahead()
        if arena is None:
            for layer in self._streamed:
                layer.unbind()
        else:
            place_layers(self._streamed, self._offsets, arena)

    def give_up_ring(self) -> None:
        self.prefetcher.give_up_ring()

    def _may_use_ring(self) -> bool:
        return self.plan is not None and self.queue.activate(self)
