"""Full-size models out of the app's own classes, without their memory, and what discovery makes of them.

    python -m bench.full_size [--tree COMFYUI] [--json] [NAME ...]

Every network is built on `meta` in its published size; then its tensors get real but untouched host memory, which the
system commits page by page on first use. So the 64 GB of Flux 2 have true addresses and true strides and take none of
the machine's memory, and discovery sees exactly what it sees in the app. Knows nothing about devices or plans.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

BUILDERS: dict[str, Callable[..., nn.Module]] = {}
"""Name of a model to the function that builds it on `meta`; `use_app` must have been called."""


def builder(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    BUILDERS[function.__name__] = function
    return function


def use_app(tree: Path | str, cpu: bool = True) -> None:
    """Make the app's classes importable. For a process of its own: the app keeps global state."""
    sys.path.insert(0, str(tree))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    import comfy.text_encoders.llama  # noqa: F401 - others use it without importing it


def default_tree() -> Path:
    """The app's tree: what LAYERWISE_COMFYUI names, else the default one that `dev.py setup` has put into place."""
    from tests.support.devkit import apps

    return apps.under_test().tree


def build(name: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The model `name` with every floating tensor in `dtype`, in host memory that was not touched yet."""
    with torch.device("meta"):
        module = BUILDERS[name]()
    return give_memory(module, dtype)


def give_memory(module: nn.Module, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """Replace meta tensors by uninitialised ones; a tensor that hangs in several places stays one."""
    made: dict[int, torch.Tensor] = {}
    for child in module.modules():
        for place in (child._parameters, child._buffers):
            for name, old in place.items():
                if old is None or not old.is_meta:
                    continue
                if id(old) not in made:
                    kind = dtype if old.is_floating_point() else old.dtype
                    new = torch.empty_strided(old.shape, old.stride(), dtype=kind, device=device)
                    made[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
                place[name] = made[id(old)]  # type: ignore[assignment]
    return module


def _parts() -> dict[str, Any]:
    """What the app's diffusion model classes want to be given."""
    import comfy.ops

    return {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}


# ---------------------------------------------------------------------- diffusion models


def flux_params(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of Flux dev; also used by the GPU bench, which fills such a model with noise."""
    return {
        **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072},
        **{"mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56]},
        **{"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []},
        **changes,
    }


@builder
def flux_dev(**changes: Any) -> nn.Module:
    """`changes`: other sizes, for trying what the real ones are too large for."""
    from comfy.ldm.flux.model import Flux

    return Flux(image_model="flux", **flux_params(**changes), **_parts())


@builder
def flux_dev_base_model() -> nn.Module:
    """As the app holds it: a BaseModel without a forward of its own around the diffusion model."""
    import comfy.supported_models

    config = comfy.supported_models.Flux({"image_model": "flux", **flux_params()})
    config.set_inference_dtype(torch.bfloat16, None)
    return config.get_model({}, "", device="meta")


def flux2_params(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of Flux 2 dev; also used by the GPU bench."""
    own = {
        **{"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 15360, "hidden_size": 6144},
        **{"mlp_ratio": 3.0, "num_heads": 48, "depth": 8, "depth_single_blocks": 48, "axes_dim": [32, 32, 32, 32]},
        **{"theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3], "global_modulation": True},
        **{"mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0},
    }
    return flux_params(**{**own, **changes})


@builder
def flux2_dev() -> nn.Module:
    from comfy.ldm.flux.model import Flux

    return Flux(image_model="flux2", **flux2_params(), **_parts())


@builder
def chroma() -> nn.Module:
    from comfy.ldm.chroma.model import Chroma

    sizes = {"in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}
    params = flux_params(vec_in_dim=None, **sizes)
    params.pop("guidance_embed")
    return Chroma(image_model="chroma", **params, **_parts())


def _wan(**sizes: Any) -> nn.Module:
    from comfy.ldm.wan.model import WanModel

    return WanModel(**{"model_type": "t2v", "in_dim": 16, "out_dim": 16, **sizes}, **_parts())


@builder
def wan21_1b() -> nn.Module:
    return _wan(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)


@builder
def wan22_14b() -> nn.Module:
    return _wan(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


@builder
def wan21_14b_i2v() -> nn.Module:
    return _wan(model_type="i2v", in_dim=36, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)


@builder
def wan22_5b() -> nn.Module:
    return _wan(in_dim=48, out_dim=48, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30)


@builder
def ltxv_2b() -> nn.Module:
    from comfy.ldm.lightricks.model import LTXVModel

    return LTXVModel(**_parts())


@builder
def ltxv_13b() -> nn.Module:
    from comfy.ldm.lightricks.model import LTXVModel

    return LTXVModel(num_layers=48, attention_head_dim=128, cross_attention_dim=4096, **_parts())


@builder
def ltx2_19b() -> nn.Module:
    from comfy.ldm.lightricks.av_model import LTXAVModel

    return LTXAVModel(**_parts())


def cosmos1_params(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of Cosmos 1 7B, text to video."""
    return {
        **{"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16},
        **{"patch_spatial": 2, "patch_temporal": 1, "model_channels": 4096, "num_blocks": 28, "num_heads": 32},
        **{"block_config": "FA-CA-MLP", "block_x_format": "THWBD", "concat_padding_mask": True},
        **{"pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop"},
        **{"affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 256},
        **{"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"},
        **{"rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0, "rope_t_extrapolation_ratio": 2.0},
        **changes,
    }


@builder
def cosmos1_7b() -> nn.Module:
    from comfy.ldm.cosmos.model import GeneralDIT

    return GeneralDIT(image_model="cosmos", **cosmos1_params(), **_parts())


@builder
def qwen_image() -> nn.Module:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(image_model="qwen_image", **_parts())


_UNET = {
    **{"use_checkpoint": False, "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320},
    **{"use_spatial_transformer": True, "legacy": False},
    **{"use_temporal_attention": False, "use_temporal_resblock": False},
}
_SD15 = {
    **{"adm_in_channels": None, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "context_dim": 768},
    **{"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1, "num_heads": 8},
    **{"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False},
}
_SDXL = {
    **{"num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4]},
    **{"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10, "use_linear_in_transformer": True},
    **{"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "num_head_channels": 64},
}


@builder
def sd15() -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**_UNET, **_SD15, **_parts())


@builder
def sdxl() -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**_UNET, **_SDXL, **_parts())


# ---------------------------------------------------------------------- encoders


def _encoder(module: str, name: str, **options: Any) -> nn.Module:
    import importlib

    return getattr(importlib.import_module(module), name)(device="meta", dtype=torch.float32, **options)


@builder
def clip_l() -> nn.Module:
    return _encoder("comfy.sd1_clip", "SDClipModel")


@builder
def clip_g() -> nn.Module:
    return _encoder("comfy.sdxl_clip", "SDXLClipG")


@builder
def t5xxl() -> nn.Module:
    return _encoder("comfy.text_encoders.sd3_clip", "T5XXLModel")


@builder
def t5_base() -> nn.Module:
    return _encoder("comfy.text_encoders.sa_t5", "T5BaseModel")


@builder
def flux_text_encoders() -> nn.Module:
    """CLIP-L and T5 in one module, as the app loads them."""
    return _encoder("comfy.text_encoders.flux", "FluxClipModel", dtype_t5=torch.float32)


@builder
def umt5xxl() -> nn.Module:
    return _encoder("comfy.text_encoders.wan", "UMT5XXlModel")


@builder
def qwen25_vl_7b() -> nn.Module:
    return _encoder("comfy.text_encoders.qwen_image", "Qwen25_7BVLIModel")


@builder
def mistral3_24b() -> nn.Module:
    return _encoder("comfy.text_encoders.flux", "Mistral3_24BModel")


@builder
def ltx2_text_encoder() -> nn.Module:
    """Gemma 3 and LTX-2's projection, which is three times its largest block."""
    from comfy.text_encoders import lt

    return lt.ltxav_te(dtype_llama=torch.float32)(device="meta", dtype=torch.float32)


@builder
def ltx2_text_encoder_dual() -> nn.Module:
    """The same with a projection for the picture and one for the sound, in one module."""
    from comfy.text_encoders import lt

    return lt.ltxav_te(dtype_llama=torch.float32, text_projection_type="dual_linear")(
        device="meta", dtype=torch.float32
    )


@builder
def klein_qwen3_8b() -> nn.Module:
    """Of Flux 2 Klein 9B: an output projection that no encoding calls is three times the largest block."""
    from comfy.text_encoders import flux

    return flux.klein_te(model_type="qwen3_8b")(device="meta", dtype=torch.float32)


@builder
def ideogram4_qwen3vl_8b() -> nn.Module:
    return _encoder("comfy.text_encoders.ideogram4", "Ideogram4Qwen3VLTEModel")


@builder
def boogu_qwen3vl_8b() -> nn.Module:
    from comfy.text_encoders import boogu

    return boogu.te()(device="meta", dtype=torch.float32)


@builder
def joyimage_qwen3vl_8b() -> nn.Module:
    from comfy.text_encoders import joyimage

    return joyimage.te()(device="meta", dtype=torch.float32)


@builder
def gemma3_12b() -> nn.Module:
    return _encoder("comfy.text_encoders.lt", "Gemma3_12BModel")


def _vision(config_name: str) -> nn.Module:
    import comfy.clip_model
    import comfy.ops

    config = json.loads((Path(comfy.clip_model.__file__).parent / config_name).read_text())
    return comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "meta", comfy.ops.disable_weight_init)


@builder
def clip_vision_h() -> nn.Module:
    return _vision("clip_vision_config_h.json")


@builder
def siglip_384() -> nn.Module:
    return _vision("clip_vision_siglip_384.json")


# ---------------------------------------------------------------------- VAEs

_AUTOENCODER = {
    **{"double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]},
    **{"num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
}


@builder
def vae_sd() -> nn.Module:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return AutoencoderKL(ddconfig={**_AUTOENCODER, "z_channels": 4}, embed_dim=4)


@builder
def vae_flux() -> nn.Module:
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    config, modules = {**_AUTOENCODER, "z_channels": 16}, "comfy.ldm.modules.diffusionmodules.model."
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": modules + "Encoder", "params": config},
        decoder_config={"target": modules + "Decoder", "params": config},
    )


_WAN_VAE: dict[str, Any] = {
    **{"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0},
    "temperal_downsample": [False, True, True],
}


@builder
def vae_wan21() -> nn.Module:
    from comfy.ldm.wan.vae import WanVAE

    return WanVAE(dim=96, z_dim=16, image_channels=3, conv_out_channels=3, **_WAN_VAE)


@builder
def vae_wan22() -> nn.Module:
    from comfy.ldm.wan.vae2_2 import WanVAE

    return WanVAE(dim=160, z_dim=48, **_WAN_VAE)


@builder
def vae_ltx_v0() -> nn.Module:
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    return VideoVAE(version=0)


@builder
def vae_ltx_v2() -> nn.Module:
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    return VideoVAE(version=2)


# ---------------------------------------------------------------------- what discovery makes of them


def describe(module: nn.Module) -> dict[str, Any]:
    """The figures of the table, and the layers by name and bytes."""
    from bench.full_size_advised import advised
    from offload_core.planning.planner import usual_budget
    from offload_core.runtime.layers.discovery import discover

    found = discover(module)
    sizes = [layer.nbytes for layer in found.layers]
    total = sum(p.numel() * p.element_size() for p in module.parameters())
    return {
        "total_bytes": total,
        "layers": [[layer.name, layer.nbytes, type(layer.module).__name__] for layer in found.layers],
        "tables": [[table.name, table.nbytes] for table in found.tables],
        "loose_bytes": found.loose_bytes,
        "loose_share": found.loose_bytes / total if total else 0.0,
        "largest_bytes": max(sizes, default=0),
        "usual_budget": usual_budget(found.inventory("described", 1)),
        "median_bytes": int(statistics.median(sizes)) if sizes else 0,
        "smallest_bytes": min(sizes, default=0),
        "swapped_parameters": sum(len(layer.parameters) for layer in found.layers),
        "notes": list(found.notes),
        "advised": advised(module),
    }


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BUILDERS)}")
    arguments = parser.parse_args(words)
    use_app(arguments.tree or default_tree())
    results = {name: describe(build(name)) for name in arguments.names or BUILDERS}
    if arguments.json:
        print(json.dumps(results))
        return 0
    columns = ("model", "GB", "layers", "median MB", "largest MB", "loose %", "host tables GB", "parameters a layer")
    print("{:22s} {:>7s} {:>6s} {:>9s} {:>10s} {:>7s} {:>14s} {:>18s}".format(*columns))
    for name, row in results.items():
        count = len(row["layers"])
        per_layer = row["swapped_parameters"] / count if count else math.nan
        print(
            f"{name:22s} {row['total_bytes'] / 1e9:7.2f} {count:6d} {row['median_bytes'] / 1e6:9.1f} "
            f"{row['largest_bytes'] / 1e6:10.1f} {100 * row['loose_share']:7.2f} "
            f"{sum(size for _, size in row['tables']) / 1e9:14.2f} {per_layer:18.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
