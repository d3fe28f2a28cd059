"""Puts the wanted changes of one component's weights into effect, in its layers and on its loose tensors.

Layers get a patch and are patched on arrival (`patched_layers.py`). A loose tensor is patched in place on the
device. One that is not there (a table on the host), is used in several places or gets another shape is replaced by a
tensor of its own. For a change by attributes (`Change.marks`) these are set on the host tensor and its device copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from ...errors import OffloadError
from ..device.device_port import DevicePort
from ..layers.layer import Layer
from ..layers.loose import LooseTensors
from ..layers.patched_layers import Change, Place, write_into
from .versions import Versions


class ChangedWeights:
    """The wanted changes of one component's weights. `put_on_layers` and `put_on_loose` put them into effect."""

    def __init__(self, root: nn.Module, component: str, layers: Sequence[Layer], port: DevicePort) -> None:
        self._root = root
        self._component = component
        self._layers = layers
        self._port = port
        self._wanted: dict[str, tuple[Place, Change]] = {}
        self._loose: LooseTensors | None = None
        self.aside = False
        """Whether a `put_aside` block is under way."""
        self._put_on: dict[str, tuple[Hashable, Place, torch.Tensor, torch.Tensor | None]] = {}
        """Loose tensors changed, by name: key, place, tensor before, substitute (None: patched in place)."""
        self._marked = contextlib.ExitStack()
        """Restores the attributes of the marked weights of layers."""
        self._marked_loose = contextlib.ExitStack()

    def alike(self, changes: Mapping[str, Change]) -> bool:
        """Whether `changes` have the keys of the wanted ones."""
        wanted = {name: change.key for name, (_, change) in self._wanted.items()}
        return wanted == {name: change.key for name, change in changes.items()}

    def want(self, changes: Mapping[str, Change]) -> None:
        """Replace the wanted changes. Raises OffloadError, and keeps the old ones, for a change that cannot be made."""
        wanted = {name: (self._place_of(name), change) for name, change in changes.items()}
        for layer in self._layers:
            for name, (_, master, change) in _in_layer(layer, wanted).items():
                self._check(layer, name, master, change)
        self._wanted = wanted

    def _place_of(self, name: str) -> Place:
        owner, _, own_name = name.rpartition(".")
        parameters = self._root.get_submodule(owner)._parameters
        if parameters.get(own_name) is None:
            raise OffloadError(
                f"{self._component}: asked to change {name}; found no parameter of that name; only parameters can be "
                "changed under layerwise offload"
            )
        return parameters, own_name

    def _check(self, layer: Layer, name: str, master: nn.Parameter, change: Change) -> None:
        if sum(host is master for _, _, host in layer.host_bindings) > 1:
            raise OffloadError(
                f"{self._component}: asked to change {name}; found that {layer.name} uses that weight in several "
                "places and only one is to change; set the placement to whole for this model"
            )
        if change.shape is not None:
            raise OffloadError(
                f"{self._component}: asked to change {name} to the shape {tuple(change.shape)}; found it in the "
                f"streamed layer {layer.name}, whose weights keep their shapes; set the placement to whole for this "
                "model"
            )

    # ------------------------------------------------------------------ layers

    def put_on_layers(self, versions: Versions) -> list[Layer]:
        """Set every layer's patch. Returns the layers whose bytes on the device are invalid now."""
        void = []
        self._marked.close()
        for layer in self._layers:
            computed = []
            for place, master, change in _in_layer(layer, self._wanted).values():
                if change.marks is None:
                    computed.append((place, master, change))
                else:
                    self._marked.callback(layer.set_marks, place, layer.set_marks(place, change.marks))
            changes = [(place, change) for place, _, change in computed]
            if layer.set_patch(versions.patch_for(layer, changes) if changes else None):
                void.append(layer)
            if changes and layer.is_in_place:  # a patched layer needs a device buffer beside the master
                layer.unbind()
                layer.seat(self._port)
                layer.host.move_to("mapped")  # not in memory twice
            layer.host.touches.show(
                {id(master): partial(_from_master, place, master, change.compute) for place, master, change in computed}
            )
        return void

    # ------------------------------------------------------------------ outside layers

    def put_on_loose(self, loose: LooseTensors) -> None:
        """Put the wanted changes of loose tensors into effect; those with unchanged keys are left alone."""
        self._loose = loose
        self._marked_loose.close()
        in_layers = {name for layer in self._layers for name in _in_layer(layer, self._wanted)}
        wanted = {}
        for name, (place, change) in self._wanted.items():
            if name in in_layers:
                continue
            if change.marks is None:
                wanted[name] = (place, change)
            else:
                host = loose.host_of(place[0][place[1]])
                self._marked_loose.callback(loose.set_marks, host, loose.set_marks(host, change.marks))
        for name in list(self._put_on):
            if name not in wanted or wanted[name][1].key != self._put_on[name][0]:
                self._take_off(name)
        for name, (place, change) in wanted.items():
            if name not in self._put_on:
                self._change_loose(name, place, change)

    def _change_loose(self, name: str, place: Place, change: Change) -> None:
        assert self._loose is not None
        parameters, own_name = place
        shown = parameters[own_name]
        value = change.compute()
        if change.shape is None and self._loose.lies_on_device_once(shown):
            self._put_on[name] = (change.key, place, shown, None)
            write_into(shown, value, name)
        else:
            substitute = nn.Parameter(value.to(shown.device), requires_grad=False)
            self._put_on[name] = (change.key, place, shown, substitute)
            parameters[own_name] = substitute

    def take_off(self) -> None:
        """Undo all changes of host tensors, in layers and outside. Idempotent."""
        self._marked.close()
        self.take_off_loose()

    def take_off_loose(self) -> None:
        """Undo all changes of loose tensors. Idempotent."""
        self._marked_loose.close()
        for name in list(self._put_on):
            self._take_off(name)

    def _take_off(self, name: str) -> None:
        _, (parameters, own_name), shown, substitute = self._put_on.pop(name)
        if substitute is None:
            assert self._loose is not None
            self._loose.renew(shown)
        elif parameters.get(own_name) is substitute:
            parameters[own_name] = shown

    # ------------------------------------------------------------------ looking at the masters

    @contextlib.contextmanager
    def put_aside(self, lent: bool) -> Iterator[None]:
        """Inside the block the module holds its masters as ordinary parameters. `lent`: they lend again afterwards."""
        shown = [layer for layer in self._layers if layer.swapped_in]
        replaced = [
            ((parameters, name), before, own)
            for _, (parameters, name), before, own in self._put_on.values()
            if own is not None and parameters.get(name) is own
        ]
        self.aside = True
        try:
            for (parameters, name), before, _ in replaced:
                parameters[name] = before
            for layer in self._layers:
                if layer.swapped_in:
                    layer.swap_out()
                layer.host.hand_back()
            yield
        finally:
            self.aside = False
            for layer in self._layers if lent else ():
                layer.host.take_over()
            for layer in shown:
                layer.swap_in()
            for (parameters, name), _, own in replaced:
                parameters[name] = own


def _from_master(place: Place, master: nn.Parameter, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The value that a change computes from a master. The module may hold the device's, which is patched already."""
    parameters, name = place
    shown = parameters.get(name)
    parameters[name] = master
    try:
        return compute()
    finally:
        if shown is None:
            del parameters[name]
        else:
            parameters[name] = shown


def _in_layer(
    layer: Layer, changes: Mapping[str, tuple[Place, Change]]
) -> dict[str, tuple[Place, nn.Parameter, Change]]:
    """The changes of weights that move with the layer, with the masters of these."""
    masters = {(id(parameters), name): master for parameters, name, master in layer.host_bindings}
    return {
        name: (place, master, change)
        for name, (place, change) in changes.items()
        if (master := masters.get((id(place[0]), place[1]))) is not None
    }
