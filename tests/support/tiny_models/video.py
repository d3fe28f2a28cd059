"""Wan, LTXV, LTX-2, HunyuanVideo, Qwen-Image and Cosmos 1 diffusion models.

Wan takes any constructor argument, and LTXV and LTX-2 all of them, from the file's safetensors metadata `config`;
HunyuanVideo's sizes are read from the file; Qwen-Image's and Cosmos's are hard-coded by the app, so their small files
need the shim.
"""

import json

from .fill import BF16, FP16, fill, on_meta_kwargs, shapes_of
from .registry import SHIM, recipe

WAN_DIM = {"dim": 256, "ffn_dim": 512, "num_heads": 2}


def _wan(seed, channels: int, blocks: int, text_width: int):
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v",
        **{"in_dim": channels, "out_dim": channels, "num_layers": blocks, "text_dim": text_width},
        **WAN_DIM,
        **on_meta_kwargs(),
    )
    metadata = {"config": json.dumps({"transformer": {"text_dim": text_width}})}
    return fill(shapes_of(model), FP16, seed), metadata


@recipe("wan_tiny", "diffusion_models/wan_tiny.safetensors", "Wan 2.1 t2v, 6 blocks, text width 768")
def wan_tiny(seed):
    return _wan(seed, channels=16, blocks=6, text_width=768)


@recipe("wan_tiny_low", "diffusion_models/wan_tiny_low.safetensors", "a second expert: as wan_tiny, other weights")
def wan_tiny_low(seed):
    return _wan(seed + 1, channels=16, blocks=6, text_width=768)


@recipe("wan_tiny_ctx64", "diffusion_models/wan_tiny_ctx64.safetensors", "text width 64: pairs with umt5xxl_tiny")
def wan_tiny_ctx64(seed):
    return _wan(seed, channels=16, blocks=6, text_width=64)


@recipe(
    "wan22_5b_tiny", "diffusion_models/wan22_5b_tiny.safetensors", "Wan 2.2 TI2V layout: 48 latent channels, 4 blocks"
)
def wan22_5b_tiny(seed):
    return _wan(seed, channels=48, blocks=4, text_width=768)


WAN_VACE_TEXT_WIDTH = 64


@recipe("wan_vace_tiny", "diffusion_models/wan_vace_tiny.safetensors", "Wan 2.1 VACE, 6 blocks and 3 VACE blocks")
def wan_vace_tiny(seed):
    from comfy.ldm.wan.model import VaceWanModel

    model = VaceWanModel(
        **{"model_type": "vace", "in_dim": 16, "out_dim": 16, "num_layers": 6, "text_dim": WAN_VACE_TEXT_WIDTH},
        **{"vace_layers": 3, "vace_in_dim": 96, **WAN_DIM},
        **on_meta_kwargs(),
    )
    metadata = {"config": json.dumps({"transformer": {"text_dim": WAN_VACE_TEXT_WIDTH}})}
    return fill(shapes_of(model), FP16, seed), metadata


LTXV = {
    **{"num_layers": 6, "attention_head_dim": 64, "num_attention_heads": 4},
    **{"cross_attention_dim": 256, "caption_channels": 64},
}


@recipe("ltxv_tiny", "diffusion_models/ltxv_tiny.safetensors", "LTXV, 6 blocks, text width 64: pairs with t5xxl_tiny")
def ltxv_tiny(seed):
    from comfy.ldm.lightricks.model import LTXVModel

    model = LTXVModel(in_channels=128, **LTXV, **on_meta_kwargs())
    return fill(shapes_of(model), BF16, seed), {"config": json.dumps({"transformer": LTXV})}


LTXAV_TEXT_WIDTH = 256
LTXAV = {
    **{"num_layers": 6, "attention_head_dim": 64, "num_attention_heads": 4, "cross_attention_dim": 256},
    **{"audio_attention_head_dim": 32, "audio_num_attention_heads": 4, "audio_cross_attention_dim": 128},
    **{"caption_channels": LTXAV_TEXT_WIDTH, "connector_attention_head_dim": 64, "connector_num_attention_heads": 4},
}


@recipe(
    "ltxav_tiny",
    "diffusion_models/ltxav_tiny.safetensors",
    "LTX-2, 6 blocks, two connectors: pairs with gemma3_12b_tiny",
)
def ltxav_tiny(seed):
    from comfy.ldm.lightricks.av_model import LTXAVModel

    model = LTXAVModel(**LTXAV, **on_meta_kwargs())
    return fill(shapes_of(model), BF16, seed), {"config": json.dumps({"transformer": LTXAV})}


HUNYUAN_TEXT_WIDTH = 64
HUNYUAN = {
    **{"hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "depth": 3, "depth_single_blocks": 5, "qkv_bias": True},
    **{"patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16, "axes_dim": [16, 56, 56], "theta": 256},
    **{"context_in_dim": HUNYUAN_TEXT_WIDTH, "vec_in_dim": 768, "guidance_embed": True},
    **{"meanflow": False, "meanflow_sum": False, "byt5": False, "use_cond_type_embedding": False},
    "vision_in_dim": None,
}


@recipe("hunyuan_video_tiny", "diffusion_models/hunyuan_video_tiny.safetensors", "3 double + 5 single blocks")
def hunyuan_video_tiny(seed):
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    model = HunyuanVideo(image_model="hunyuan_video", **HUNYUAN, **on_meta_kwargs())
    return fill(shapes_of(model), BF16, seed), {}


QWEN_TEXT_WIDTH = 256
QWEN_IMAGE = {"num_attention_heads": 2, "attention_head_dim": 128, "joint_attention_dim": QWEN_TEXT_WIDTH}


@recipe(
    "qwen_image_tiny", "diffusion_models/qwen_image_tiny.safetensors", "6 blocks; pairs with qwen25vl_tiny", kind=SHIM
)
def qwen_image_tiny(seed):
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        image_model="qwen_image", in_channels=64, num_layers=6, **QWEN_IMAGE, **on_meta_kwargs()
    )
    return fill(shapes_of(model), BF16, seed), {"tiny_unet_config": json.dumps(QWEN_IMAGE)}


COSMOS_TEXT_WIDTH = 64
COSMOS1 = {
    **{"num_blocks": 12, "num_heads": 2, "adaln_lora_dim": 32, "crossattn_emb_channels": COSMOS_TEXT_WIDTH},
    **{"max_img_h": 32, "max_img_w": 32, "max_frames": 16, "extra_per_block_abs_pos_emb": True},
    **{"rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0, "rope_t_extrapolation_ratio": 2.0},
    "extra_per_block_abs_pos_emb_type": "learnable",
}


@recipe("cosmos1_tiny", "diffusion_models/cosmos1_tiny.safetensors", "12 blocks in a dictionary", kind=SHIM)
def cosmos1_tiny(seed):
    from comfy.ldm.cosmos.model import GeneralDIT

    model = GeneralDIT(
        **{"in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 256},
        **{"block_config": "FA-CA-MLP", "block_x_format": "THWBD", "concat_padding_mask": True},
        **{"pos_emb_cls": "rope3d", "pos_emb_interpolation": "crop", "affline_emb_norm": True},
        **{"use_adaln_lora": True, "image_model": "cosmos"},
        **COSMOS1,
        **on_meta_kwargs(),
    )
    return fill(shapes_of(model), BF16, seed), {"tiny_unet_config": json.dumps(COSMOS1)}
