"""One layer at run time: where its parameters hang, which of them are on the device, and its two events.

A layer knows how to swap its parameters; it issues nothing. The order of copies and visits is the prefetcher's
business, the choice between streamed and resident the plan's.

Where a layer is follows from four slots, which say what has been *issued*; whether it has happened yet is the events'
business. `sign` is the summary for displays:

    in_use         between entry and exit of the layer's call: the modules hold device parameters
    keep_resident  the plan has it stay: once they have come, the device parameters stay in the modules
    valid          the bytes on the device are the layer's, or a copy of them was issued
    pending        visits still to come that count on these bytes
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .device_port import DevicePort, Event
from .discovery import Discovery, FoundLayer
from .host_source import ByteSource
from .host_store import HostLayer
from .masters import close_holds
from .parts import plain
from .revision import Revision

Binding = tuple[dict[str, Any], str, nn.Parameter]
"""A module's parameter dictionary, a name in it, and what to put there."""


class Layer:
    """The unit of movement. The prefetcher reads and writes the public slots below on its hot path."""

    __slots__ = (
        "arrived",
        "carries",
        "compute_ns",
        "copies_timed",
        "copy_done",
        "copy_marks",
        "device_bindings",
        "device_buffer",
        "finished",
        "found",
        "has_arrived",
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
        "revision",
        "saved",
        "saving",
        "source",
        "source_carries",
        "started",
        "swapped_in",
        "timed",
        "timed_warm",
        "timing",
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
        self.copy_done: Event = port.event()
        """Copy to compute: the bytes are there."""
        self.last_read: Event = port.event()
        """Compute to copy: nobody reads the bytes any more."""
        self.overlaps: tuple[Layer, ...] = ()
        """The other layers that share bytes of the ring with this one."""
        self.keep_resident = False
        self.valid = False
        """A copy of these bytes into `device_buffer` was issued and nothing was issued over it since."""
        self.has_arrived = False
        """The copy that `valid` speaks of has happened, as far as was asked. Only residents are asked."""
        self.pending = 0
        """Visits to come for which look-ahead counts on the bytes: they must not be overwritten."""
        self.in_use = 0
        """Calls of the layer that are under way: 2 when it runs inside itself."""
        self.read_since_copy = False
        """`last_read` marks a visit for which the copy lane has not waited yet."""
        self.swapped_in = False
        """The modules hold the parameters of `device_bindings`."""
        self._init_revision(port)
        self._init_times(port)

    def _init_revision(self, port: DevicePort) -> None:
        self.revision: Revision | None = None
        """What the layer's weights are to be on the device; None: as the masters have them."""
        self.source: torch.Tensor | None = None
        """Where the next copy comes from: the master, or the version of the revision."""
        self.source_carries: Revision | None = None
        """Which revision the bytes of `source` have been through."""
        self.carries: Revision | None = None
        """The same of the bytes on the device, if `valid`."""
        self.saved: Event = port.event()
        """Back to copy: `source` is complete, and the bytes on the device may be overwritten."""
        self.saving = False
        """`saved` marks a copy back for which the copy lane has not waited yet."""

    def _init_times(self, port: DevicePort) -> None:
        """Events that only measure. They are not recorded again before they were read, unlike the two that order."""
        self.arrived: Event = port.event(timed=True)
        self.started: Event = port.event(timed=True)
        self.finished: Event = port.event(timed=True)
        self.timing = False
        """A visit that is being measured is under way."""
        self.timed = False
        """`arrived`, `started` and `finished` belong to one visit whose times were not read yet."""
        self.timed_warm = False
        """That visit was not one of a first pass: it took as long as others will."""
        self.copy_marks: list[tuple[Event, Event]] = [
            (port.event(timed=True), port.event(timed=True)) for _ in range(2)
        ]
        """Begin and end of two copies: look-ahead issues the next one before the times of the last are read."""
        self.copies_timed = 0
        """How many of them, from the first on, belong to copies whose times were not read yet."""
        self.compute_ns: int | None = None
        """How long the last measured visit took, stalls left out."""

    @property
    def sign(self) -> str:
        """The state for displays, in one character of `docs/formats.md`."""
        if self.in_use:
            return "U"
        if self.keep_resident:
            return "R" if self.valid else "r"
        if self.valid:
            return "F" if self.pending else "C"
        return "O"

    def bind(self, buffer: torch.Tensor) -> None:
        """Give the layer its place on the device. Builds the device parameters, once for all visits to come."""
        self.device_buffer = buffer
        self.device_bindings = self.bindings_into(buffer)
        self.valid = False
        self.read_since_copy = False

    def stay_in_place(self) -> None:
        """A resident on a device that shares memory with the host: the masters are where they are needed."""
        self.device_buffer = self.host.buffer
        assert self.device_buffer is not None  # the controller has brought it into memory
        self.device_bindings = []
        self.carries = None
        self.valid = self.has_arrived = True

    def revise(self, revision: Revision | None) -> bool:
        """From now on the layer's weights are to be these. True if the bytes on the device are good for nothing now."""
        self.revision = revision
        if revision is not None and revision.version is not None:
            self.source, self.source_carries = revision.version, revision
        else:
            self.source, self.source_carries = None, None
        return self.valid and self.carries is not None and self.carries is not revision

    @property
    def source_bytes(self) -> torch.Tensor:
        """The host buffer to copy from: that of a version, or the master's."""
        buffer = self.host.buffer if self.source is None else self.source
        assert buffer is not None
        return buffer

    @property
    def to_read(self) -> ByteSource | None:
        """What has to be read before it can be copied: bytes that are not page-locked. None: `source_bytes` it is."""
        return self.host.source if self.source_carries is None else self.source_carries.to_read

    def queue_copy(self, port: DevicePort, buffer: torch.Tensor) -> None:
        """On the copy lane, from wherever the bytes are."""
        source, to_read = self.source, None
        if source is None:
            source, to_read = self.host.buffer, self.host.source
        elif self.source_carries is not None:
            to_read = self.source_carries.to_read
        if to_read is not None:
            port.copy_from(buffer, to_read)
        else:
            assert source is not None
            port.copy(buffer, source)

    @property
    def is_in_place(self) -> bool:
        return self.device_buffer is not None and self.device_buffer is self.host.buffer

    def master_of(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """The host parameter that `parameter` is, or is the device's copy of; None if it is not this layer's."""
        for (_, _, host), (_, _, shown) in itertools.zip_longest(
            self.host_bindings, self.device_bindings, fillvalue=({}, "", None)
        ):
            if parameter is host or parameter is shown:
                return host
        return None

    def set_marks(self, place: tuple[dict[str, Any], str], values: Mapping[str, Any]) -> dict[str, Any]:
        """Other attributes for everything that stands for a parameter, on both sides. Returns the values before."""
        index, master = next(
            (index, host)
            for index, (params, name, host) in enumerate(self.host_bindings)
            if params is place[0] and name == place[1]
        )
        if self.device_bindings:
            vars(self.device_bindings[index][2]).update(values)
        return self.host.set_marks(master, values)

    def bindings_into(self, buffer: torch.Tensor) -> list[Binding]:
        """What to hang into the modules so that they find their parameters in `buffer`."""
        device = dict(zip(map(id, self.host.parameters), self.host.device_views(buffer)))
        return [(params, name, device[id(host)]) for params, name, host in self.host_bindings]

    def unbind(self) -> None:
        """Give the place back. The host parameters are what the modules hold afterwards."""
        self.swap_out()
        self.device_buffer = None
        self.device_bindings = []
        self.valid = False
        self.pending = 0
        self.read_since_copy = False

    def take_hold(self) -> bool:
        """Make the module's parameters the layer's masters, whatever happened to them since `let_go`.

        False if one of them is no longer what the layer was made for.
        """
        positions = {id(parameter): position for position, parameter in enumerate(self.host.parameters)}
        reclaimed: set[int] = set()
        bindings = []
        for params, name, host in self.host_bindings:
            position = positions[id(host)]
            if position not in reclaimed:  # a tied parameter hangs in several places: the first one counts
                current = params.get(name)
                if current is None or not self.host.reclaim(position, current):
                    return False
                reclaimed.add(position)
            params[name] = self.host.parameters[position]
            bindings.append((params, name, self.host.parameters[position]))
        self.host_bindings = bindings
        self.host.take_hold()
        return True

    def replaced(self) -> list[tuple[int, torch.Tensor]]:
        """What others have hung in place of our parameters, or have these look at: index of the binding, and value."""
        with torch._C.DisableTorchFunctionSubclass():
            bindings = self.device_bindings if self._shows_the_device else self.host_bindings
            elsewhere = self._looking_elsewhere()
            changed = []
            for index, (params, name, own) in enumerate(bindings):
                current = params.get(name)
                if current is own and id(self.host_bindings[index][2]) in elsewhere:
                    changed.append((index, plain(current.data)))
                elif current is not None and current is not own:
                    changed.append((index, current))
            return changed

    def _looking_elsewhere(self) -> set[int]:
        """Ids of the masters that were given other data, or whose copies on the device were, as far as they show it."""
        if not self._shows_the_device:
            return {id(self.host.parameters[position]) for position in self.host.looking_elsewhere()}
        assert self.device_buffer is not None
        start = self.device_buffer.data_ptr()
        offsets = {id(host): self.host.offset_of(position) for position, host in enumerate(self.host.parameters)}
        return {
            id(host)
            for (_, _, host), (_, _, shown) in zip(self.host_bindings, self.device_bindings)
            if (offset := offsets[id(host)]) is not None and shown.data_ptr() != start + offset
        }

    @property
    def _shows_the_device(self) -> bool:
        """The modules hold the device's parameters, and these are others than the host's."""
        return self.swapped_in and bool(self.device_bindings)

    def name_of(self, index: int) -> str:
        """The full name of the weight of a binding."""
        parameters, name, _ = self.host_bindings[index]
        modules = self.found.module.named_modules()
        module = next(path for path, module in modules if module._parameters is parameters)
        return ".".join(part for part in (self.name, module, name) if part)

    def put_back(self, index: int) -> None:
        """Hang our own host parameter where another was hung, looking where it did. The device's copy is void."""
        if self._shows_the_device:
            self.swap_out()
            assert self.device_buffer is not None
            self.device_bindings = self.bindings_into(self.device_buffer)  # one of them may look elsewhere
            self.valid = False
        params, name, host = self.host_bindings[index]
        params[name] = host
        self.host.look_back(next(p for p, own in enumerate(self.host.parameters) if own is host))

    def let_go(self) -> None:
        """The modules hold ordinary parameters, which look where they did."""
        self.host.let_go()

    def write(self, master: nn.Parameter, value: torch.Tensor) -> None:
        """Change a host parameter. Nothing is in flight from the layer, or to it."""
        in_place = self.is_in_place
        self.host.write(master, value)
        if in_place:  # the master has moved, if it was one that others share
            self.stay_in_place()

    def spoil(self, port: DevicePort) -> None:
        """The bytes on the device are not what they should be, and kernels may be changing them at this moment."""
        self.swap_out()
        self.valid = False
        port.record_compute(self.last_read)
        self.read_since_copy = True

    def swap_in(self, bindings: list[Binding] | None = None) -> None:
        for params, name, parameter in self.device_bindings if bindings is None else bindings:
            params[name] = parameter
        self.swapped_in = True

    def swap_out(self) -> None:
        for params, name, parameter in self.host_bindings:
            params[name] = parameter
        self.swapped_in = False


def _bindings(found: FoundLayer) -> list[Binding]:
    """Every place in the layer's modules where one of its parameters hangs; a tied one hangs in several."""
    moved = {id(parameter) for parameter in found.parameters}
    return [
        (module._parameters, name, parameter)
        for module in found.module.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in moved
    ]


def build_layers(
    found: Discovery, port: DevicePort, pinned: bool, progress: Callable[[int, int], None] | None
) -> list[Layer]:
    """All of the layers, or none: memory for the masters may run out on the way, and `progress` may interrupt."""
    layers: list[Layer] = []
    done, total = 0, sum(layer.nbytes for layer in found.layers)
    try:
        for index, layer in enumerate(found.layers):
            layers.append(Layer(index, layer, port, pinned))
            done += layer.nbytes
            if progress is not None:
                progress(done, total)
    except BaseException:
        close_holds(port, [layer.host.hold for layer in layers])
        raise
    return layers
