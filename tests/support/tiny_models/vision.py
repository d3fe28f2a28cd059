"""CLIP vision encoders. The app picks dims by layer count, so the small one needs the shim."""

import json
from pathlib import Path

from .fill import FP16, FP32, fill, shapes_of
from .registry import SHIM, recipe
from .text_encoders import json_tensor

SHIM_KEY = "__tiny_vision__"
TINY_DIMS = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}


def _shapes(config_name: str, **dims) -> dict:
    import comfy.clip_model
    import comfy.ops

    config = json.loads((Path(comfy.clip_model.__file__).parent / config_name).read_text())
    config.update(dims)
    operations = comfy.ops.disable_weight_init
    return shapes_of(comfy.clip_model.CLIPVisionModelProjection(config, FP32, "meta", operations))


@recipe(
    "clip_vision_tiny", "clip_vision/clip_vision_tiny.safetensors", "ViT-L/14 layout, 24 layers, 256 wide", kind=SHIM
)
def clip_vision_tiny(seed):
    tensors = fill(_shapes("clip_vision_config_vitl.json", **TINY_DIMS), FP16, seed)
    return {**tensors, SHIM_KEY: json_tensor(TINY_DIMS)}, {}


@recipe("clip_vision_vitl", "clip_vision/clip_vision_vitl.safetensors", "ViT-L/14 in real size", on_demand=True)
def clip_vision_vitl(seed):
    return fill(_shapes("clip_vision_config_vitl.json"), FP16, seed), {}
