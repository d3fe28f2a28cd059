"""The engine as a library: layerwise offload for any torch module, in two calls.

    handle = attach(model, device="cuda", budget_bytes=6_000_000_000)
    model(...)            # as ever; inputs on the device
    handle.detach()

Inference only: device parameters need no gradients.
"""

from __future__ import annotations

import types

import torch
from torch import nn

from ..errors import OffloadError
from ..plan import Plan
from ..planner import PlanRequest, make_plan
from .controller import OffloadController
from .device_port import port_for
from .device_queue import DeviceQueue
from .discovery import MIN_LAYER_BYTES, discover


class Attachment:
    """A module under layerwise offload. `detach` ends it; so does leaving a `with` block."""

    def __init__(self, controller: OffloadController, owned_queue: DeviceQueue | None) -> None:
        self.controller = controller
        self._owned_queue = owned_queue

    @property
    def plan(self) -> Plan:
        """The plan in effect."""
        if self.controller.plan is None:
            raise OffloadError(f"{self.controller.component}: asked for the plan; found the module detached")
        return self.controller.plan

    def detach(self) -> None:
        """Give the device memory back and leave the module as it was found. Idempotent."""
        self.controller.detach()
        if self._owned_queue is not None:
            self._owned_queue.close()
            self._owned_queue = None

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.detach()


def attach(
    module: nn.Module,
    *,
    device: torch.device | str,
    budget_bytes: int | None = None,
    ring_bytes: int | None = None,
    passes: int = 1,
    h2d_bytes_per_s: float | None = None,
    component: str = "model",
    pinned: bool = True,
    min_layer_bytes: int = MIN_LAYER_BYTES,
    queue: DeviceQueue | None = None,
) -> Attachment:
    """Stream the layers of `module`, whose parameters are on the CPU, through at most `budget_bytes` of `device`.

    budget_bytes  ring, residents and loose tensors together; None: a ring of three of the largest layers
    ring_bytes    None: the planner chooses
    passes        forwards to expect per use; residents pay from the second on
    queue         share a device's copy lane and ring with other modules; None: one of its own

    Raises BudgetError if the budget is too small, with the smallest that works, and OffloadError if the module is not
    on the CPU. In either case the module is untouched.
    """
    for name, parameter in module.named_parameters():
        if parameter.device.type not in ("cpu", "meta"):
            raise OffloadError(
                f"{component}: asked to offload a module on the CPU; found {name} on {parameter.device}; "
                "move the module to the CPU first"
            )
    discovery = discover(module, min_layer_bytes=min_layer_bytes)
    owned = None if queue is not None else DeviceQueue(port_for(device))
    used = queue or owned
    assert used is not None
    try:
        plan = make_plan(
            PlanRequest(
                inventory=discovery.inventory(component),
                device=str(used.port.device),
                budget_bytes=budget_bytes,
                ring_bytes=ring_bytes,
                passes=passes,
                **({} if h2d_bytes_per_s is None else {"h2d_bytes_per_s": h2d_bytes_per_s}),
            )
        )
        controller = OffloadController(module, used, component=component, discovery=discovery, pinned=pinned)
    except BaseException:
        if owned is not None:
            owned.close()
        raise
    attachment = Attachment(controller, owned)
    try:
        controller.load(plan)
    except BaseException:
        attachment.detach()
        raise
    return attachment
