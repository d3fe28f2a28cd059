"""One layer at run time: where its parameters hang, which of them are on the device, and its two events.

A layer knows its own state and how to swap its parameters; it issues nothing. The order of copies and visits is the
prefetcher's business, the choice between streamed and resident the plan's.

States say what has been *issued*; whether it has happened yet is the events' business:

    OFFLOADED   the modules hold the host parameters; the ring may or may not still hold the bytes (`valid`)
    IN_FLIGHT   a copy into the ring was issued for a visit that is still to come
    IN_USE      between entry and exit of the layer's call: the modules hold device parameters
    RESIDENT    the device parameters stay in the modules
"""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import nn

from .device_port import DevicePort, Event
from .discovery import FoundLayer
from .host_store import HostLayer


class LayerState(enum.Enum):
    OFFLOADED = "offloaded"
    IN_FLIGHT = "in flight"
    IN_USE = "in use"
    RESIDENT = "resident"


Binding = tuple[dict[str, Any], str, nn.Parameter]
"""A module's parameter dictionary, a name in it, and what to put there."""


class Layer:
    """The unit of movement. The prefetcher reads and writes the public slots below on its hot path."""

    __slots__ = (
        "arrived",
        "copy_done",
        "copy_start",
        "copy_timed",
        "device_bindings",
        "device_buffer",
        "found",
        "host",
        "host_bindings",
        "in_use",
        "index",
        "keep_resident",
        "last_read",
        "name",
        "nbytes",
        "overlaps",
        "pending",
        "read_since_copy",
        "timed",
        "valid",
    )

    def __init__(self, index: int, found: FoundLayer, port: DevicePort, pinned: bool) -> None:
        self.index = index
        self.found = found
        self.name = found.name
        self.nbytes = found.nbytes
        self.host = HostLayer(found.parameters, port, pinned)
        self.host_bindings: list[Binding] = _bindings(found)
        self.device_bindings: list[Binding] = []
        self.device_buffer: torch.Tensor | None = None
        self.copy_done: Event = port.event(timed=True)
        """Copy to compute: the bytes are there."""
        self.last_read: Event = port.event(timed=True)
        """Compute to copy: nobody reads the bytes any more."""
        self.arrived: Event = port.event(timed=True)
        self.copy_start: Event = port.event(timed=True)
        self.timed = False
        """Whether the four events above belong to one visit that is to be measured."""
        self.copy_timed = False
        self.overlaps: tuple[Layer, ...] = ()
        """The other layers that share bytes of the ring with this one."""
        self.keep_resident = False
        self.valid = False
        """A copy of these bytes into `device_buffer` was issued and nothing was issued over it since."""
        self.pending = 0
        """Visits to come for which look-ahead counts on the bytes: they must not be overwritten."""
        self.in_use = 0
        self.read_since_copy = False
        """`last_read` marks a visit for which the copy lane has not waited yet."""

    @property
    def state(self) -> LayerState:
        if self.keep_resident and self.valid:
            return LayerState.RESIDENT
        if self.in_use:
            return LayerState.IN_USE
        return LayerState.IN_FLIGHT if self.valid and self.pending else LayerState.OFFLOADED

    def bind(self, buffer: torch.Tensor) -> None:
        """Give the layer its place on the device. Builds the device parameters, once for all visits to come."""
        device = dict(zip(map(id, self.host.parameters), self.host.device_views(buffer)))
        self.device_buffer = buffer
        self.device_bindings = [(params, name, device[id(host)]) for params, name, host in self.host_bindings]
        self.valid = False
        self.read_since_copy = False

    def unbind(self) -> None:
        """Give the place back. The host parameters are what the modules hold afterwards."""
        self.swap_out()
        self.device_buffer = None
        self.device_bindings = []
        self.valid = False
        self.pending = 0
        self.read_since_copy = False
        self.timed = False

    def take_hold(self) -> bool:
        """Make the module's parameters the layer's masters, whatever happened to them since `let_go`.

        False if one of them is no longer what the layer was made for.
        """
        positions = {id(parameter): position for position, parameter in enumerate(self.host.parameters)}
        bindings = []
        for params, name, host in self.host_bindings:
            position = positions[id(host)]
            current = params.get(name)
            if current is None or not self.host.reclaim(position, current):
                return False
            master = self.host.parameters[position]
            params[name] = master
            bindings.append((params, name, master))
        self.host_bindings = bindings
        self.host.take_hold()
        return True

    def let_go(self) -> None:
        """The module is an ordinary one again, on the host."""
        self.host.let_go()

    def swap_in(self) -> None:
        for params, name, parameter in self.device_bindings:
            params[name] = parameter

    def swap_out(self) -> None:
        for params, name, parameter in self.host_bindings:
            params[name] = parameter

    def close(self, port: DevicePort) -> None:
        self.unbind()
        self.host.close(port)


def _bindings(found: FoundLayer) -> list[Binding]:
    """Every place in the layer's modules where one of its parameters hangs; a tied one hangs in several."""
    moved = {id(parameter) for parameter in found.parameters}
    return [
        (module._parameters, name, parameter)
        for module in found.module.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in moved
    ]
