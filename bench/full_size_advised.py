"""What the adviser, which sees names and shapes only, makes of a file with a module's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from offload_core.files.model_shape import Compute, inventory_of
from offload_core.files.safetensors_header import TensorInfo
from offload_core.planning.planner import smallest_budget

SAFETENSORS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
SAFETENSORS |= {torch.int64: "I64"}
"""Types of tensors as the headers of safetensors files spell them."""


def tensor_infos(module: nn.Module) -> list[TensorInfo]:
    """What the header of a file with the module's tensors would say."""
    return [
        TensorInfo(name, SAFETENSORS[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes, Path())
        for name, tensor in module.state_dict().items()
    ]


def advised(module: nn.Module) -> dict[str, Any]:
    """Bytes on the device with everything resident, of layers that may be streamed, of the largest one; and names."""
    inventory = inventory_of("dit", tensor_infos(module), Compute(100.0))
    layers = {layer.name: layer.bytes for layer in inventory.layers if layer.keep is None}
    return {
        "device_bytes": inventory.total_bytes,
        "layer_bytes": sum(layers.values()),
        "largest_bytes": max(layers.values(), default=0),
        "smallest_budget": smallest_budget(inventory),
        "layers": list(layers),
    }
