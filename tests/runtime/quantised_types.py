"""Streams a small model with weights of each of comfy-kitchen's quantised types, and prints as JSON what was seen.

    python -m tests.runtime.quantised_types

For a process of its own, which has the comfy-kitchen that comes first on its path.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib import metadata
from typing import Any

import torch
from torch import nn

from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.tensors.parts import parts_of, plain, stored_bytes
from tests.runtime.world import hand_plan
from tests.support.race_port import RacePort

DIM, GROUP, RANK = 256, 64, 32
PASSES = 3


def by_its_quantiser(kind: Any, layout: str) -> torch.Tensor:
    return kind.from_float(torch.randn(DIM, DIM, dtype=torch.bfloat16) / 16, layout)


def _by_hand(kind: Any, layout: str, scales: float, **more: Any) -> torch.Tensor:
    """Of types that come from calibrated files only. Any bytes are a weight of theirs, so random ones do."""
    from comfy_kitchen.tensor import get_layout_class

    stored = torch.randint(-128, 128, (DIM, DIM // 2), dtype=torch.int8)
    scale = scales * torch.rand(DIM // GROUP, DIM).bfloat16()
    parameters = get_layout_class(layout).Params(scale=scale, orig_dtype=torch.bfloat16, orig_shape=(DIM, DIM), **more)
    return kind(stored, layout, parameters)


def awq(kind: Any, layout: str) -> torch.Tensor:
    return _by_hand(kind, layout, 0.02, zeros=torch.randn(DIM // GROUP, DIM).bfloat16() / 64, group_size=GROUP)


def svdquant(kind: Any, layout: str) -> torch.Tensor:
    low = {"proj_down": torch.randn(DIM, RANK).bfloat16() / 64, "proj_up": torch.randn(DIM, RANK).bfloat16() / 64}
    return _by_hand(kind, layout, 0.02, smooth_factor=1 + torch.rand(DIM).bfloat16(), **low)


MAKERS = {
    "TensorCoreFP8Layout": by_its_quantiser,
    "TensorWiseINT8Layout": by_its_quantiser,
    "TensorCoreNVFP4Layout": by_its_quantiser,
    "TensorCoreMXFP8Layout": by_its_quantiser,
    "TensorCoreConvRotW4A4Layout": by_its_quantiser,
    "AsymW4A8Int8Layout": by_its_quantiser,
    "TensorCoreAWQW4A16Layout": awq,
    "TensorCoreSVDQuantW4A4Layout": svdquant,
}
"""All types of the comfy-kitchen versions that the tests know, with what makes a weight of them."""


class Linear(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)  # as the app's own layers hold theirs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight)


class Block(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM, dtype=torch.bfloat16)
        self.linear = Linear(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


class Model(nn.Module):
    def __init__(self, kind: Any, layout: str, count: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(MAKERS[layout](kind, layout)) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def stored(tensor: torch.Tensor) -> list[torch.Tensor]:
    return [plain(leaf).data.contiguous().view(-1).view(torch.uint8).clone() for leaf in parts_of(tensor).leaves]


def all_stored(model: nn.Module) -> list[torch.Tensor]:
    return [part for parameter in model.parameters() for part in stored(parameter)]


def streamed(model: Model) -> dict[str, Any]:
    """What is seen when the model runs with every layer but one coming through a ring."""
    x = torch.randn(2, DIM, dtype=torch.bfloat16)
    before = all_stored(model)
    with torch.no_grad():
        reference = model(x)
    port = RacePort()
    queue = DeviceQueue(port)
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    largest = max(layer.bytes for layer in controller.inventory.layers)
    controller.load(hand_plan(controller, 2 * largest + 512, residents=(3,)))
    seen: dict[str, Any] = {"on_device": [], "one_buffer": [], "same": []}

    def look(module: nn.Module, args: Any) -> None:
        leaves = [plain(leaf) for leaf in parts_of(module.weight).leaves]
        start = min(leaf.data_ptr() for leaf in leaves)
        end = max(leaf.data_ptr() + leaf.numel() * leaf.element_size() for leaf in leaves)
        buffers = [layer.device_buffer for layer in controller.layers if layer.device_buffer is not None]
        inside = [buffer.data_ptr() <= start and end <= buffer.data_ptr() + buffer.numel() for buffer in buffers]
        seen["on_device"].append(all(map(port.holds, leaves)))
        seen["one_buffer"].append(any(inside))

    for block in model.blocks:
        block.linear.register_forward_pre_hook(look)
    with torch.no_grad(), port.watching():
        for _ in range(PASSES):
            seen["same"].append(torch.equal(model(x), reference))
        controller.detach()
        queue.close()
    port.check()
    weight = model.blocks[0].linear.weight
    return {
        **{name: all(values) for name, values in seen.items()},
        "visits": len(seen["on_device"]),
        "copies": controller.counters.copies,
        "finite_and_alive": bool(reference.isfinite().all() and not torch.equal(reference, x)),
        "bytes_after_as_before": all(map(torch.equal, before, all_stored(model))),
        "leaves": len(parts_of(weight).leaves),
        "weight_bytes": stored_bytes(weight),
        "layer_bytes": largest,
        "live_bytes_after": port.live_bytes,
    }


def main() -> int:
    try:
        import comfy_kitchen.tensor.base as kitchen
    except ImportError as error:
        print(json.dumps({"missing": f"comfy-kitchen cannot be imported: {error}"}))
        return 0
    results: dict[str, Any] = {}
    for layout in sorted({*kitchen.LAYOUTS, *MAKERS}):
        torch.manual_seed(1)
        if layout not in kitchen.LAYOUTS or layout not in MAKERS:
            why = "this comfy-kitchen has no such type"
            results[layout] = {"skipped": why} if layout in MAKERS else {"error": "no maker for this type: add one"}
            continue
        try:
            results[layout] = streamed(Model(kitchen.QuantizedTensor, layout))
        except Exception:
            results[layout] = {"error": traceback.format_exc()}
    print(json.dumps({"kitchen": metadata.version("comfy-kitchen"), "types": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
