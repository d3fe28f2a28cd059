"""What the adviser, which sees names and shapes only, makes of a file with a module's tensors."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from offload_core.model_shape import Compute, inventory_of
from offload_core.safetensors_header import TensorInfo


def advised(module: nn.Module) -> dict[str, int]:
    """Bytes on the device with everything resident, bytes of layers that may be streamed, and of the largest layer."""
    tensors = [
        TensorInfo(name, "BF16", tuple(tensor.shape), 0, tensor.numel() * tensor.element_size(), Path())
        for name, tensor in module.state_dict().items()
    ]
    inventory = inventory_of("dit", tensors, Compute(100.0))
    layers = [layer.bytes for layer in inventory.layers if layer.keep is None]
    return {"device_bytes": inventory.total_bytes, "layer_bytes": sum(layers), "largest_bytes": max(layers, default=0)}
