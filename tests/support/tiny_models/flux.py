"""Flux and Flux 2 diffusion models, their quantised variants, a LoRA and a ControlNet.

The app reads hidden size (a multiple of 128), block counts, text and pooled width, channels and guidance from the file.
"""

import dataclasses
import json

import torch

from .fill import BF16, FP8, FP32, fill, on_meta_kwargs, shapes_of
from .registry import recipe

TINY = 384  # wide enough that the smallest block is over 1 MB also in fp8
MID = 256
FP8_MAX = 448.0


def _params(**wanted) -> dict:
    """Only the fields that this version's FluxParams has."""
    from comfy.ldm.flux.model import FluxParams

    known = {field.name for field in dataclasses.fields(FluxParams)}
    return {name: value for name, value in {"txt_ids_dims": [], **wanted}.items() if name in known}


def _flux_params(hidden: int, depth: int, single: int, context: int) -> dict:
    return _params(
        **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": context, "hidden_size": hidden},
        **{"mlp_ratio": 4.0, "num_heads": hidden // 128, "depth": depth, "depth_single_blocks": single},
        **{"axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True},
    )


def _public_names(shapes: dict) -> dict:
    """Public Flux files say ".scale" for query and key norms; every version of the app understands that spelling."""
    renamed = {}
    for key, shape in shapes.items():
        name = key.removesuffix(".weight") + ".scale" if key.endswith("_norm.weight") else key
        renamed[name] = shape
    return renamed


def flux_shapes(hidden: int = TINY, depth: int = 4, single: int = 8, context: int = 768) -> dict:
    from comfy.ldm.flux.model import Flux

    model = Flux(image_model="flux", **_flux_params(hidden, depth, single, context), **on_meta_kwargs())
    return _public_names(shapes_of(model))


@recipe("flux_tiny", "diffusion_models/flux_tiny.safetensors", "4 double + 8 single blocks; text width 768 (CLIP-L)")
def flux_tiny(seed):
    return fill(flux_shapes(), BF16, seed), {}


@recipe("flux_tiny_ctx64", "diffusion_models/flux_tiny_ctx64.safetensors", "text width 64: pairs with t5xxl_tiny")
def flux_tiny_ctx64(seed):
    return fill(flux_shapes(context=64), BF16, seed), {}


@recipe("flux_mid", "diffusion_models/flux_mid.safetensors", "19 double + 38 single blocks, as the real one")
def flux_mid(seed):
    return fill(flux_shapes(hidden=MID, depth=19, single=38), BF16, seed), {}


@recipe(
    "flux_large",
    "diffusion_models/flux_large.safetensors",
    "19 double + 38 single blocks, 371 MB: more than the rest of a server's memory",
    on_demand=True,
)
def flux_large(seed):
    return fill(flux_shapes(hidden=TINY, depth=19, single=38), BF16, seed), {}


@recipe("flux_tiny_fp8", "diffusion_models/flux_tiny_fp8.safetensors", "flux_tiny with plain float8_e4m3fn matrices")
def flux_tiny_fp8(seed):
    tensors = fill(flux_shapes(), BF16, seed)
    return {key: value.to(FP8) if value.ndim == 2 else value for key, value in tensors.items()}, {}


@recipe(
    "flux_tiny_fp8_scaled", "diffusion_models/flux_tiny_fp8_scaled.safetensors", "flux_tiny with scaled fp8 matrices"
)
def flux_tiny_fp8_scaled(seed):
    tensors = fill(flux_shapes(), BF16, seed)
    layers = {}
    for key in [k for k, v in tensors.items() if k.endswith(".weight") and v.ndim == 2 and "_blocks." in k]:
        layer = key.removesuffix(".weight")
        weight = tensors[key].float()
        scale = weight.abs().amax() / FP8_MAX
        tensors[key] = (weight / scale).to(FP8)
        tensors[layer + ".weight_scale"] = scale.reshape(()).to(FP32)
        layers[layer] = {"format": "float8_e4m3fn"}
    return tensors, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def _quantised(algorithm, seed):
    """flux_tiny with its block matrices in one of the app's own formats, by the app's own quantiser."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    tensors = fill(flux_shapes(), BF16, seed)
    layers = {}
    for key in [k for k, v in tensors.items() if k.endswith(".weight") and v.ndim == 2 and "_blocks." in k]:
        layout = QUANT_ALGOS[algorithm]["comfy_tensor_layout"]
        quantised = QuantizedTensor.from_float(tensors.pop(key), layout, scale="recalculate")
        for name, part in quantised.state_dict(key).items():
            is_block_scale = part.dtype.itemsize == 1 and name != key
            tensors[name] = part.contiguous().view(torch.uint8) if is_block_scale else part.contiguous()
        layers[key.removesuffix(".weight")] = {"format": algorithm}
    return tensors, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


@recipe("flux_tiny_int8", "diffusion_models/flux_tiny_int8.safetensors", "flux_tiny with int8 matrices")
def flux_tiny_int8(seed):
    return _quantised("int8_tensorwise", seed)


@recipe("flux_tiny_nvfp4", "diffusion_models/flux_tiny_nvfp4.safetensors", "flux_tiny with nvfp4 matrices")
def flux_tiny_nvfp4(seed):
    return _quantised("nvfp4", seed)


@recipe("flux_tiny_mxfp8", "diffusion_models/flux_tiny_mxfp8.safetensors", "flux_tiny with mxfp8 matrices")
def flux_tiny_mxfp8(seed):
    return _quantised("mxfp8", seed)


@recipe("lora_flux_tiny", "loras/lora_flux_tiny.safetensors", "rank 4 over every block matrix of flux_tiny")
def lora_flux_tiny(seed, rank=4, strength=0.2):
    shapes = {}
    for key, shape in flux_shapes().items():
        if key.endswith(".weight") and len(shape) == 2 and "_blocks." in key:
            layer = "diffusion_model." + key.removesuffix(".weight")
            shapes[layer + ".lora_down.weight"] = (rank, shape[1])
            shapes[layer + ".lora_up.weight"] = (shape[0], rank)
    return {key: value * strength for key, value in fill(shapes, BF16, seed).items()}, {}


@recipe("controlnet_flux", "controlnet/controlnet_flux_tiny.safetensors", "XLabs layout, 2 double blocks")
def controlnet_flux(seed):
    from comfy.ldm.flux.controlnet import ControlNetFlux

    params = _flux_params(TINY, depth=2, single=0, context=768)
    model = ControlNetFlux(image_model="flux", mistoline=False, **params, **on_meta_kwargs())
    return fill(_public_names(shapes_of(model)), BF16, seed), {}


@recipe("flux2_tiny", "diffusion_models/flux2_tiny.safetensors", "Flux 2 layout, 4 double + 8 single; text width 768")
def flux2_tiny(seed):
    from comfy.ldm.flux.model import Flux

    params = _params(
        **{"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 768, "hidden_size": MID},
        **{"mlp_ratio": 3.0, "num_heads": MID // 128, "depth": 4, "depth_single_blocks": 8},
        **{"axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": True},
        **{"txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False},
        **{"default_ref_method": "index", "ref_index_scale": 10.0},
    )
    model = Flux(image_model="flux2", **params, **on_meta_kwargs())
    return fill(_public_names(shapes_of(model)), BF16, seed), {}
