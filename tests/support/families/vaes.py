"""VAEs of pictures, videos, sounds and shapes. A small one is its own tiny form, with little to encode and decode."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Build, Draw, Drawn, Family, Settings, noise, sizes

Run = Callable[[nn.Module, Draw], Any]


def of_class(path: str, full: Settings, tiny: Settings | None = None) -> Build:
    """Builds the class at `path`, below `comfy`, which takes its sizes and no device."""

    def build(device: str, small: bool) -> nn.Module:
        module, _, attribute = path.rpartition(".")
        kind = getattr(importlib.import_module("comfy." + module), attribute)
        return kind(**sizes(full, tiny or {}) if small else full)

    return build


def vae(name: str, build: Build, decoded: Drawn, encoded: Drawn | None = None, **more: Any) -> Family:
    """`decoded` is a latent; `encoded` pixels or sound, None where a tiny form cannot encode."""
    further = more.pop("further", {})

    def run(model: nn.Module, draw: Draw) -> Any:
        latents = [] if encoded is None else [model.encode(draw(encoded))]
        return [*latents, model.decode(draw(decoded), **further)]

    def entry_points(model: nn.Module) -> list[tuple[nn.Module, str]]:
        return [(model, "decode")] if encoded is None else [(model, "encode"), (model, "decode")]

    return Family(name, "vae", build, run, entry_points, one_road=encoded is None, **more)


# ---------------------------------------------------------------------- of encoder and decoder by name

_MODELS = "comfy.ldm.modules.diffusionmodules.model."
_GAUSSIAN = "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"
_NOTHING = "comfy.ldm.models.autoencoder.EmptyRegularizer"
PICTURES = sizes(
    double_z=True,
    resolution=256,
    in_channels=3,
    out_ch=3,
    ch=128,
    ch_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_resolutions=[],
    dropout=0.0,
)
HUNYUAN = sizes(
    in_channels=3,
    out_channels=3,
    num_res_blocks=2,
    downsample_match_channel=True,
    upsample_match_channel=True,
)
HUNYUAN_IMAGE = sizes(HUNYUAN, block_out_channels=[128, 256, 512, 512, 1024, 1024], ffactor_spatial=32, z_channels=64)
HUNYUAN_15 = sizes(
    HUNYUAN,
    block_out_channels=[128, 256, 512, 1024, 1024],
    ffactor_spatial=16,
    ffactor_temporal=4,
    z_channels=32,
)


def kl(settings: Settings, channels: int) -> Build:
    def sides(**narrow: int) -> Settings:
        return {"ddconfig": sizes(settings, narrow, z_channels=channels), "embed_dim": channels}

    return of_class("ldm.models.autoencoder.AutoencoderKL", sides(), sides(ch=32))


def engine(
    settings: Settings, narrow: Settings, encoder: str, decoder: str, between: str = _GAUSSIAN, **decoding: Any
) -> Build:
    """An encoder and a decoder with the same settings, in the tiny form `narrow`; `decoding` is the decoder's alone."""

    def parts(chosen: Settings) -> Settings:
        return {
            "regularizer_config": {"target": between},
            "encoder_config": {"target": encoder, "params": sizes(chosen)},
            "decoder_config": {"target": decoder, "params": sizes(chosen, **decoding)},
        }

    return of_class("ldm.models.autoencoder.AutoencodingEngine", parts(settings), parts(sizes(settings, narrow)))


def _hunyuan(settings: Settings, file: str, between: str) -> Build:
    place = f"comfy.ldm.hunyuan_video.{file}."
    narrow = {"block_out_channels": [channels // 4 for channels in settings["block_out_channels"]]}
    return engine(settings, narrow, place + "Encoder", place + "Decoder", between)


_SVD = engine(
    sizes(PICTURES, z_channels=4),
    {"ch": 32},
    _MODELS + "Encoder",
    "comfy.ldm.modules.temporal_ae.VideoDecoder",
    video_kernel_size=[3, 1, 1],
    alpha=0.0,
)
_FLUX = engine(sizes(PICTURES, z_channels=16), {"ch": 32}, _MODELS + "Encoder", _MODELS + "Decoder")

PICTURE = noise(1, 3, 64, 64)
FILM = noise(1, 3, 5, 64, 64)
OF_PICTURES = (
    vae("vae_sd", kl(PICTURES, 4), noise(1, 4, 8, 8), PICTURE),
    vae("vae_x4_upscaler", kl(sizes(PICTURES, ch_mult=[1, 2, 4]), 4), noise(1, 4, 8, 8), PICTURE),
    vae("vae_sd3_flux", _FLUX, noise(1, 16, 8, 8), PICTURE),
    vae("vae_flux2", kl(sizes(PICTURES, batch_norm_latent=True), 32), noise(1, 128, 4, 4), PICTURE),
    vae("vae_svd", _SVD, noise(2, 4, 8, 8), PICTURE),
    vae("vae_cascade_stage_a", of_class("ldm.cascade.stage_a.StageA", {}), noise(1, 4, 16, 16), PICTURE),
    vae(
        "vae_cascade_stage_c_coder",
        of_class("ldm.cascade.stage_c_coder.StageC_coder", {}),
        noise(1, 16, 4, 4),
        PICTURE,
    ),
    vae("vae_mage", of_class("ldm.mage_flow.vae.MageVAE", {}), noise(1, 128, 4, 4), PICTURE),
    vae("vae_hunyuan_image21", _hunyuan(HUNYUAN_IMAGE, "vae", _GAUSSIAN), noise(1, 64, 2, 2), PICTURE),
    vae("vae_taesd", of_class("taesd.taesd.TAESD", {"latent_channels": 4}), noise(1, 4, 8, 8), PICTURE),
)

# ---------------------------------------------------------------------- of videos

WAN: Settings = sizes(
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_scales=[],
    dropout=0.0,
    temperal_downsample=[False, True, True],
)
WAN21 = sizes(WAN, dim=96, z_dim=16, image_channels=3, conv_out_channels=3)
COSMOS = sizes(
    z_channels=16,
    latent_channels=16,
    z_factor=1,
    resolution=1024,
    in_channels=3,
    out_channels=3,
    channels=128,
    channels_mult=[2, 4, 4],
    num_res_blocks=2,
    attn_resolutions=[32],
    dropout=0.0,
    patch_size=4,
    num_groups=1,
    temporal_compression=8,
    spacial_compression=8,
)
_LTX = "ldm.lightricks.vae.causal_video_autoencoder.VideoVAE"
_SEEDVR = "ldm.seedvr.vae.VideoAutoencoderKLWrapper"
_REFINER = _hunyuan(sizes(HUNYUAN_15, refiner_vae=False), "vae_refiner", _GAUSSIAN)
_15 = _hunyuan(HUNYUAN_15, "vae_refiner", _NOTHING)

OF_VIDEOS = (
    vae("vae_hunyuan_video", kl(sizes(PICTURES, conv3d=True, time_compress=4), 16), noise(1, 16, 2, 8, 8), FILM),
    vae("vae_hunyuan_image_refiner", _REFINER, noise(1, 32, 2, 4, 4), noise(1, 3, 4, 64, 64)),
    vae("vae_hunyuan_video15", _15, noise(1, 32, 2, 4, 4), FILM),
    vae("vae_wan21", of_class("ldm.wan.vae.WanVAE", WAN21, {"dim": 32}), noise(1, 16, 2, 8, 8), FILM),
    vae(
        "vae_wan22",
        of_class("ldm.wan.vae2_2.WanVAE", sizes(WAN, dim=160, z_dim=48), {"dim": 32, "dec_dim": 64}),
        noise(1, 48, 2, 4, 4),
        FILM,
    ),
    vae(
        "vae_cogvideox",
        of_class("ldm.cogvideo.vae.AutoencoderKLCogVideoX", {}, {"block_out_channels": (32, 64, 64, 128)}),
        noise(1, 16, 2, 8, 8),
        FILM,
    ),
    vae(
        "vae_cosmos",
        of_class("ldm.cosmos.vae.CausalContinuousVideoTokenizer", COSMOS, {"channels": 32}),
        noise(1, 16, 2, 4, 4),
        noise(1, 3, 9, 64, 64),
        tiny_dtype=torch.float32,
    ),
    vae("vae_seedvr2", of_class(_SEEDVR, {}), noise(1, 16, 2, 8, 8), FILM),
    vae("vae_mochi", of_class("ldm.genmo.vae.model.VideoVAE", {}), noise(1, 12, 2, 4, 4)),
    vae("vae_ltx_v0", of_class(_LTX, {"version": 0}), noise(1, 128, 2, 2, 2), noise(1, 3, 9, 64, 64)),
    vae(
        "vae_ltx_v1",
        of_class(_LTX, {"version": 1}),
        noise(1, 128, 2, 2, 2),
        no_tiny="its sizes are in the code, and 1.7 GB run for minutes",
    ),
    vae(
        "vae_ltx_v2",
        of_class(_LTX, {"version": 2}),
        noise(1, 128, 2, 2, 2),
        no_tiny="its sizes are in the code, and 2.5 GB are no tiny form",
    ),
    vae(
        "vae_minimax_video",
        of_class("ldm.minimax.vae.MiniMaxH3VideoVAE", {}),
        noise(1, 24, 2, 4, 4),
        no_tiny="the sizes of its decoder are in the code, and 10 GB are no tiny form",
    ),
    vae(
        "vae_taehv_wan22",
        of_class("taesd.taehv.TAEHV", {"latent_channels": 48, "latent_format": None}),
        noise(1, 48, 2, 4, 4),
        noise(1, 3, 8, 64, 64),
    ),
)

# ---------------------------------------------------------------------- of sounds and shapes

STABLE_AUDIO3 = sizes(
    channels=256,
    transformer_depths=12,
    sinusoidal_blocks=8,
    sliding_window=[1, 1],
    decoder_conv_mapping=False,
    chunk_size=128,
    chunk_midpoint_shift=False,
)
_ACE = of_class("ldm.ace.vae.music_dcae_pipeline.MusicDCAE", {"source_sample_rate": 44100})

OF_SOUNDS_AND_SHAPES = (
    vae(
        "vae_stable_audio1",
        of_class("ldm.audio.autoencoder.AudioOobleckVAE", {}, {"channels": 32}),
        noise(1, 64, 4),
        noise(1, 2, 4096),
    ),
    vae(
        "vae_stable_audio3",
        of_class("ldm.audio.vae_sa3.SA3AudioVAE", STABLE_AUDIO3, {"channels": 64}),
        noise(1, 256, 4),
        noise(1, 2, 4 * 4096),
    ),
    vae("vae_ace", _ACE, noise(1, 8, 16, 8)),
    vae(
        "vae_mmaudio_16k",
        of_class("ldm.mmaudio.vae.autoencoder.AudioAutoencoder", {"mode": "16k"}),
        noise(1, 20, 8),
        dtype=torch.float32,
    ),
    vae("vae_minimax_audio", of_class("ldm.minimax.audio_vae.MiniMaxH3AudioVAE", {}), noise(1, 32, 2, 4)),
    vae(
        "vae_hunyuan3d_shape",
        of_class("ldm.hunyuan3d.vae.ShapeVAE", {}, {"width": 256, "heads": 4}),
        noise(1, 64, 64),
        further={"octree_resolution": 8, "enable_pbar": False},
    ),
    vae(
        "vae_triposplat",
        of_class("ldm.triposplat.vae.OctreeGaussianDecoder", {}),
        noise(1, 64, 64),
        no_tiny="it returns objects of the app, and no tensors to compare",
    ),
)

FAMILIES = (*OF_PICTURES, *OF_VIDEOS, *OF_SOUNDS_AND_SHAPES)
