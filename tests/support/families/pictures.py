"""Diffusion transformers that make pictures."""

from __future__ import annotations

import torch

from .entry import Settings, constant, diffusion, integers, noise, ones, sizes

WORDS = 64  # the width of what the tiny forms are told


def told(width: int = WORDS, count: int = 20) -> Settings:
    """A prompt of `count` vectors, as most networks take it."""
    return {"context": noise(1, count, width)}


def latent(channels: int, side: int = 16) -> Settings:
    return {"x": noise(1, channels, side, side)}


# ---------------------------------------------------------------------- Stable Diffusion 3 and others of its time


def _joint(width: int, told_width: int = 4096) -> Settings:
    """Where the context embedder's sizes stand in the settings."""
    sides = {"in_features": told_width, "out_features": width}
    return {"context_embedder_config": {"target": "torch.nn.Linear", "params": sides}}


SD35_LARGE = sizes(
    _joint(2432),
    in_channels=16,
    patch_size=2,
    out_channels=16,
    depth=38,
    input_size=None,
    adm_in_channels=2048,
    num_patches=36864,
    pos_embed_max_size=192,
    qk_norm="rms",
    pos_embed_scaling_factor=None,
    x_block_self_attn_layers=[],
)
SD35_MEDIUM = sizes(
    SD35_LARGE,
    _joint(1536),
    depth=24,
    num_patches=147456,
    pos_embed_max_size=384,
    x_block_self_attn_layers=list(range(13)),
)
SD3_TINY = sizes(_joint(256, WORDS), depth=4)
SD3_INPUTS = {**latent(16), "timesteps": constant(500), **told(), "y": noise(1, 2048)}

PIXART = sizes(
    num_heads=16, patch_size=2, hidden_size=1152, in_channels=4, depth=28, input_size=128, pe_interpolation=2
)
PIXART_TINY = sizes(hidden_size=192, num_heads=4, depth=4, caption_channels=WORDS, input_size=32)
PIXART_INPUTS = {**latent(4, 64), "timesteps": constant(500), **told()}
HUNYUAN_DIT = sizes(depth=40, hidden_size=1408, mlp_ratio=4.3637)
HUNYUAN_DIT_TINY = sizes(depth=4, hidden_size=256, num_heads=4, mlp_ratio=4.0)
HUNYUAN_DIT_INPUTS = {
    **{**latent(4), "t": constant(500), **told(1024, 77), "text_embedding_mask": ones(1, 77)},
    **{"encoder_hidden_states_t5": noise(1, 256, 2048), "text_embedding_mask_t5": ones(1, 256)},
}

EARLY = (
    diffusion("SD3_medium", "SD3", sizes(SD35_LARGE, _joint(1536), depth=24, qk_norm=None), SD3_TINY, SD3_INPUTS),
    diffusion("SD35_medium", "SD3", SD35_MEDIUM, sizes(SD3_TINY, x_block_self_attn_layers=[0, 1]), SD3_INPUTS),
    diffusion("SD35_large", "SD3", SD35_LARGE, SD3_TINY, SD3_INPUTS),
    diffusion(
        "AuraFlow",
        "AuraFlow",
        sizes(max_seq=9216, cond_seq_dim=2048, n_double_layers=4, n_layers=36),
        sizes(dim=256, n_heads=2, n_layers=5, n_double_layers=2, global_conddim=256, cond_seq_dim=WORDS, max_seq=1024),
        {**latent(4), "timestep": constant(0.5), **told()},
    ),
    diffusion(
        "PixArtAlpha",
        "PixArtAlpha",
        sizes(PIXART, image_model="pixart_alpha", micro_condition=True, model_max_length=120),
        PIXART_TINY,
        {**PIXART_INPUTS, "c_size": noise(1, 2), "c_ar": noise(1, 1)},
    ),
    diffusion(
        "PixArtSigma",
        "PixArtSigma",
        sizes(PIXART, image_model="pixart_sigma", micro_condition=False, model_max_length=300),
        PIXART_TINY,
        PIXART_INPUTS,
    ),
    diffusion(
        "HunyuanDiT", "HunyuanDiT", sizes(HUNYUAN_DIT, image_model="hydit"), HUNYUAN_DIT_TINY, HUNYUAN_DIT_INPUTS
    ),
    diffusion(
        "HunyuanDiT1",
        "HunyuanDiT1",
        sizes(HUNYUAN_DIT, image_model="hydit1", size_cond=True, use_style_cond=True),
        HUNYUAN_DIT_TINY,
        {**HUNYUAN_DIT_INPUTS, "image_meta_size": noise(1, 6), "style": integers(1, below=1)},
    ),
)

# ---------------------------------------------------------------------- Flux and what grew out of it

FLUX = sizes(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=[16, 56, 56],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    txt_ids_dims=[],
    yak_mlp=False,
    txt_norm=False,
)
FLUX2 = sizes(
    FLUX,
    image_model="flux2",
    in_channels=128,
    out_channels=128,
    vec_in_dim=None,
    context_in_dim=15360,
    hidden_size=6144,
    mlp_ratio=3.0,
    num_heads=48,
    depth=8,
    depth_single_blocks=48,
    axes_dim=[32, 32, 32, 32],
    theta=2000,
    patch_size=1,
    qkv_bias=False,
    txt_ids_dims=[3],
    global_modulation=True,
    mlp_silu_act=True,
    ops_bias=False,
    default_ref_method="index",
    ref_index_scale=10.0,
)
KLEIN_4B = sizes(
    FLUX2,
    guidance_embed=False,
    context_in_dim=7680,
    hidden_size=3072,
    num_heads=24,
    depth=5,
    depth_single_blocks=20,
)
KLEIN_9B = sizes(KLEIN_4B, hidden_size=4096, num_heads=32, depth=8, depth_single_blocks=24, context_in_dim=12288)
_PLAIN_FLUX = {name: value for name, value in FLUX.items() if name not in ("guidance_embed", "yak_mlp", "txt_norm")}
CHROMA = sizes(
    _PLAIN_FLUX,
    image_model="chroma",
    in_channels=64,
    out_channels=64,
    in_dim=64,
    out_dim=3072,
    hidden_dim=5120,
    n_layers=5,
    vec_in_dim=None,
)
RADIANCE = sizes(
    CHROMA,
    image_model="chroma_radiance",
    in_channels=3,
    out_channels=3,
    patch_size=16,
    nerf_hidden_size=64,
    nerf_mlp_ratio=4,
    nerf_depth=4,
    nerf_max_freqs=8,
    nerf_tile_size=512,
    nerf_final_head_type="conv",
    nerf_embedder_dtype=torch.float32,
    use_x0=False,
    use_sequential_txt_ids=False,
)
OVIS = sizes(
    FLUX,
    vec_in_dim=None,
    guidance_embed=False,
    yak_mlp=True,
    txt_norm=True,
    txt_ids_dims=[1, 2],
    context_in_dim=2048,
    depth=6,
    depth_single_blocks=27,
)
LONGCAT = sizes(
    FLUX,
    vec_in_dim=None,
    guidance_embed=False,
    txt_ids_dims=[1, 2],
    context_in_dim=3584,
    depth=10,
    depth_single_blocks=20,
)
FLUX_TINY = sizes(hidden_size=256, num_heads=2, depth=3, depth_single_blocks=4, context_in_dim=WORDS)
CHROMA_TINY = sizes(FLUX_TINY, out_dim=256, hidden_dim=256)


def flux_inputs(channels: int, side: int = 16) -> Settings:
    return {**latent(channels, side), "timestep": constant(0.5), **told(), "guidance": constant(3.5)}


VECTOR = {"y": noise(1, 768)}
FLUX_LIKE = (
    diffusion("Flux", "Flux", FLUX, FLUX_TINY, {**flux_inputs(16), **VECTOR}),
    diffusion(
        "FluxKontext",
        "Flux",
        FLUX,
        FLUX_TINY,
        {**flux_inputs(16), **VECTOR, "ref_latents": [noise(1, 16, 8, 8)]},
    ),
    diffusion(
        "FluxSchnell", "FluxSchnell", sizes(FLUX, guidance_embed=False), FLUX_TINY, {**flux_inputs(16), **VECTOR}
    ),
    diffusion("FluxFill", "FluxInpaint", sizes(FLUX, in_channels=96), FLUX_TINY, {**flux_inputs(96), **VECTOR}),
    diffusion("Ovis", "Flux", OVIS, FLUX_TINY, flux_inputs(16)),
    diffusion("LongCatImage", "LongCatImage", LONGCAT, FLUX_TINY, flux_inputs(16)),
    diffusion("Flux2Dev", "Flux2", FLUX2, FLUX_TINY, flux_inputs(128)),
    diffusion("Flux2Klein4B", "Flux2", KLEIN_4B, FLUX_TINY, {**flux_inputs(128), "ref_latents": [noise(1, 128, 4, 4)]}),
    diffusion("Flux2Klein9B", "Flux2", KLEIN_9B, FLUX_TINY, flux_inputs(128)),
    diffusion("Chroma", "Chroma", CHROMA, CHROMA_TINY, flux_inputs(16)),
    diffusion("ChromaRadiance", "ChromaRadiance", RADIANCE, CHROMA_TINY, flux_inputs(3, 64)),
    diffusion(
        "Lens",
        "Lens",
        sizes(image_model="lens"),
        sizes(num_layers=4, num_attention_heads=4, enc_hidden_dim=WORDS),
        {**latent(128), "timestep": constant(0.5), **told(4 * WORDS)},
    ),
)

# ---------------------------------------------------------------------- Lumina and what grew out of it

LUMINA2 = sizes(
    image_model="lumina2",
    patch_size=2,
    in_channels=16,
    dim=2304,
    cap_feat_dim=2304,
    n_layers=26,
    qk_norm=True,
    n_heads=24,
    n_kv_heads=8,
    axes_dims=[32, 32, 32],
    axes_lens=[300, 512, 512],
    rope_theta=10000.0,
    ffn_dim_multiplier=4.0,
)
Z_IMAGE = sizes(
    LUMINA2,
    dim=3840,
    cap_feat_dim=2560,
    n_layers=30,
    n_heads=30,
    n_kv_heads=30,
    axes_dims=[32, 48, 48],
    axes_lens=[1536, 512, 512],
    rope_theta=256.0,
    ffn_dim_multiplier=8.0 / 3.0,
    z_image_modulation=True,
    time_scale=1000.0,
    pad_tokens_multiple=32,
)
Z_IMAGE_PIXELS = sizes(
    Z_IMAGE,
    image_model="zimage_pixel",
    patch_size=32,
    in_channels=3,
    decoder_in_channels=3 * 32 * 32,
    decoder_hidden_size=3840,
    decoder_num_res_blocks=4,
    decoder_max_freqs=8,
)
LUMINA_TINY = sizes(dim=192, n_heads=2, n_kv_heads=1, n_layers=4, cap_feat_dim=WORDS)
Z_IMAGE_TINY = sizes(dim=256, n_heads=2, n_kv_heads=2, n_layers=4, cap_feat_dim=WORDS)
COUNTED = {"timesteps": constant(0.5), **told(), "num_tokens": 20}
OMNI_INPUTS = {
    **{"ref_latents": [noise(1, 16, 8, 8)], "ref_contexts": [noise(1, 20, WORDS)]},
    **{"siglip_feats": [noise(1, 4, 4, 1152)]},
}
PIXELDIT_TINY = sizes(
    hidden_size=192, num_groups=3, pixel_attn_hidden_size=144, pixel_num_groups=2, txt_embed_dim=WORDS
)

LUMINA_LIKE = (
    diffusion("Lumina2", "Lumina2", LUMINA2, LUMINA_TINY, {**latent(16), **COUNTED}),
    diffusion(
        "NewBie",
        "Lumina2",
        sizes(LUMINA2, n_layers=36, cap_feat_dim=2560, clip_text_dim=1024),
        sizes(LUMINA_TINY, clip_text_dim=WORDS),
        {**latent(16), **COUNTED, "clip_text_pooled": noise(1, WORDS)},
    ),
    diffusion("ZImage", "ZImage", Z_IMAGE, Z_IMAGE_TINY, {**latent(16), **COUNTED}),
    diffusion(
        "ZImageOmni",
        "ZImage",
        sizes(Z_IMAGE, siglip_feat_dim=1152),
        Z_IMAGE_TINY,
        {**latent(16), **COUNTED, **OMNI_INPUTS},
    ),
    diffusion(
        "ZImagePixelSpace",
        "ZImagePixelSpace",
        Z_IMAGE_PIXELS,
        sizes(Z_IMAGE_TINY, patch_size=8, decoder_in_channels=192, decoder_hidden_size=256),
        {**latent(3, 64), **COUNTED},
    ),
    diffusion(
        "PixelDiTT2I",
        "PixelDiTT2I",
        sizes(image_model="pixeldit_t2i"),
        sizes(PIXELDIT_TINY, patch_depth=3),
        {**latent(3, 64), "timesteps": constant(0.5), **told()},
    ),
    diffusion(
        "PiD",
        "PiD",
        sizes(image_model="pid", lq_hidden_dim=512),
        sizes(PIXELDIT_TINY, patch_depth=4, lq_hidden_dim=64),
        {
            **{**latent(3, 64), "timesteps": constant(0.5), **told()},
            **{"lq_latent": noise(1, 16, 2, 2), "degrade_sigma": constant(0.1)},
        },
    ),
)

# ---------------------------------------------------------------------- Qwen-Image and others of its time

QWEN_IMAGE = sizes(image_model="qwen_image", in_channels=64, num_layers=60)
QWEN_TINY = sizes(num_layers=4, num_attention_heads=2, joint_attention_dim=WORDS)
QWEN_INPUTS = {"x": noise(1, 16, 1, 16, 16), "timestep": constant(0.5), **told()}
HIDREAM = sizes(
    image_model="hidream",
    attention_head_dim=128,
    axes_dims_rope=[64, 32, 32],
    caption_channels=[4096, 4096],
    max_resolution=[128, 128],
    in_channels=16,
    llama_layers=list(range(32)) + [31] * 16,
    num_attention_heads=20,
    num_routed_experts=4,
    num_activated_experts=2,
    num_layers=16,
    num_single_layers=32,
    out_channels=16,
    patch_size=2,
    text_emb_dim=2048,
)
HIDREAM_TINY = sizes(
    num_attention_heads=2,
    num_layers=2,
    num_single_layers=3,
    caption_channels=[WORDS, WORDS],
    llama_layers=[0, 1, 2, 3, 3],
)
HIDREAM_INPUTS = {
    **{**latent(16), "t": constant(500), "y": noise(1, 2048), **told()},
    "encoder_hidden_states_llama3": noise(1, 4, 20, WORDS),
}
HIDREAM_O1_TINY = sizes(
    text_config_overrides=sizes(
        vocab_size=152000,
        hidden_size=128,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
    ),
    vision_config_overrides=sizes(
        hidden_size=64,
        num_heads=2,
        intermediate_size=128,
        depth=3,
        num_position_embeddings=2304,
        deepstack_visual_indexes=(0, 1, 2),
        out_hidden_size=128,
    ),
)
HIDREAM_O1_INPUTS = {
    **{**latent(3, 64), "timesteps": constant(500), "input_ids": integers(1, 12, below=1000)},
    **{"position_ids": integers(1, 3, 16, below=16), "vinput_mask": ones(1, 16, dtype=torch.bool), "ar_len": 12},
}
OMNIGEN2 = sizes(
    image_model="omnigen2",
    axes_dim_rope=[40, 40, 40],
    axes_lens=[1024, 1664, 1664],
    ffn_dim_multiplier=None,
    hidden_size=2520,
    in_channels=16,
    multiple_of=256,
    norm_eps=1e-5,
    num_attention_heads=21,
    num_kv_heads=7,
    num_layers=32,
    num_refiner_layers=2,
    out_channels=None,
    patch_size=2,
    text_feat_dim=2048,
    timestep_scale=1000.0,
)
GROUPED_TINY = sizes(hidden_size=240, num_attention_heads=2, num_kv_heads=1, num_layers=4)
WITH_REFERENCE = {**latent(16), **COUNTED, "ref_latents": [noise(1, 16, 8, 8)]}
IDEOGRAM_TINY = sizes(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=128,
    intermediate_size=512,
    adaln_dim=64,
    llm_features_dim=WORDS,
    mrope_section=(24, 20, 20),
)
KREA_TINY = sizes(features=256, heads=2, kvheads=1, layers=4, txtdim=WORDS, txtlayers=3, txtheads=2, txtkvheads=2)
JOY_IMAGE = sizes(
    image_model="joyimage",
    in_channels=16,
    hidden_size=4096,
    patch_size=[1, 2, 2],
    num_layers=40,
    num_attention_heads=32,
    text_dim=4096,
)

LATER = (
    diffusion("QwenImage", "QwenImage", QWEN_IMAGE, QWEN_TINY, QWEN_INPUTS),
    diffusion(
        "QwenImageEdit2511",
        "QwenImage",
        sizes(QWEN_IMAGE, default_ref_method="index_timestep_zero"),
        QWEN_TINY,
        {**QWEN_INPUTS, "ref_latents": [noise(1, 16, 1, 8, 8)]},
    ),
    diffusion(
        "QwenImageLayered",
        "QwenImage",
        sizes(QWEN_IMAGE, use_additional_t_cond=True, default_ref_method="negative_index"),
        QWEN_TINY,
        {
            **{"x": noise(1, 16, 3, 8, 8), "timestep": constant(0.5), **told()},
            **{"ref_latents": [noise(1, 16, 1, 8, 8)], "additional_t_cond": integers(1, below=1)},
        },
    ),
    diffusion("HiDream", "HiDream", HIDREAM, HIDREAM_TINY, HIDREAM_INPUTS),
    diffusion("HiDreamO1", "HiDreamO1", sizes(image_model="hidream_o1"), HIDREAM_O1_TINY, HIDREAM_O1_INPUTS),
    diffusion("Omnigen2", "Omnigen2", OMNIGEN2, sizes(GROUPED_TINY, text_feat_dim=WORDS), WITH_REFERENCE),
    diffusion(
        "Boogu",
        "Boogu",
        sizes(image_model="boogu"),
        sizes(GROUPED_TINY, num_double_stream_layers=2, instruction_feat_dim=WORDS),
        WITH_REFERENCE,
    ),
    diffusion(
        "Ideogram4",
        "Ideogram4",
        sizes(image_model="ideogram4"),
        IDEOGRAM_TINY,
        {**latent(128, 8), "timesteps": constant(0.5), **told()},
    ),
    diffusion(
        "Krea2",
        "Krea2",
        sizes(image_model="krea2"),
        KREA_TINY,
        {**latent(16), "timesteps": constant(0.5), **told(3 * WORDS)},
    ),
    diffusion(
        "MageFlow",
        "MageFlow",
        sizes(image_model="mage_flow", in_channels=128, num_layers=12),
        QWEN_TINY,
        {**latent(128, 8), "timestep": constant(0.5), **told()},
    ),
    diffusion(
        "JoyImage",
        "JoyImage",
        JOY_IMAGE,
        sizes(hidden_size=256, num_layers=4, num_attention_heads=2, text_dim=WORDS),
        {"hidden_states": noise(1, 16, 1, 16, 16), "timestep": constant(0.5), **told()},
    ),
    diffusion(
        "ErnieImage",
        "ErnieImage",
        sizes(image_model="ernie"),
        sizes(hidden_size=256, num_attention_heads=2, num_layers=4, ffn_hidden_size=512, text_in_dim=WORDS),
        {**latent(128, 8), "timesteps": constant(0.5), **told()},
    ),
)

FAMILIES = (*EARLY, *FLUX_LIKE, *LUMINA_LIKE, *LATER)
