"""One layer at run time: its parameters on host and device, its place on the device, and its events.

The prefetcher says when a copy is issued and when a call begins and ends; the plan chooses residents. What then becomes
of the layer is done here, each change of state beside the event that orders it: `issue`, `enter`, `leave`, `give_way`.

A layer's state is in four slots (`look_ahead.Loadable`), which say what has been *issued*; whether it has happened yet,
only events tell. `sign` is the summary for displays:

    in_use         between entry and exit of the layer's call: the modules hold device parameters
    keep_resident  the plan keeps it on the device: once copied, the device parameters stay in the modules
    valid          the bytes on the device are the layer's, or a copy of them was issued
    pending        expected visits that need these bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...planning.look_ahead import Loadable
from ..device.device_port import DevicePort, Event
from ..host.host_layer import HostLayer
from ..host.masters import close_uses
from ..tensors.host_source import ByteSource
from ..tensors.layout import overlapping
from ..tensors.parts import plain
from .discovery import DiscoveredLayer, Discovery
from .layer_times import LayerTimes
from .patched_layers import LayerPatch

Binding = tuple[dict[str, Any], str, nn.Parameter]
"""A module's parameter dictionary, a name in it, and the parameter to put there."""


class Layer(Loadable):
    """The unit of movement. The prefetcher reads the public slots below on its hot path."""

    __slots__ = (
        *("discovered", "host", "host_bindings", "index", "nbytes", "_places"),
        *("device_bindings", "swapped_in"),
        *("copy_done", "has_arrived", "last_read", "read_since_copy"),
        *("carries", "patch", "saved", "saving", "copy_carries", "copy_from"),
        "times",
    )

    def __init__(self, index: int, discovered: DiscoveredLayer, port: DevicePort, pinned: bool) -> None:
        super().__init__(discovered.name)
        self.index = index
        self.discovered = discovered
        self.nbytes = discovered.nbytes
        self.host = HostLayer(discovered.parameters, port, pinned)
        self._places = _places(discovered)
        self.host_bindings = self._bindings(discovered.parameters)
        self.device_bindings: list[Binding] = []
        self.device_buffer: torch.Tensor | None = None
        self.copy_done: Event = port.event()
        """Copy to compute: the copy is complete."""
        self.last_read: Event = port.event()
        """Compute to copy: the last visit has read the bytes."""
        self.overlaps: tuple[Layer, ...] = ()
        self.has_arrived = False
        """The copy of `valid` is known to be complete. Kept for residents only."""
        self.read_since_copy = False
        """The copy lane has not yet waited for `last_read`."""
        self.swapped_in = False
        """The modules hold the parameters of `device_bindings`."""
        self.times = LayerTimes(port, index, discovered.nbytes)
        self.patch: LayerPatch | None = None
        """The patches of the layer's weights on the device; None: the masters' values."""
        self.copy_from: torch.Tensor | None = None
        """The version that the next copy comes from; None: the master."""
        self.copy_carries: LayerPatch | None = None
        """The patch contained in the bytes of `copy_from`."""
        self.carries: LayerPatch | None = None
        """The patch contained in the bytes on the device, if `valid`."""
        self.saved: Event = port.event()
        """Copy-back to copy: `copy_from` is complete, and the bytes on the device may be overwritten."""
        self.saving = False
        """The copy lane has not yet waited for `saved`."""

    @property
    def sign(self) -> str:
        """The state for displays, as one character of `docs/formats.md`."""
        if self.in_use:
            return "U"
        if self.keep_resident:
            return "R" if self.valid else "r"
        if self.valid:
            return "F" if self.pending else "C"
        return "O"

    # ------------------------------------------------------------------ copies

    def issue(self, port: DevicePort, timing: bool) -> None:
        """Queue the copy on the copy lane, from the version, another device, the master or the file. No overlapping
        layer is in use or pending; all become invalid. `timing`: measure it, if there is an event for that."""
        buffer = self.device_buffer
        assert buffer is not None and not self.valid
        for other in self.overlaps:
            if other.valid or other.read_since_copy or other.saving:
                other.give_way(port)
        if self.read_since_copy or self.saving:
            self.give_way(port)
        version = self.copy_carries
        to_read = self.host.source if version is None else version.to_read
        peer_copy = self.peer_copy
        once = self.keep_resident and to_read is not None  # the file's rate, not the link's, and not met again
        end = self.times.start_copy(port) if timing and not once else None
        if to_read is not None:
            port.copy_from(buffer, to_read)
        elif peer_copy is not None:
            port.copy_across(buffer, peer_copy)
        else:
            port.copy(buffer, self.source_bytes)
        if end is not None:  # before the visit may begin, so that its measured start is not before this end
            self.times.end_copy(port, end, peer_copy is not None and to_read is None)
        port.record_copy(self.copy_done)
        self.carries = version
        self.valid = True
        self.has_arrived = False

    def give_way(self, port: DevicePort) -> None:
        """A copy is about to overwrite the bytes: it waits for what still reads them."""
        self.valid = False
        if self.read_since_copy:
            port.copy_waits(self.last_read)
            self.read_since_copy = False
        if self.saving:
            port.copy_waits(self.saved)
            self.saving = False

    def invalidate(self) -> None:
        """The bytes on the device are lost or not to be used: the next visit needs a copy."""
        self.valid = False

    def copy_unplaced(self, port: DevicePort, fence: Event) -> list[Binding]:
        """Copy the layer into a temporary buffer on the compute lane, and return the bindings into it. Bytes that have
        to be read first come by the copy lane, after all work issued so far."""
        with torch.inference_mode(False):
            buffer = port.empty(self.nbytes)
            bindings = self.bindings_into(buffer)
        if self.saving:
            port.compute_waits(self.saved)
        to_read = self.to_read
        if to_read is None:
            peer_copy = self.peer_copy
            if peer_copy is not None:
                port.copy_across_on_compute(buffer, peer_copy)
            else:
                port.copy_on_compute(buffer, self.source_bytes)
            return bindings
        port.record_compute(fence)
        port.copy_waits(fence)
        port.copy_from(buffer, to_read)
        port.record_copy(self.copy_done)
        port.compute_waits(self.copy_done)
        return bindings

    def copy_back(self, port: DevicePort, buffer: torch.Tensor) -> None:
        """Queue a copy of the patched bytes into a host buffer, on a lane of its own."""
        assert self.valid and self.device_buffer is not None and not self.saving
        self.saving = True
        port.copy_back(buffer, self.device_buffer, self.saved)

    def settle(self, port: DevicePort) -> None:
        """Order later work on both lanes after the copy back, if one is in flight."""
        if self.saving:
            port.copy_waits(self.saved)
            port.compute_waits(self.saved)
            self.saving = False

    # ------------------------------------------------------------------ visits

    def enter(self, port: DevicePort, warm: bool | None = None) -> None:
        """The call begins: the compute lane waits for the copy, for a resident until it is known to be complete, and
        the modules hold device parameters. `warm`: whether the time of this visit is typical; None: not measured."""
        assert self.valid and not self.in_use
        self.in_use = 1
        if warm is not None:
            self.times.wait(port, self.copy_done, warm)
        elif not self.keep_resident:
            port.compute_waits(self.copy_done)
        elif not self.has_arrived:
            port.compute_waits(self.copy_done)
            self.has_arrived = port.happened(self.copy_done)
        if not self.swapped_in:
            self.swap_in()

    def enter_again(self) -> None:
        """The call begins inside itself."""
        assert self.in_use
        self.in_use += 1

    def enter_unplaced(self, bindings: list[Binding]) -> None:
        """The call begins, with the parameters of `bindings`; none: with the host's."""
        assert not self.in_use
        self.in_use = 1
        if bindings:
            self.swap_in(bindings)

    def leave(self, port: DevicePort) -> None:
        """A call is over, or could not begin. After the outermost one a streamed layer's modules hold host parameters,
        and `last_read` is recorded."""
        if self.in_use != 1:
            self.in_use = max(0, self.in_use - 1)
            return
        if not self.keep_resident:
            self.swap_out()
        if self.times.timing:  # before its bytes may be overwritten, so that no measured copy begins before this end
            self.times.finish(port)
        if not self.keep_resident and self.valid:  # else it ran from a temporary buffer, which the swap has released
            port.record_compute(self.last_read)
            self.read_since_copy = True
        self.in_use = 0

    # ------------------------------------------------------------------ place and patches

    def keep(self, resident: bool) -> None:
        """Make it a resident, or a streamed layer; it has no place yet."""
        assert self.device_buffer is None
        self.keep_resident, self.overlaps = resident, ()

    def share_bytes_with(self, others: Sequence[Layer]) -> None:
        """Set the other layers that share bytes of the ring with this one."""
        self.overlaps = tuple(others)

    def patched(self) -> None:
        """The bytes on the device, the master's until now, contain the patch."""
        assert self.valid and self.carries is None
        self.carries = self.patch

    def bind(self, buffer: torch.Tensor) -> None:
        """Assign the layer's device buffer, and build the device parameters once for all visits."""
        self.device_buffer = buffer
        self.device_bindings = self.bindings_into(buffer)
        self.valid = False
        self.read_since_copy = False

    def seat(self, port: DevicePort) -> None:
        """Give a resident its place: its master where the device can use host memory and no patch changes it, else a
        buffer. It is allocated now, so that the device's free bytes are right, and filled in the first pass."""
        if port.shares_host_memory and self.patch is None:
            self._stay_in_place()
        else:
            with torch.inference_mode(False):
                self.bind(port.empty(self.nbytes))

    def _stay_in_place(self) -> None:
        self.device_buffer = self.host.buffer
        assert self.device_buffer is not None  # `TierMoves` has brought it into memory
        self.device_bindings = []
        self.carries = None
        self.valid = self.has_arrived = True

    def set_patch(self, patch: LayerPatch | None) -> bool:
        """Set the patch wanted on the device. Returns whether the bytes there contain another one."""
        self.patch = patch
        if patch is not None and patch.version is not None:
            self.copy_from, self.copy_carries = patch.version, patch
        else:
            self.copy_from, self.copy_carries = None, None
        return self.valid and self.carries is not None and self.carries is not patch

    @property
    def source_bytes(self) -> torch.Tensor:
        """The host buffer to copy from: the version's or the master's."""
        buffer = self.host.buffer if self.copy_from is None else self.copy_from
        assert buffer is not None
        return buffer

    @property
    def peer_copy(self) -> torch.Tensor | None:
        """The copy on another device that the next copy comes from; None: it comes from the host."""
        return self.host.peer_copy if self.copy_from is None else None

    @property
    def to_read(self) -> ByteSource | None:
        """The source to read the bytes from if they are not page-locked; None: copy `source_bytes` directly."""
        return self.host.source if self.copy_carries is None else self.copy_carries.to_read

    @property
    def is_in_place(self) -> bool:
        return self.device_buffer is not None and self.device_buffer is self.host.buffer

    def master_of(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """The host parameter that is `parameter` or whose device copy it is; None if it belongs to another layer."""
        for bindings in (self.host_bindings, self.device_bindings):
            for (_, _, own), (_, _, host) in zip(bindings, self.host_bindings):
                if own is parameter:
                    return host
        return None

    def set_marks(self, place: tuple[dict[str, Any], str], values: Mapping[str, Any]) -> dict[str, Any]:
        """Set attributes of a parameter's host and device tensors. Returns the values before."""
        index, position = next(
            (index, position)
            for index, (params, name, position) in enumerate(self._places)
            if params is place[0] and name == place[1]
        )
        if self.device_bindings:
            vars(self.device_bindings[index][2]).update(values)
        return self.host.set_marks(position, values)

    def _bindings(self, parameters: Sequence[nn.Parameter]) -> list[Binding]:
        """The bindings of these parameters, which stand for the layer's, in their order."""
        return [(params, name, parameters[position]) for params, name, position in self._places]

    def bindings_into(self, buffer: torch.Tensor) -> list[Binding]:
        """The bindings whose parameters are views into `buffer`."""
        return self._bindings(self.host.device_views(buffer))

    def unbind(self) -> None:
        """Release the device buffer. The modules hold the host parameters afterwards."""
        self.swap_out()
        self.device_buffer = None
        self.device_bindings = []
        self.valid = False
        self.pending = 0
        self.read_since_copy = False

    def take_over(self) -> bool:
        """Make the module's current parameters the layer's masters again; their values may have changed since
        `hand_back`. Returns False if one no longer has the shape and type that the layer was built for."""
        reclaimed: set[int] = set()
        for params, name, position in self._places:
            if position not in reclaimed:  # a tied parameter has several places: the first one counts
                current = params.get(name)
                if current is None or not self.host.reclaim(position, current):
                    return False
                reclaimed.add(position)
            params[name] = self.host.parameters[position]
        self.host_bindings = self._bindings(self.host.parameters)
        self.host.take_over()
        return True

    def replaced(self) -> list[tuple[int, torch.Tensor]]:
        """(binding index, value) of each parameter that other code has replaced, or given other data."""
        with torch._C.DisableTorchFunctionSubclass():
            bindings = self.device_bindings if self._shows_the_device else self.host_bindings
            elsewhere = self._looking_elsewhere()
            changed = []
            for index, (params, name, own) in enumerate(bindings):
                current = params.get(name)
                if current is own and self._places[index][2] in elsewhere:
                    changed.append((index, plain(current.data)))
                elif current is not None and current is not own:
                    changed.append((index, current))
            return changed

    def _looking_elsewhere(self) -> set[int]:
        """Positions of the masters whose data is no longer in the buffer; while the modules show the device copies, of
        those whose copy's data is not."""
        if not self._shows_the_device:
            return self.host.looking_elsewhere()
        assert self.device_buffer is not None
        start = self.device_buffer.data_ptr()
        return {
            position
            for (_, _, shown), (_, _, position) in zip(self.device_bindings, self._places)
            if (offset := self.host.offset_of(position)) is not None and shown.data_ptr() != start + offset
        }

    @property
    def _shows_the_device(self) -> bool:
        """The modules hold device parameters that differ from the host's."""
        return self.swapped_in and bool(self.device_bindings)

    def name_of(self, index: int) -> str:
        """The full name of a binding's weight."""
        parameters, name, _ = self._places[index]
        modules = self.discovered.module.named_modules()
        module = next(path for path, module in modules if module._parameters is parameters)
        return ".".join(part for part in (self.name, module, name) if part)

    def put_back(self, index: int) -> None:
        """Put our host parameter, with its own data, back into a binding. The device copy becomes invalid."""
        if self._shows_the_device:
            self.swap_out()
            assert self.device_buffer is not None
            self.device_bindings = self.bindings_into(self.device_buffer)  # one of them may look elsewhere
            self.valid = False
        params, name, position = self._places[index]
        params[name] = self.host.parameters[position]
        self.host.look_back(position)

    def write(self, master: nn.Parameter, value: torch.Tensor) -> None:
        """Change a host parameter. No copy to or from the layer is in flight."""
        in_place = self.is_in_place
        self.host.write(master, value)
        if in_place:  # a shared master was replaced by a private one
            self._stay_in_place()

    def spoil(self, port: DevicePort) -> None:
        """Invalidate the bytes on the device, which kernels may still be writing."""
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


def _places(discovered: DiscoveredLayer) -> list[tuple[dict[str, Any], str, int]]:
    """(dictionary of a module, name in it, index in `discovered.parameters`) of each place of the layer's parameters in
    its modules; a tied parameter has several."""
    positions = {id(parameter): position for position, parameter in enumerate(discovered.parameters)}
    return [
        (module._parameters, name, positions[id(parameter)])
        for module in discovered.module.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in positions
    ]


def build_layers(
    discovery: Discovery, port: DevicePort, pinned: bool, progress: Callable[[int, int], None] | None
) -> list[Layer]:
    """The layers of a discovery. `progress(bytes, of_bytes)` may raise; on any error all masters are released."""
    layers: list[Layer] = []
    done, total = 0, sum(layer.nbytes for layer in discovery.layers)
    try:
        for index, layer in enumerate(discovery.layers):
            layers.append(Layer(index, layer, port, pinned))
            done += layer.nbytes
            if progress is not None:
                progress(done, total)
    except BaseException:
        close_uses(port, [layer.host.use for layer in layers])
        raise
    return layers


def link_overlaps(offsets: Mapping[Layer, int]) -> None:
    """Set the `overlaps` of layers at these offsets of the ring: the others that share bytes with it, by index."""
    overlaps: dict[Layer, list[Layer]] = {layer: [] for layer in offsets}
    ranges = [(offset, offset + layer.nbytes, layer) for layer, offset in offsets.items()]
    for layer, other in overlapping(ranges):
        overlaps[layer].append(other)
        overlaps[other].append(layer)
    for layer, others in overlaps.items():
        layer.share_bytes_with(sorted(others, key=lambda other: other.index))
