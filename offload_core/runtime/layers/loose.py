"""The tensors of a module outside its layers: on the device while the component is loaded, on the host otherwise.

Those that can be moved as bytes go into one device buffer; the others (types that do not expose their parts) are moved
one by one with `Tensor.to`. The module's host tensors are kept and put back unchanged; a module buffer that was written
to on the device is copied back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..device.device_port import DevicePort
from ..tensors.layout import Flattened, copy_span
from ..tensors.parts import is_plain, leaves_of, parts_of, plain


class LooseTensors:
    """The parameters and buffers of `root` whose ids are not in `streamed`."""

    def __init__(self, root: nn.Module, streamed: Collection[int]) -> None:
        self._places: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        tensors: dict[int, torch.Tensor] = {}
        for module in root.modules():
            for place in (module._parameters, module._buffers):
                for name, tensor in place.items():
                    if tensor is not None and id(tensor) not in streamed:
                        self._places.append((place, name, tensor))
                        tensors[id(tensor)] = tensor
        self._movable = [tensor for tensor in tensors.values() if leaves_of(tensor)]
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
        """Copy all tensors to the port's device and put them into the modules. Idempotent; all of it or nothing."""
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
                moved = tensor if tensor.is_meta else tensor.detach().to(port.device)
                if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
                    moved = nn.Parameter(moved, requires_grad=False)
                on_device[id(tensor)] = moved
        self._on_device = on_device
        self._buffer, self._version = buffer, buffer._version  # one counter for all views of it
        for place, name, tensor in self._places:
            if place.get(name) is tensor:
                place[name] = on_device[id(tensor)]

    def unload(self) -> None:
        """Put the host tensors back, except where other code has replaced the device tensor."""
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
        """Inside the block the modules hold the host tensors."""
        replaced = []
        try:
            for place, name, tensor in self._places:
                shown = self._on_device.get(id(tensor))
                if shown is not None and place.get(name) is shown:
                    replaced.append((place, name, shown))
                    place[name] = tensor
            yield
        finally:
            for place, name, shown in replaced:
                place[name] = shown

    def host_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The host tensor whose device copy is `tensor`, else `tensor` itself."""
        for host in (*self._movable, *self._others):
            if self._on_device.get(id(host)) is tensor:
                return host
        return tensor

    def write(self, tensor: torch.Tensor, value: torch.Tensor, port: DevicePort) -> None:
        """Change the value of a tensor: `tensor` is what the module holds, on host or device."""
        was_loaded = self.loaded
        host = self.host_of(tensor)
        self.unload()
        with torch.inference_mode(host.is_inference()), torch.no_grad():
            host.data.copy_(value)
        if was_loaded:
            self.load(port)

    def lies_on_device_once(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a parameter's copy in our device buffer, used in one place only."""
        host = self.host_of(tensor)
        is_copy = host is not tensor and isinstance(host, nn.Parameter) and any(host is own for own in self._movable)
        return is_copy and sum(own is host for _, _, own in self._places) == 1

    def renew(self, tensor: torch.Tensor) -> None:
        """Copy the host value to a parameter's device copy in our buffer again."""
        with torch.inference_mode(False), torch.no_grad():
            for target, source in zip(parts_of(tensor).leaves, parts_of(self.host_of(tensor)).leaves):
                copy_span(plain(target).data, plain(source).data)

    def set_marks(self, host: torch.Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set attributes of a parameter's host tensor and device copy. Returns the values before."""
        position = next(index for index, own in enumerate(self._movable) if own is host)
        for tensor in (host, self._on_device.get(id(host), host)):
            vars(tensor).update(values)
        return self._flat.parts[position].set_marks(values)

    def _bring_buffers_home(self) -> None:
        """Copy the module's plain buffers back: a kernel has written to the device buffer."""
        for tensor in self._movable:
            if not isinstance(tensor, nn.Parameter) and is_plain(tensor):
                # A tensor made in inference mode, as the app's are, can only be written to in it.
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(self._on_device[id(tensor)])
