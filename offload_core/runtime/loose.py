"""The tensors of a module outside its layers: on the device while the component is in use, back to the host after.

Ordinary tensors go into one device buffer, with one allocation; the rest (wrapper subclasses, say) move one by one by
their own means. The module's host objects are kept aside and put back untouched; a buffer that was written to on the
device brings its new value home. Knows nothing about layers, rings or plans.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from .device_port import DevicePort
from .host_store import LayerLayout, is_plain, layout_of


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
        self._plain = [tensor for tensor in tensors.values() if is_plain(tensor)]
        self._others = [tensor for tensor in tensors.values() if not is_plain(tensor)]
        self._layout: LayerLayout = layout_of(self._plain)
        self._on_device: dict[int, tuple[torch.Tensor, int]] = {}

    @property
    def nbytes(self) -> int:
        """Device bytes while loaded."""
        return self._layout.nbytes + sum(t.numel() * t.element_size() for t in self._others if not t.is_meta)

    @property
    def loaded(self) -> bool:
        return bool(self._on_device)

    def load(self, port: DevicePort) -> None:
        """Copy everything to the port's device and hang it into the modules. Idempotent."""
        if self._on_device or port.shares_host_memory:
            return
        with torch.inference_mode(False), torch.no_grad():
            buffer = port.empty(self._layout.nbytes)
            for slot, tensor in zip(self._layout.slots, self._plain):
                view = slot.view(buffer)
                view.copy_(tensor.detach())
                self._on_device[id(tensor)] = (_like(tensor, view), view._version)
            for tensor in self._others:
                moved = tensor if tensor.is_meta else _like(tensor, tensor.detach().to(port.device))
                self._on_device[id(tensor)] = (moved, -1)
        for place, name, tensor in self._places:
            if place.get(name) is tensor:
                place[name] = self._on_device[id(tensor)][0]

    def unload(self) -> None:
        """Put the host tensors back. What somebody else has hung in their place meanwhile is left alone."""
        if not self._on_device:
            return
        with torch.inference_mode(False), torch.no_grad():
            for tensor in self._plain:
                moved, version = self._on_device[id(tensor)]
                if not isinstance(tensor, nn.Parameter) and moved._version != version:
                    tensor.copy_(moved)
        for place, name, tensor in self._places:
            if place.get(name) is self._on_device[id(tensor)][0]:
                place[name] = tensor
        self._on_device = {}


def _like(tensor: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """`moved` as the kind of thing `tensor` is: a Parameter or a buffer."""
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
