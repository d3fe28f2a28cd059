"""Z-Image, SD 3.5 and HiDream diffusion models.

SD 3.5's sizes are read from the file: its width is 64 times its block count. Z-Image's and HiDream's are hard-coded by
the app, so their small files need the shim; Z-Image is also recognised by its width.
"""

import json

from .fill import BF16, fill, on_meta_kwargs, shapes_of
from .registry import SHIM, recipe

TEXT_WIDTH = 64

Z_IMAGE = {
    **{"dim": 256, "n_layers": 6, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "rope_theta": 256.0},
    **{"ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
}


@recipe("z_image_tiny", "diffusion_models/z_image_tiny.safetensors", "6 blocks and 4 refiners", kind=SHIM)
def z_image_tiny(seed):
    from comfy.ldm.lumina.model import NextDiT

    model = NextDiT(
        **{"patch_size": 2, "in_channels": 16, "qk_norm": True, "cap_feat_dim": TEXT_WIDTH, "axes_lens": [64, 64, 64]},
        **{"image_model": "lumina2", **Z_IMAGE},
        **on_meta_kwargs(),
    )
    carried = {**Z_IMAGE, "recognised_by": {"dim": 3840}}
    return fill(shapes_of(model), BF16, seed), {"tiny_unet_config": json.dumps(carried)}


SD35_BLOCKS = 5


@recipe("sd35_tiny", "diffusion_models/sd35_tiny.safetensors", "SD 3.5 medium layout, 5 blocks")
def sd35_tiny(seed):
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    width = 64 * SD35_BLOCKS
    sides = {"in_features": TEXT_WIDTH, "out_features": width}
    model = OpenAISignatureMMDITWrapper(
        **{"input_size": None, "patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": SD35_BLOCKS},
        **{"adm_in_channels": 2048, "num_patches": 32 * 32, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None},
        **{"qk_norm": "rms", "x_block_self_attn_layers": [0, 1, 2]},
        context_embedder_config={"target": "torch.nn.Linear", "params": sides},
        **on_meta_kwargs(),
    )
    return fill(shapes_of(model), BF16, seed), {}


HIDREAM_LLAMA_LAYERS = 4
HIDREAM = {
    **{"num_attention_heads": 2, "num_layers": 2, "num_single_layers": 3, "caption_channels": [TEXT_WIDTH, TEXT_WIDTH]},
    "llama_layers": [0, 1, 2, 3, 3],
}


@recipe("hidream_tiny", "diffusion_models/hidream_tiny.safetensors", "2 double + 3 single blocks", kind=SHIM)
def hidream_tiny(seed):
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel

    model = HiDreamImageTransformer2DModel(
        **{"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "text_emb_dim": 2048},
        **{"attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128]},
        **HIDREAM,
        **on_meta_kwargs(),
    )
    return fill(shapes_of(model), BF16, seed), {"tiny_unet_config": json.dumps(HIDREAM)}
