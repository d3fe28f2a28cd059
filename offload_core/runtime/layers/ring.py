"""Places the layers of a plan: streamed ones at fixed offsets of the arena, residents in buffers of their own. Issues
no copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..device.device_port import DevicePort
from ..tensors.layout import overlapping
from .layer import Layer


def place_layers(layers: Sequence[Layer], offsets: Sequence[int], arena: torch.Tensor) -> None:
    """Bind every layer to its range of `arena`. The offsets are the plan's, in bytes; ranges may overlap."""
    for layer, offset in zip(layers, offsets):
        layer.bind(arena[offset : offset + layer.nbytes])


def link_overlaps(layers: Sequence[Layer], offsets: Sequence[int]) -> None:
    """Set each layer's `overlaps`: the other layers that share bytes of the ring with it, by index."""
    overlaps: dict[Layer, list[Layer]] = {layer: [] for layer in layers}
    ranges = [(offset, offset + layer.nbytes, layer) for offset, layer in zip(offsets, layers)]
    for layer, other in overlapping(ranges):
        overlaps[layer].append(other)
        overlaps[other].append(layer)
    for layer, others in overlaps.items():
        layer.share_bytes_with(sorted(others, key=lambda other: other.index))


def seat_residents(layers: Sequence[Layer], port: DevicePort) -> None:
    """Give every resident without one a device buffer, or its master where the device can use host memory. The memory
    is allocated now, so that the device's free bytes are right; the copies are issued in the first pass."""
    for layer in layers:
        if layer.keep_resident and layer.device_buffer is None:
            if port.shares_host_memory and layer.revision is None:
                layer.stay_in_place()
            else:
                with torch.inference_mode(False):
                    layer.bind(port.empty(layer.nbytes))
