"""Diffusion transformers that make videos."""

from __future__ import annotations

import torch

from .entry import Drawn, Settings, constant, diffusion, integers, noise, ones, sizes

WORDS = 64  # the width of what the tiny forms are told
TOLD = {"context": noise(1, 20, WORDS)}


def clip(channels: int, frames: int = 3, side: int = 8) -> Settings:
    return {"x": noise(1, channels, frames, side, side)}


# ---------------------------------------------------------------------- Wan

WAN = sizes(
    image_model="wan2.1",
    model_type="t2v",
    dim=5120,
    out_dim=16,
    num_heads=40,
    ffn_dim=13824,
    num_layers=40,
    patch_size=(1, 2, 2),
    freq_dim=256,
    window_size=(-1, -1),
    qk_norm=True,
    cross_attn_norm=True,
    eps=1e-6,
    in_dim=16,
)
WAN_1B = sizes(WAN, dim=1536, num_heads=12, ffn_dim=8960, num_layers=30)
WAN_5B = sizes(WAN, dim=3072, num_heads=24, ffn_dim=14336, num_layers=30, in_dim=48, out_dim=48)
WAN_TINY = sizes(dim=256, num_heads=2, ffn_dim=512, num_layers=4, text_dim=WORDS)
WITH_SOUND = sizes(WAN_TINY, num_layers=6, audio_inject_layers=[0, 4])
SEEN = {"clip_fea": noise(1, 257, 1280)}


def wan(channels: int, **more: Drawn | list[float]) -> Settings:
    return {**clip(channels), "timestep": constant(500), **TOLD, **more}


def wan_kind(model_type: str, channels: int, **more: int) -> Settings:
    return sizes(WAN, model_type=model_type, in_dim=channels, **more)


S2V_INPUTS = wan(
    16,
    audio_embed=noise(1, 25, 1024, 12),
    reference_latent=noise(1, 16, 1, 8, 8),
    control_video=noise(1, 16, 3, 8, 8),
    reference_motion=noise(1, 16, 19, 8, 8),
)
SCAIL_INPUTS = wan(20, **SEEN, pose_latents=noise(1, 20, 3, 4, 4), reference_latent=noise(1, 20, 1, 8, 8))
SCAIL2_INPUTS = {**SCAIL_INPUTS, "ref_mask_latents": noise(1, 28, 4, 8, 8), "sam_latents": noise(1, 28, 3, 4, 4)}
CAMERA = {"camera_conditions": noise(1, 24, 3, 64, 64)}

WANS = (
    diffusion("WAN21_T2V_1B", "WAN21_T2V", WAN_1B, WAN_TINY, wan(16)),
    diffusion("WAN21_T2V_14B", "WAN21_T2V", WAN, WAN_TINY, wan(16)),
    diffusion("WAN22_T2V_5B", "WAN22_T2V", WAN_5B, WAN_TINY, wan(48)),
    diffusion("WAN21_I2V", "WAN21_I2V", wan_kind("i2v", 36), WAN_TINY, wan(36, **SEEN)),
    diffusion(
        "WAN21_FLF2V",
        "WAN21_I2V",
        wan_kind("i2v", 36, flf_pos_embed_token_number=514),
        WAN_TINY,
        wan(36, clip_fea=noise(1, 514, 1280)),
    ),
    diffusion(
        "WAN21_FunControl2V",
        "WAN21_FunControl2V",
        wan_kind("i2v", 48, in_dim_ref_conv=16),
        WAN_TINY,
        wan(48, **SEEN, reference_latent=noise(1, 16, 8, 8)),
    ),
    diffusion(
        "WAN21_Vace",
        "WAN21_Vace",
        wan_kind("vace", 16, vace_in_dim=96, vace_layers=8),
        sizes(WAN_TINY, vace_layers=2),
        wan(16, vace_context=noise(1, 1, 96, 3, 8, 8), vace_strength=[1.0]),
    ),
    diffusion("WAN21_Camera", "WAN21_Camera", wan_kind("camera", 32), WAN_TINY, wan(32, **SEEN, **CAMERA)),
    diffusion("WAN22_Camera", "WAN22_Camera", wan_kind("camera_2.2", 36), WAN_TINY, wan(36, **CAMERA)),
    diffusion(
        "WAN21_HuMo",
        "WAN21_HuMo",
        wan_kind("humo", 36),
        WAN_TINY,
        wan(36, audio_embed=noise(1, 3, 8, 5, 1280), reference_latent=noise(1, 36, 1, 8, 8)),
    ),
    diffusion("WAN22_S2V", "WAN22_S2V", wan_kind("s2v", 16), WITH_SOUND, S2V_INPUTS),
    diffusion(
        "WAN22_Animate",
        "WAN22_Animate",
        wan_kind("animate", 36),
        sizes(WAN_TINY, num_layers=10),
        wan(36, **SEEN, pose_latents=noise(1, 16, 2, 8, 8), face_pixel_values=noise(1, 3, 1, 512, 512)),
    ),
    diffusion("WAN21_SCAIL", "WAN21_SCAIL", wan_kind("scail", 20), WAN_TINY, SCAIL_INPUTS),
    diffusion("WAN21_SCAIL2", "WAN21_SCAIL2", wan_kind("scail2", 20), WAN_TINY, SCAIL2_INPUTS),
    diffusion(
        "WAN22_WanDancer",
        "WAN22_WanDancer",
        wan_kind("wandancer", 36),
        WITH_SOUND,
        wan(36, **SEEN, clip_fea_ref=noise(1, 257, 1280), audio_embed=noise(1, 12, 35)),
    ),
    diffusion("WAN21_FlowRVS", "WAN21_FlowRVS", WAN, WAN_TINY, wan(16)),
    diffusion("WAN21_CausalAR", "WAN21_CausalAR_T2V", WAN_1B, WAN_TINY, wan(16)),
)

# ---------------------------------------------------------------------- HunyuanVideo

HUNYUAN = sizes(
    image_model="hunyuan_video",
    in_channels=16,
    patch_size=[1, 2, 2],
    out_channels=16,
    vec_in_dim=768,
    axes_dim=[16, 56, 56],
    meanflow=False,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=20,
    depth_single_blocks=40,
    theta=256,
    qkv_bias=True,
    byt5=False,
    guidance_embed=True,
    use_cond_type_embedding=False,
    vision_in_dim=None,
    meanflow_sum=False,
)
HUNYUAN15 = sizes(
    HUNYUAN,
    in_channels=65,
    out_channels=32,
    patch_size=[1, 1, 1],
    vec_in_dim=None,
    context_in_dim=3584,
    hidden_size=2048,
    num_heads=16,
    depth=54,
    depth_single_blocks=0,
    guidance_embed=False,
    byt5=True,
    use_cond_type_embedding=True,
    vision_in_dim=1152,
    meanflow_sum=True,
)
HUNYUAN_IMAGE = sizes(
    HUNYUAN,
    in_channels=64,
    out_channels=64,
    patch_size=[1, 1],
    axes_dim=[64, 64],
    vec_in_dim=None,
    context_in_dim=3584,
    hidden_size=3584,
    num_heads=28,
    guidance_embed=False,
    byt5=True,
)
HUNYUAN_REFINER = sizes(
    HUNYUAN,
    in_channels=128,
    out_channels=64,
    patch_size=[1, 1, 1],
    vec_in_dim=None,
    context_in_dim=3584,
    hidden_size=3328,
    num_heads=26,
    meanflow=True,
)
HUNYUAN_TINY = sizes(hidden_size=256, num_heads=2, depth=3, depth_single_blocks=3, context_in_dim=WORDS)
HUNYUAN15_TINY = sizes(HUNYUAN_TINY, depth_single_blocks=0)
SIGMAS = {"transformer_options": {"sigmas": constant(0.5), "sample_sigmas": ones(3)}}
MASKED = {"attention_mask": ones(1, 20)}
VECTOR = {"y": noise(1, 768)}
GUIDED = {"guidance": constant(6.0)}
LETTERS = {"txt_byt5": noise(1, 10, 1472), "attention_mask": None}
SEEN_729 = {"clip_fea": noise(1, 729, 1152)}


def hunyuan(*shape: int) -> Settings:
    return {"x": noise(1, *shape), "timestep": constant(0.5), **TOLD, **SIGMAS}


HUNYUANS = (
    diffusion(
        "HunyuanVideo", "HunyuanVideo", HUNYUAN, HUNYUAN_TINY, {**hunyuan(16, 3, 8, 8), **MASKED, **VECTOR, **GUIDED}
    ),
    diffusion(
        "HunyuanVideoI2V",
        "HunyuanVideoI2V",
        sizes(HUNYUAN, in_channels=33, guidance_embed=False),
        HUNYUAN_TINY,
        {**hunyuan(33, 3, 8, 8), **MASKED, **VECTOR},
    ),
    diffusion(
        "HunyuanVideoSkyreelsI2V",
        "HunyuanVideoSkyreelsI2V",
        sizes(HUNYUAN, in_channels=32),
        HUNYUAN_TINY,
        {**hunyuan(32, 3, 8, 8), **MASKED, **VECTOR, **GUIDED},
    ),
    diffusion(
        "HunyuanVideo15",
        "HunyuanVideo15",
        HUNYUAN15,
        HUNYUAN15_TINY,
        {**hunyuan(65, 3, 8, 8), **LETTERS, **SEEN_729},
    ),
    diffusion(
        "HunyuanVideo15_SR",
        "HunyuanVideo15_SR_Distilled",
        sizes(HUNYUAN15, in_channels=98, meanflow=True),
        HUNYUAN15_TINY,
        {**hunyuan(98, 3, 8, 8), **LETTERS, **SEEN_729},
    ),
    diffusion("HunyuanImage21", "HunyuanImage21", HUNYUAN_IMAGE, HUNYUAN_TINY, {**hunyuan(64, 8, 8), **LETTERS}),
    diffusion(
        "HunyuanImage21Refiner",
        "HunyuanImage21Refiner",
        HUNYUAN_REFINER,
        HUNYUAN_TINY,
        {**hunyuan(128, 1, 8, 8), **MASKED, **GUIDED},
    ),
)

# ---------------------------------------------------------------------- Cosmos

COSMOS = sizes(
    image_model="cosmos",
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=4096,
    block_config="FA-CA-MLP",
    concat_padding_mask=True,
    pos_emb_cls="rope3d",
    pos_emb_learnable=False,
    pos_emb_interpolation="crop",
    block_x_format="THWBD",
    affline_emb_norm=True,
    use_adaln_lora=True,
    adaln_lora_dim=256,
    num_blocks=28,
    num_heads=32,
    extra_per_block_abs_pos_emb=True,
    rope_h_extrapolation_ratio=1.0,
    rope_w_extrapolation_ratio=1.0,
    rope_t_extrapolation_ratio=2.0,
    extra_per_block_abs_pos_emb_type="learnable",
)
COSMOS_TINY = sizes(
    model_channels=256,
    num_blocks=12,
    num_heads=2,
    crossattn_emb_channels=WORDS,
    adaln_lora_dim=32,
    max_img_h=32,
    max_img_w=32,
    max_frames=16,
)
PREDICT2 = sizes(
    image_model="cosmos_predict2",
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    model_channels=5120,
    concat_padding_mask=True,
    crossattn_emb_channels=1024,
    pos_emb_cls="rope3d",
    pos_emb_learnable=True,
    pos_emb_interpolation="crop",
    min_fps=1,
    max_fps=30,
    use_adaln_lora=True,
    adaln_lora_dim=256,
    num_blocks=36,
    num_heads=40,
    extra_per_block_abs_pos_emb=False,
    rope_h_extrapolation_ratio=4.0,
    rope_w_extrapolation_ratio=4.0,
    rope_t_extrapolation_ratio=1.0,
    extra_h_extrapolation_ratio=1.0,
    extra_w_extrapolation_ratio=1.0,
    extra_t_extrapolation_ratio=1.0,
    rope_enable_fps_modulation=False,
)
ANIMA = sizes(PREDICT2, image_model="anima", model_channels=2048, num_blocks=28, num_heads=16)
PREDICT2_TINY = sizes(model_channels=256, num_blocks=4, num_heads=2, adaln_lora_dim=32, crossattn_emb_channels=WORDS)
ANIMA_TINY = sizes(PREDICT2_TINY, crossattn_emb_channels=1024)


def cosmos(channels: int) -> Settings:
    more = {"fps": constant(24), "padding_mask": ones(1, 1, 8, 8)}
    return {**clip(channels), "timesteps": constant(0.5), **TOLD, **more}


def predict2(channels: int) -> Settings:
    return {**clip(channels, frames=1), "timesteps": constant(0.5), **TOLD}


ANIMA_TEXT = (noise(1, 20, 1024), integers(1, 16, below=1000), ones(1, 16, 1))
COSMOS_LIKE = (
    diffusion("CosmosT2V_7B", "CosmosT2V", COSMOS, COSMOS_TINY, cosmos(16), scale=1e-3),
    diffusion(
        "CosmosT2V_14B",
        "CosmosT2V",
        sizes(COSMOS, model_channels=5120, num_blocks=36, num_heads=40),
        COSMOS_TINY,
        cosmos(16),
        scale=1e-3,
    ),
    diffusion("CosmosI2V_7B", "CosmosI2V", sizes(COSMOS, in_channels=17), COSMOS_TINY, cosmos(17), scale=1e-3),
    diffusion("CosmosT2IPredict2_14B", "CosmosT2IPredict2", PREDICT2, PREDICT2_TINY, predict2(16)),
    diffusion("CosmosI2VPredict2", "CosmosI2VPredict2", sizes(PREDICT2, in_channels=17), PREDICT2_TINY, predict2(17)),
    diffusion("Anima", "Anima", ANIMA, ANIMA_TINY, predict2(16), text=ANIMA_TEXT),
)

# ---------------------------------------------------------------------- LTX, Mochi, MiniMax, SeedVR

LTXV_TINY = sizes(num_layers=4, attention_head_dim=16, num_attention_heads=8, cross_attention_dim=128)
LTXV_INPUTS = {**clip(128, side=4), "timestep": constant(0.5), **TOLD, "attention_mask": None}
LTXAV_TINY = sizes(
    num_layers=3,
    attention_head_dim=32,
    num_attention_heads=4,
    cross_attention_dim=128,
    audio_attention_head_dim=16,
    audio_num_attention_heads=4,
    audio_cross_attention_dim=64,
    caption_channels=WORDS,
    connector_attention_head_dim=32,
    connector_num_attention_heads=2,
)
LTXAV_INPUTS = {
    **{"x": [noise(1, 128, 3, 4, 4), noise(1, 8, 4, 16)], "timestep": (constant(0.5), constant(0.5))},
    "attention_mask": None,
}
MOCHI = sizes(
    image_model="mochi_preview",
    depth=48,
    patch_size=2,
    num_heads=24,
    hidden_size_x=3072,
    hidden_size_y=1536,
    mlp_ratio_x=4.0,
    mlp_ratio_y=4.0,
    learn_sigma=False,
    in_channels=12,
    qk_norm=True,
    qkv_bias=False,
    out_bias=True,
    attn_drop=0.0,
    patch_embed_bias=True,
    posenc_preserve_area=True,
    timestep_mlp_bias=True,
    attend_to_padding=False,
    timestep_scale=1000.0,
    use_t5=True,
    t5_feat_dim=4096,
    t5_token_length=256,
    rope_theta=10000.0,
)
MOCHI_TINY = sizes(depth=4, num_heads=2, hidden_size_x=256, hidden_size_y=128, mlp_ratio_x=48.0, t5_feat_dim=WORDS)
MOCHI_INPUTS = {
    **{**clip(12), "timestep": constant(0.5), "context": noise(1, 256, WORDS)},
    **{"attention_mask": ones(1, 256), "num_tokens": 256},
}
MINIMAX_TINY = sizes(
    hidden_size=256,
    num_layers=3,
    token_refiner_num_layers=2,
    num_attention_heads=2,
    ffn_hidden_size=256,
    text_dim=WORDS,
    time_embed_hidden_size=64,
    time_embed_dim=32,
)
MINIMAX_INPUTS = {
    "x": [noise(1, 24, 2, 8, 8, dtype=torch.float32), noise(1, 32, 2, 8, dtype=torch.float32)],
    "timestep": constant(500),
}
SEEDVR2_3B = sizes(
    image_model="seedvr2",
    vid_dim=2560,
    heads=20,
    num_layers=32,
    norm_eps=1e-5,
    mlp_type="swiglu",
    vid_out_norm=True,
)
SEEDVR2_7B = sizes(
    image_model="seedvr2",
    vid_dim=3072,
    heads=24,
    num_layers=36,
    mm_layers=36,
    norm_eps=1e-5,
    rope_type="rope3d",
    rope_dim=64,
    mlp_type="normal",
)
SEEDVR2_TINY = sizes(vid_dim=256, heads=2, num_layers=4, txt_in_dim=WORDS)
SEEDVR2_INPUTS = {
    **{"x": noise(2, 16, 3, 8, 8), "timestep": constant(500, 2)},
    **{"context": noise(2, 20, WORDS), "condition": noise(2, 17, 3, 8, 8)},
}

SINGLES = (
    diffusion("LTXV_2B", "LTXV", sizes(image_model="ltxv"), sizes(LTXV_TINY, caption_channels=WORDS), LTXV_INPUTS),
    diffusion(
        "LTXV_13B",
        "LTXV",
        sizes(image_model="ltxv", num_layers=48, attention_head_dim=128, cross_attention_dim=4096),
        sizes(LTXV_TINY, caption_channels=WORDS),
        LTXV_INPUTS,
    ),
    diffusion("LTXAV", "LTXAV", sizes(image_model="ltxav"), LTXAV_TINY, LTXAV_INPUTS, text=(noise(1, 128, WORDS),)),
    diffusion("GenmoMochi", "GenmoMochi", MOCHI, MOCHI_TINY, MOCHI_INPUTS),
    diffusion(
        "MiniMaxH3",
        "MiniMaxH3",
        sizes(image_model="minimax_h3"),
        MINIMAX_TINY,
        MINIMAX_INPUTS,
        text=(noise(1, 20, WORDS),),
    ),
    diffusion("SeedVR2_3B", "SeedVR2", SEEDVR2_3B, sizes(SEEDVR2_TINY, mm_layers=2), SEEDVR2_INPUTS),
    diffusion("SeedVR2_7B", "SeedVR2", SEEDVR2_7B, sizes(SEEDVR2_TINY, mm_layers=4), SEEDVR2_INPUTS),
)

# ---------------------------------------------------------------------- Kandinsky, CogVideoX

KANDINSKY_LITE = sizes(
    image_model="kandinsky5",
    model_dim=1792,
    axes_dims=(16, 24, 24),
    time_dim=512,
    ff_dim=7168,
    visual_embed_dim=132,
    num_text_blocks=2,
    num_visual_blocks=32,
)
KANDINSKY_PRO = sizes(
    KANDINSKY_LITE,
    model_dim=4096,
    axes_dims=(32, 48, 48),
    time_dim=1024,
    ff_dim=16384,
    num_text_blocks=4,
    num_visual_blocks=60,
)
KANDINSKY_IMAGE = sizes(
    KANDINSKY_LITE,
    model_dim=2560,
    axes_dims=(32, 48, 48),
    rope_scale_factor=(1.0, 1.0, 1.0),
    ff_dim=10240,
    visual_embed_dim=64,
    num_visual_blocks=50,
)
KANDINSKY_TINY = sizes(model_dim=256, ff_dim=512, num_visual_blocks=4, time_dim=64, in_text_dim=WORDS)
KANDINSKY_INPUTS = {"timestep": constant(0.5), **TOLD, **VECTOR}
COG = sizes(
    image_model="cogvideox",
    num_attention_heads=48,
    attention_head_dim=64,
    time_embed_dim=512,
    num_layers=42,
    in_channels=16,
    patch_size=2,
    text_embed_dim=4096,
    use_learned_positional_embeddings=False,
    use_rotary_positional_embeddings=True,
)
COG_TINY = sizes(num_attention_heads=4, num_layers=4, text_embed_dim=WORDS, time_embed_dim=64)


def cog(channels: int, frames: int = 3) -> Settings:
    return {**clip(channels, frames), "timestep": constant(500), **TOLD}


OTHERS = (
    diffusion(
        "Kandinsky5Lite",
        "Kandinsky5",
        KANDINSKY_LITE,
        sizes(KANDINSKY_TINY, model_dim=128, ff_dim=256),
        {**clip(33), **KANDINSKY_INPUTS},
    ),
    diffusion("Kandinsky5Pro", "Kandinsky5", KANDINSKY_PRO, KANDINSKY_TINY, {**clip(33), **KANDINSKY_INPUTS}),
    diffusion(
        "Kandinsky5Image", "Kandinsky5Image", KANDINSKY_IMAGE, KANDINSKY_TINY, {**clip(16, 1), **KANDINSKY_INPUTS}
    ),
    diffusion("CogVideoX_T2V", "CogVideoX_T2V", COG, COG_TINY, cog(16)),
    diffusion(
        "CogVideoX15_I2V",
        "CogVideoX_I2V",
        sizes(COG, in_channels=32, patch_size_t=2, ofs_embed_dim=512),
        sizes(COG_TINY, ofs_embed_dim=64),
        {**cog(32, 4), "ofs": constant(2.0)},
    ),
    diffusion("CogVideoX_Inpaint", "CogVideoX_Inpaint", sizes(COG, in_channels=48), COG_TINY, cog(48)),
    diffusion(
        "CogVideoX5B_I2V_learned_positions",
        "CogVideoX_I2V",
        sizes(COG, in_channels=32, use_learned_positional_embeddings=True),
        COG_TINY,
        cog(32),
        no_tiny="its table of positions fits one size of film alone",
    ),
)

FAMILIES = (*WANS, *HUNYUANS, *COSMOS_LIKE, *SINGLES, *OTHERS)
