"""Diffusion models of sounds and of shapes, and what the app loads in their place: detectors, depth."""

from __future__ import annotations

import torch

from .entry import Settings, constant, diffusion, integers, noise, ones, sizes

WORDS = 64  # the width of what the tiny forms are told

# ---------------------------------------------------------------------- sounds

ACE = sizes(
    audio_model="ace",
    attention_head_dim=128,
    in_channels=8,
    inner_dim=2560,
    max_height=16,
    max_position=32768,
    max_width=32768,
    mlp_ratio=2.5,
    num_attention_heads=20,
    num_layers=24,
    out_channels=8,
    patch_size=[16, 1],
    rope_theta=1e6,
    speaker_embedding_dim=512,
    text_embedding_dim=768,
    ssl_encoder_depths=[8, 8],
    ssl_latent_dims=[1024, 768],
    ssl_names=["mert", "m-hubert"],
    lyric_encoder_vocab_size=6693,
    lyric_hidden_size=1024,
)
ACE_TINY = sizes(attention_head_dim=64, inner_dim=256, num_attention_heads=4, num_layers=4, ssl_latent_dims=[64, 64])
ACE_INPUTS = {
    **{"x": noise(1, 8, 16, 32), "timestep": constant(0.5), "context": noise(1, 20, 768)},
    **{"speaker_embeds": noise(1, 512), "lyric_token_idx": integers(1, 16, below=6000), "lyric_mask": ones(1, 16)},
}
ACE15 = sizes(
    audio_model="ace1.5",
    hidden_size=2048,
    intermediate_size=6144,
    num_heads=16,
    encoder_hidden_size=2048,
    encoder_num_heads=16,
    encoder_intermediate_size=6144,
    num_dit_layers=24,
)
ACE15_TINY = sizes(
    hidden_size=256,
    intermediate_size=512,
    num_heads=2,
    num_kv_heads=1,
    encoder_hidden_size=256,
    encoder_num_heads=2,
    encoder_intermediate_size=512,
    num_dit_layers=4,
    num_lyric_layers=3,
    num_timbre_layers=2,
    text_hidden_dim=WORDS,
    fsq_dim=256,
)
ACE15_INPUTS = {
    **{"x": noise(1, 64, 50), "timestep": constant(0.5), "context": noise(1, 20, WORDS)},
    **{"lyric_embed": noise(1, 16, WORDS), "refer_audio": noise(1, 64, 50)},
    "audio_codes": integers(1, 10, below=1000),
}
STABLE_AUDIO = sizes(
    audio_model="dit1.0",
    global_cond_dim=1536,
    project_cond_tokens=False,
    embed_dim=1536,
    num_memory_tokens=0,
    timestep_features_type="learned",
    io_channels=64,
    input_concat_dim=0,
    depth=24,
)
STABLE_AUDIO3 = sizes(
    STABLE_AUDIO,
    global_cond_shared_embed=True,
    global_cond_type="adaLN",
    attn_kwargs={"qk_norm": "rms", "differential": True},
    norm_type="rms_norm",
    num_heads=24,
    io_channels=256,
    timestep_features_type="expo",
    num_memory_tokens=64,
    global_cond_dim=768,
)
STABLE_AUDIO_TINY = sizes(embed_dim=192, num_heads=3, depth=4, global_cond_dim=192, cond_token_dim=WORDS)


def stable_audio(channels: int) -> Settings:
    given = {"x": noise(1, channels, 32), "timestep": constant(0.5)}
    return {**given, "context": noise(1, 20, WORDS), "global_embed": noise(1, 192)}


def _seconds(*names: str, width: int) -> dict[str, torch.Tensor]:
    """What the app's class fills its embedders of seconds with; `width` is that of the second layer's input."""
    found: dict[str, torch.Tensor] = {}
    for name in names:
        place = f"conditioner.conditioners.{name}.embedder.embedding."
        found[place + "1.weight"] = torch.zeros(768, width)
        found[place + "1.bias"] = torch.zeros(768)
        if width % 2:
            found[place + "0.weights"] = torch.zeros(width // 2)
    return found


SOUNDS = (
    diffusion("ACEStep", "ACEStep", ACE, ACE_TINY, ACE_INPUTS),
    diffusion("ACEStep15", "ACEStep15", ACE15, ACE15_TINY, ACE15_INPUTS),
    diffusion(
        "StableAudio1",
        "StableAudio",
        STABLE_AUDIO,
        STABLE_AUDIO_TINY,
        stable_audio(64),
        weights=lambda: _seconds("seconds_start", "seconds_total", width=257),
    ),
    diffusion(
        "StableAudio3",
        "StableAudio3",
        STABLE_AUDIO3,
        STABLE_AUDIO_TINY,
        stable_audio(256),
        weights=lambda: _seconds("seconds_total", width=256),
    ),
)

# ---------------------------------------------------------------------- shapes

HUNYUAN3D = sizes(
    image_model="hunyuan3d2",
    in_channels=64,
    context_in_dim=1536,
    hidden_size=1024,
    mlp_ratio=4.0,
    num_heads=16,
    depth=16,
    depth_single_blocks=32,
    qkv_bias=True,
    guidance_embed=False,
)
HUNYUAN3D_TINY = sizes(hidden_size=256, num_heads=4, depth=3, depth_single_blocks=3, context_in_dim=WORDS)
HUNYUAN3D_INPUTS = {"x": noise(2, 64, 32), "timestep": constant(0.5, 2), "context": noise(2, 20, WORDS)}
HUNYUAN3D_21 = sizes(
    image_model="hunyuan3d2_1",
    in_channels=64,
    context_dim=1024,
    hidden_size=2048,
    mlp_ratio=4.0,
    num_heads=16,
    depth=21,
    qkv_bias=False,
    guidance_cond_proj_dim=None,
)
HUNYUAN3D_21_INPUTS = {"x": noise(2, 64, 32), "t": constant(0.5, 2), "context": noise(2, 20, WORDS)}
TRIPO_INPUTS = {
    **{"x": [noise(1, 64, 16), noise(1, 1, 5)], "t": constant(0.5)},
    **{"context": noise(1, 21, WORDS), "ref_latents": [noise(1, 128, 4, 4)]},
}

SHAPES = (
    diffusion(
        "Hunyuan3Dv2mini",
        "Hunyuan3Dv2mini",
        sizes(HUNYUAN3D, depth=8, depth_single_blocks=16),
        HUNYUAN3D_TINY,
        HUNYUAN3D_INPUTS,
    ),
    diffusion("Hunyuan3Dv2", "Hunyuan3Dv2", HUNYUAN3D, HUNYUAN3D_TINY, HUNYUAN3D_INPUTS),
    diffusion(
        "Hunyuan3Dv2_1",
        "Hunyuan3Dv2_1",
        HUNYUAN3D_21,
        sizes(hidden_size=256, num_heads=4, depth=5, num_moe_layers=2, context_dim=WORDS),
        HUNYUAN3D_21_INPUTS,
    ),
    diffusion(
        "TripoSplat",
        "TripoSplat",
        sizes(image_model="triposplat"),
        sizes(q_token_length=64, model_channels=256, cond_channels=WORDS, num_blocks=4),
        TRIPO_INPUTS,
    ),
)

# ---------------------------------------------------------------------- detectors and depth

DEPTH_ANYTHING = sizes(
    image_model="DepthAnything3",
    backbone_name="vitl",
    alt_start=-1,
    rope_start=-1,
    qknorm_start=-1,
    cat_token=False,
    head_dim_in=1024,
    head_features=256,
    head_out_channels=[256, 512, 1024, 1024],
    head_type="dpt",
    head_output_dim=1,
    head_use_sky_head=True,
    out_layers=[4, 11, 17, 23],
    has_cam_enc=False,
    has_cam_dec=False,
)
DEPTH_ANYTHING_TINY = sizes(
    backbone_name="vits",
    head_dim_in=384,
    head_features=64,
    head_out_channels=[48, 96, 192, 384],
    out_layers=[5, 7, 9, 11],
)

SAM_TINY = sizes(depth=4, img_size=336, global_att_blocks=(1, 3), window_size=12)
SAM_INPUTS = {"images": noise(1, 3, 336, 336), "text_embeddings": noise(1, 8, 1024)}

SEEING = (
    diffusion("SAM3", "SAM3", sizes(image_model="SAM3"), SAM_TINY, SAM_INPUTS),
    diffusion("SAM31", "SAM31", sizes(image_model="SAM31"), SAM_TINY, SAM_INPUTS),
    diffusion(
        "RT_DETR_v4",
        "RT_DETR_v4",
        sizes(image_model="RT_DETR_v4", enc_h=256),
        {},
        {"x": noise(1, 3, 640, 640, dtype=torch.float32)},
        dtype=torch.float32,
    ),
    diffusion("DepthAnything3", "DepthAnything3", DEPTH_ANYTHING, DEPTH_ANYTHING_TINY, {"image": noise(1, 3, 56, 56)}),
)

FAMILIES = (*SOUNDS, *SHAPES, *SEEING)
