"""The tensors of a module outside its layers: on the device while the component is in use, back to the host after.

What can be moved as bytes goes into one device buffer, with one allocation; the rest (types that say nothing of their
parts) moves one by one by its own means. The module's host objects are kept aside and put back untouched; a buffer
that was written to on the device brings its new value home. Knows nothing about layers, rings or plans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .device_port import DevicePort
from .layout import Flattened, copy_span
from .parts import UnmovableTensor, is_plain, parts_of, plain


class LooseTensors:
    """Parameters and buffers of `root`, less those with an id in `streamed`."""

    def __init__(self, root: nn.Module, streamed: Collection[int]) -> None:
        self._places: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        tensors: dict[int, torch.Tensor] = {}
        for module in root.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is not None and id(tensor) not in streamed:
                        self._places.append((place, name, tensor))
                        tensors[id(tensor)] = tensor
        self._movable = [tensor for tensor in tensors.values() if _is_movable(tensor)]
        movable = {id(tensor) for tensor in self._movable}
        self._others = [tensor for tensor in tensors.values() if id(tensor) not in movable]
        self._flat = Flattened(self._movable)
        self._on_device: dict[int, torch.Tensor] = {}
        self._buffer: torch.Tensor | None = None
        self._version = 0

    @property
    def nbytes(self) -> int:
        """Device bytes while loaded."""
        return self._flat.layout.nbytes + sum(t.numel() * t.element_size() for t in self._others if not t.is_meta)

    @property
    def loaded(self) -> bool:
        return bool(self._on_device)

    def load(self, port: DevicePort) -> None:
        """Copy everything to the port's device and hang it into the modules. Idempotent; all of it or nothing."""
        if self._on_device or port.shares_host_memory:
            return
        on_device: dict[int, torch.Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            buffer = port.empty(self._flat.layout.nbytes)
            for slot, leaf in zip(self._flat.layout.slots, self._flat.leaves):
                copy_span(slot.view(buffer), plain(leaf).data)
            for tensor, parts, views in zip(self._movable, self._flat.parts, self._flat.views(buffer)):
                is_parameter = isinstance(tensor, nn.Parameter)
                on_device[id(tensor)] = parts.as_parameter(views) if is_parameter else parts.rebuild(views)
            for tensor in self._others:
                on_device[id(tensor)] = tensor if tensor.is_meta else _like(tensor, tensor.detach().to(port.device))
        self._on_device = on_device
        self._buffer, self._version = buffer, buffer._version  # one counter for all views of it
        for place, name, tensor in self._places:
            if place.get(name) is tensor:
                place[name] = on_device[id(tensor)]

    def unload(self) -> None:
        """Put the host tensors back. What somebody else has hung in their place meanwhile is left alone."""
        if not self._on_device:
            return
        if self._buffer is not None and self._buffer._version != self._version:
            self._bring_buffers_home()
        for place, name, tensor in self._places:
            if place.get(name) is self._on_device[id(tensor)]:
                place[name] = tensor
        self._on_device, self._buffer = {}, None

    @contextlib.contextmanager
    def put_aside(self) -> Iterator[None]:
        """For a moment the modules hold the host tensors."""
        hung = []
        try:
            for place, name, tensor in self._places:
                shown = self._on_device.get(id(tensor))
                if shown is not None and place.get(name) is shown:
                    hung.append((place, name, shown))
                    place[name] = tensor
            yield
        finally:
            for place, name, shown in hung:
                place[name] = shown

    def host_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The host tensor of which `tensor` is the copy on the device, else `tensor` itself."""
        for host in (*self._movable, *self._others):
            if self._on_device.get(id(host)) is tensor:
                return host
        return tensor

    def write(self, tensor: torch.Tensor, value: torch.Tensor, port: DevicePort) -> None:
        """Change one of them: `tensor` is what hangs in the module, on either side."""
        was_loaded = self.loaded
        host = self.host_of(tensor)
        self.unload()
        with torch.inference_mode(host.is_inference()), torch.no_grad():
            host.data.copy_(value)
        if was_loaded:
            self.load(port)

    def lies_on_device_once(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a parameter's copy in our buffer, and hangs in one place only."""
        return sum(self._on_device.get(id(host)) is tensor for _, _, host in self._places) == 1 and any(
            self._on_device.get(id(host)) is tensor and isinstance(host, nn.Parameter) for host in self._movable
        )

    def renew(self, tensor: torch.Tensor) -> None:
        """Give a parameter's copy on the device its host value again, if it is still one of ours."""
        for host in self._movable:
            if self._on_device.get(id(host)) is tensor:
                with torch.inference_mode(False), torch.no_grad():
                    for mine, theirs in zip(parts_of(tensor).leaves, parts_of(host).leaves):
                        copy_span(plain(mine).data, plain(theirs).data)

    def set_marks(self, host: torch.Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        """Other attributes for a parameter, given as it is on the host, on both sides. Returns the values before."""
        position = next(index for index, own in enumerate(self._movable) if own is host)
        for one in (host, self._on_device.get(id(host))):
            if one is not None:
                vars(one).update(values)
        return self._flat.parts[position].set_marks(values)

    def _bring_buffers_home(self) -> None:
        """Somebody wrote in place: the module's buffers keep what was written."""
        for tensor in self._movable:
            if not isinstance(tensor, nn.Parameter) and is_plain(tensor):
                # A tensor made in inference mode, as the app makes all of its own, may only be written to there.
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(self._on_device[id(tensor)])


def _is_movable(tensor: torch.Tensor) -> bool:
    try:
        parts_of(tensor)
    except UnmovableTensor:
        return False
    return True


def _like(tensor: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """`moved` as the kind of thing `tensor` is: a Parameter or a buffer."""
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
