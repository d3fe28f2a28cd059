"""SD 1.5 and SDXL UNets, an SD 1.5 checkpoint and its ControlNet.

Levels, blocks, depths and channel multipliers are read from the file; the base width (320) and the text width are not.
"""

from .fill import BF16, fill, on_meta_kwargs, shapes_of
from .registry import recipe
from .text_encoders import clip_l_shapes
from .vaes import taesd

_COMMON = {
    **{"use_checkpoint": False, "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320},
    **{"use_spatial_transformer": True, "legacy": False},
    **{"use_temporal_attention": False, "use_temporal_resblock": False},
}
SD15 = {
    **_COMMON,
    **{"adm_in_channels": None, "num_res_blocks": [1, 1], "channel_mult": [1, 1], "context_dim": 768},
    **{"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1},
    **{"use_linear_in_transformer": False, "num_heads": 8, "num_head_channels": -1},
}
# The app knows SDXL variants by their depth pattern; this is Vega's, with all levels 320 wide.
SDXL = {
    **_COMMON,
    **{"num_classes": "sequential", "adm_in_channels": 2816, "context_dim": 2048},
    **{"num_res_blocks": [2, 2, 2], "channel_mult": [1, 1, 1]},
    **{"transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2]},
    **{"transformer_depth_middle": -1, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64},
}


def _unet_shapes(config: dict, prefix: str = "model.diffusion_model.") -> dict:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return shapes_of(UNetModel(**config, **on_meta_kwargs()), prefix)


@recipe("sd15_unet", "diffusion_models/sd15_unet_tiny.safetensors", "SD 1.5 UNet, 2 levels of 1 block")
def sd15_unet(seed):
    return fill(_unet_shapes(SD15), BF16, seed), {}


@recipe("sdxl_unet", "diffusion_models/sdxl_unet_tiny.safetensors", "SDXL UNet, Vega's depth pattern")
def sdxl_unet(seed):
    return fill(_unet_shapes(SDXL), BF16, seed), {}


@recipe("sd15_checkpoint", "checkpoints/sd15_tiny.safetensors", "sd15_unet, CLIP-L in real size, TAESD", on_demand=True)
def sd15_checkpoint(seed):
    shapes = {**_unet_shapes(SD15), **clip_l_shapes("cond_stage_model.transformer.")}
    tensors = fill(shapes, BF16, seed)
    vae, _ = taesd(seed, channels=4, scale=0.18215, shift=0.0)
    return {**tensors, **{"first_stage_model." + key: value for key, value in vae.items()}}, {}


@recipe("controlnet_sd15", "controlnet/controlnet_sd15_tiny.safetensors", "matches sd15_unet")
def controlnet_sd15(seed):
    from comfy.cldm.cldm import ControlNet

    config = {key: value for key, value in SD15.items() if key != "out_channels"}
    return fill(shapes_of(ControlNet(hint_channels=3, **config, **on_meta_kwargs())), BF16, seed), {}
