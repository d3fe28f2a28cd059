"""Vision and sound encoders, control networks, and the rest of what the app loads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .entry import Draw, Drawn, Family, Settings, constant, noise, ones, sizes
from .pictures import FLUX, FLUX_TINY, QWEN_IMAGE, QWEN_TINY, SD3_TINY, SD35_MEDIUM, WORDS
from .unets import SDXL, SMALL

BF16 = torch.bfloat16


def _app(path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def other(
    name: str, path: str, full: Settings, tiny: Settings, inputs: Settings | tuple[Drawn, ...], **more: Any
) -> Family:
    """The class at `path`, with the arguments that the app gives to such classes. `tiny` changes `full`."""
    dtype = more.get("dtype", BF16)

    def build(device: str, small: bool) -> nn.Module:
        import comfy.ops

        given = {"device": device, "dtype": dtype, "operations": comfy.ops.manual_cast}
        return _app(path)(**sizes(full, tiny) if small else full, **given)

    return Family(name, "other", build, _calling(inputs), **more)


def _calling(inputs: Settings | tuple[Drawn, ...]) -> Callable[[nn.Module, Draw], Any]:
    def run(model: nn.Module, draw: Draw) -> Any:
        return model(**draw(inputs)) if isinstance(inputs, dict) else model(*draw(inputs))

    return run


# ---------------------------------------------------------------------- vision and sound encoders

SMALL_VISION = sizes(num_hidden_layers=4, hidden_size=128, intermediate_size=256, num_attention_heads=4)


def vision(name: str, path: str, file: str, side: int, **more: Any) -> Family:
    """An image encoder whose settings are in a `file` of the app, below `comfy`; `side` is that of its pictures.

    As the app calls it, it also gives what its last layer but one makes.
    """

    def build(device: str, small: bool) -> nn.Module:
        import comfy.ops

        settings = json.loads((Path(_app("comfy.ops.__file__")).parent / file).read_text())
        return _app(path)(sizes(settings, SMALL_VISION) if small else settings, BF16, device, comfy.ops.manual_cast)

    return Family(
        name, "other", build, _calling({"pixel_values": noise(1, 3, side, side), "intermediate_output": -2}), **more
    )


_CLIP_VISION = "comfy.clip_model.CLIPVisionModelProjection"
_DINO2 = "comfy.image_encoders.dino2.Dinov2Model"


def _dino3(device: str, small: bool) -> nn.Module:
    import comfy.ops

    settings = _app("comfy.image_encoders.dino3.DINOV3_VITH_CONFIG")
    model = _app("comfy.image_encoders.dino3.DINOv3ViTModel")
    return model(sizes(settings, SMALL_VISION) if small else settings, BF16, device, comfy.ops.manual_cast)


ENCODERS = (
    vision("vision_clip_l", _CLIP_VISION, "clip_vision_config_vitl.json", 224),
    vision("vision_clip_h", _CLIP_VISION, "clip_vision_config_h.json", 224),
    vision("vision_clip_g", _CLIP_VISION, "clip_vision_config_g.json", 224),
    vision(
        "vision_clip_l336_llava",
        _CLIP_VISION,
        "clip_vision_config_vitl_336_llava.json",
        336,
    ),
    vision("vision_siglip_384", _CLIP_VISION, "clip_vision_siglip_384.json", 384),
    vision("vision_siglip_512", _CLIP_VISION, "clip_vision_siglip_512.json", 512),
    vision("vision_siglip2_naflex", _CLIP_VISION, "clip_vision_siglip2_base_naflex.json", 256),
    vision("vision_dinov2_large", _DINO2, "image_encoders/dino2_large.json", 518),
    vision("vision_dinov2_giant", _DINO2, "image_encoders/dino2_giant.json", 518),
    Family("vision_dinov3_h", "other", _dino3, _calling((noise(1, 3, 64, 64),))),
    other(
        "audio_wav2vec2",
        "comfy.audio_encoders.wav2vec2.Wav2Vec2Model",
        {},
        sizes(embed_dim=128, num_heads=4, num_layers=4),
        (noise(1, 1, 8000),),
    ),
    other(
        "audio_whisper3",
        "comfy.audio_encoders.whisper.WhisperLargeV3",
        {},
        sizes(n_audio_state=128, n_audio_head=4, n_audio_layer=4),
        (noise(1, 1, 16000),),
        tiny_dtype=torch.float32,
    ),
)

# ---------------------------------------------------------------------- control networks

CONTROL_XL = sizes(SDXL, image_size=32, hint_channels=3, num_head_channels=64)
for _name in ("out_channels", "transformer_depth_output"):
    CONTROL_XL.pop(_name)
SMALL_CONTROL = {name: value for name, value in SMALL.items() if name != "transformer_depth_output"}
CONTROL_XL_INPUTS = {
    **{"x": noise(1, 4, 16, 16), "hint": noise(1, 3, 128, 128), "timesteps": constant(300)},
    **{"context": noise(1, 8, 2048), "y": noise(1, 2816)},
}
CONTROL_SD3_INPUTS = {
    **{"x": noise(1, 16, 16, 16), "timesteps": constant(500), "y": noise(1, 2048)},
    **{"context": noise(1, 20, WORDS), "hint": noise(1, 16, 16, 16)},
}
CONTROL_FLUX_INPUTS = {
    **{"x": noise(1, 16, 16, 16), "timesteps": constant(0.5), "y": noise(1, 768), "guidance": constant(3.5)},
    **{"context": noise(1, 20, WORDS), "hint": noise(1, 16, 16, 16), "control_type": [1]},
}
CONTROL_QWEN_INPUTS = {
    **{"x": noise(1, 16, 1, 16, 16), "timesteps": constant(0.5), "context": noise(1, 20, WORDS)},
    **{"attention_mask": None, "hint": noise(1, 16, 1, 16, 16)},
}
CONTROL_HUNYUAN_INPUTS = {
    **{"x": noise(1, 4, 16, 16), "hint": noise(1, 4, 16, 16), "timesteps": constant(500)},
    **{"context": noise(1, 77, 1024), "text_embedding_mask": ones(1, 77)},
    **{"encoder_hidden_states_t5": noise(1, 256, 2048), "text_embedding_mask_t5": ones(1, 256)},
    **{"image_meta_size": noise(1, 6), "style": None},
}

CONTROLS = (
    other("control_sdxl", "comfy.cldm.cldm.ControlNet", CONTROL_XL, SMALL_CONTROL, CONTROL_XL_INPUTS),
    other(
        "control_sdxl_union",
        "comfy.cldm.cldm.ControlNet",
        sizes(CONTROL_XL, union_controlnet_num_control_type=6),
        SMALL_CONTROL,
        sizes(CONTROL_XL_INPUTS, control_type=[1]),
        no_tiny="its widths are in the code",
    ),
    other(
        "control_sd3",
        "comfy.cldm.mmdit.ControlNet",
        sizes(
            SD35_MEDIUM, depth=12, num_blocks=12, control_latent_channels=16, x_block_self_attn_layers=[], qk_norm=None
        ),
        sizes(SD3_TINY, num_blocks=4),
        CONTROL_SD3_INPUTS,
    ),
    other(
        "control_sd35_large",
        "comfy.cldm.dit_embedder.ControlNetEmbedder",
        sizes(
            img_size=None,
            patch_size=2,
            in_chans=16,
            num_layers=19,
            main_model_double=38,
            double_y_emb=True,
            attention_head_dim=64,
            num_attention_heads=38,
            adm_in_channels=2048,
        ),
        {},
        {},
        no_tiny="what it needs of the model that it controls is copied in when a picture is made",
    ),
    other(
        "control_flux_union",
        "comfy.ldm.flux.controlnet.ControlNetFlux",
        sizes(FLUX, latent_input=True, num_union_modes=10, control_latent_channels=16, depth=5, depth_single_blocks=10),
        FLUX_TINY,
        CONTROL_FLUX_INPUTS,
    ),
    other(
        "control_qwen_instantx",
        "comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel",
        sizes(QWEN_IMAGE, num_layers=5),
        QWEN_TINY,
        CONTROL_QWEN_INPUTS,
    ),
    other(
        "control_qwen_fun",
        "comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel",
        sizes(
            control_in_features=132,
            inner_dim=3072,
            num_attention_heads=24,
            attention_head_dim=128,
            num_control_blocks=5,
            main_model_double=60,
            injection_layers=(0, 12, 24, 36, 48),
        ),
        {},
        {},
        no_tiny="it is called inside the model that it controls",
    ),
    other(
        "control_hunyuan_dit",
        "comfy.ldm.hydit.controlnet.HunYuanControlNet",
        {},
        sizes(depth=8, hidden_size=256, num_heads=4),
        CONTROL_HUNYUAN_INPUTS,
    ),
)

# ---------------------------------------------------------------------- patches of models, and single networks


def _adapter(device: str, small: bool) -> nn.Module:
    widths = [32, 64, 64, 64] if small else [320, 640, 1280, 1280]
    return _app("comfy.t2i_adapter.adapter.Adapter")(cin=3 * 256, channels=widths, nums_rb=2, ksize=1, sk=True, xl=True)


def _redux(device: str, small: bool) -> nn.Module:
    widths = sizes(redux_dim=64, txt_in_features=128) if small else {}
    return _app("comfy.ldm.flux.redux.ReduxImageEncoder")(**widths)


def _upsampler(device: str, small: bool) -> nn.Module:
    import comfy.ops

    widths = sizes(mid_channels=64) if small else sizes(mid_channels=512)
    return _app("comfy.ldm.lightricks.latent_upsampler.LatentUpsampler")(comfy.ops.disable_weight_init, **widths)


def _bf16(build: Callable[[str, bool], nn.Module]) -> Callable[[str, bool], nn.Module]:
    def built(device: str, small: bool) -> nn.Module:
        return build(device, small).to(BF16)

    return built


NO_CALL = "it is called inside the model that it changes"
UNI3C = sizes(
    in_channels=20,
    conv_out_dim=5120,
    dim=1024,
    ffn_dim=8192,
    num_layers=20,
    time_embed_dim=5120,
    out_proj_dim=5120,
    add_channels=7,
    mid_channels=32,
)
MOGE_V1 = sizes(
    backbone=sizes(
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=24,
        layer_norm_eps=1e-6,
        use_swiglu_ffn=False,
    )
)
MOGE_V1_TINY = sizes(
    backbone=sizes(MOGE_V1["backbone"], hidden_size=64, num_attention_heads=4, num_hidden_layers=6),
    dim_upsample=(32, 16, 16),
)

SINGLES = (
    Family("t2i_adapter_xl", "other", _bf16(_adapter), _calling((noise(1, 3, 64, 64),))),
    Family("flux_redux", "other", _bf16(_redux), _calling((noise(1, 9, 64),))),
    Family("ltx_latent_upsampler", "other", _bf16(_upsampler), _calling((noise(1, 128, 3, 4, 4),))),
    other(
        "birefnet", "comfy.background_removal.birefnet.BiRefNet", {}, {}, (noise(1, 3, 128, 128),), dtype=torch.float32
    ),
    other(
        "moge_v1",
        "comfy.ldm.moge.model.MoGeModelV1",
        MOGE_V1,
        MOGE_V1_TINY,
        sizes(image=noise(1, 3, 56, 56), num_tokens=16),
    ),
    other("patch_z_image_control", "comfy.ldm.lumina.controlnet.ZImage_Control", {}, {}, {}, no_tiny=NO_CALL),
    other("patch_uni3c", "comfy.ldm.wan.uni3c.WanUni3CControlnet", UNI3C, {}, {}, no_tiny=NO_CALL),
    other("patch_multitalk", "comfy_extras.nodes_model_patch.MultiTalkModelPatch", {}, {}, {}, no_tiny=NO_CALL),
    other(
        "patch_qwen_blockwise",
        "comfy_extras.nodes_model_patch.QwenImageBlockWiseControlNet",
        {},
        {},
        {},
        no_tiny=NO_CALL,
    ),
    other("patch_supir", "comfy.ldm.supir.supir_modules.SUPIR", {}, {}, {}, no_tiny=NO_CALL),
)

FAMILIES = (*ENCODERS, *CONTROLS, *SINGLES)
