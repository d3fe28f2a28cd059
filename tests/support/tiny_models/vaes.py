"""VAEs: SD and Flux autoencoders, TAESD, Stable Cascade stage A, Wan 2.1, LTX.

An SD or Flux autoencoder's decoder width is read from the file (by apps newer than 0.18); its encoder is 128 wide.
"""

import json

import torch

from .fill import BF16, FP16, build_on_meta, fill, shapes_of
from .registry import recipe

DECODER_WIDTH = 32
_AUTOENCODER = {
    **{"double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]},
    **{"num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
}
_MODULES = "comfy.ldm.modules.diffusionmodules.model."


def _kl_shapes(channels: int, **extra) -> dict:
    """With quant convolutions: SD, Flux 2."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = {**_AUTOENCODER, "z_channels": channels, **extra}
    decoder = {**config, "ch": DECODER_WIDTH}
    return shapes_of(build_on_meta(AutoencoderKL, ddconfig=config, embed_dim=channels, decoder_ddconfig=decoder))


def _engine_shapes(channels: int) -> dict:
    """Without quant convolutions: Flux."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    config = {**_AUTOENCODER, "z_channels": channels}
    model = build_on_meta(
        AutoencodingEngine,
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": _MODULES + "Encoder", "params": config},
        decoder_config={"target": _MODULES + "Decoder", "params": {**config, "ch": DECODER_WIDTH}},
    )
    return shapes_of(model)


@recipe("vae_sd", "vae/vae_sd_tiny.safetensors", "SD autoencoder, 4 channels, decoder width 32")
def vae_sd(seed):
    return fill(_kl_shapes(4), FP16, seed), {}


@recipe("vae_flux", "vae/vae_flux_tiny.safetensors", "Flux autoencoder, 16 channels, decoder width 32")
def vae_flux(seed):
    return fill(_engine_shapes(16), BF16, seed), {}


@recipe("vae_flux2", "vae/vae_flux2_tiny.safetensors", "Flux 2 autoencoder, 32 channels with latent batch norm")
def vae_flux2(seed):
    return fill(_kl_shapes(32, batch_norm_latent=True), BF16, seed), {}


def taesd(seed, channels: int, scale: float, shift: float):
    from comfy.taesd.taesd import TAESD

    tensors = fill(shapes_of(build_on_meta(TAESD, latent_channels=channels)), FP16, seed)
    return {**tensors, "vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}, {}


@recipe("taesd", "vae/taesd_tiny.safetensors", "TAESD, 4 channels (SD latents)")
def taesd_sd(seed):
    return taesd(seed, channels=4, scale=0.18215, shift=0.0)


@recipe("taef1", "vae/taef1_tiny.safetensors", "TAESD layout with 16 channels (Flux latents)")
def taesd_flux(seed):
    return taesd(seed, channels=16, scale=0.3611, shift=0.1159)


@recipe("vae_stage_a", "vae/vae_stage_a.safetensors", "Stable Cascade stage A, in real size", on_demand=True)
def vae_stage_a(seed):
    from comfy.ldm.cascade.stage_a import StageA

    return fill(shapes_of(build_on_meta(StageA)), BF16, seed), {}


@recipe("vae_wan21", "vae/vae_wan21_tiny.safetensors", "Wan 2.1 and Qwen-Image video VAE, width 32 of 96")
def vae_wan21(seed):
    from comfy.ldm.wan.vae import WanVAE

    model = build_on_meta(
        WanVAE,
        **{"dim": 32, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "dropout": 0.0},
        **{"temperal_downsample": [False, True, True], "image_channels": 3, "conv_out_channels": 3},
    )
    return fill(shapes_of(model), FP16, seed), {}


_UP = ["compress_all", {"residual": True, "multiplier": 2}]
LTX = {
    **{"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128},
    "encoder_blocks": [
        *(["res_x", {"num_layers": 1}], ["compress_all", {}], ["res_x_y", 1], ["compress_all", {}]),
        *(["compress_all", {}], ["res_x", {"num_layers": 1}]),
    ],
    "decoder_blocks": [["res_x", {"num_layers": 1}], _UP, _UP, _UP, ["res_x", {"num_layers": 1}]],
    **{"encoder_base_channels": 32, "decoder_base_channels": 16, "scaling_factor": 1.0, "norm_layer": "pixel_norm"},
    **{"patch_size": 4, "latent_log_var": "uniform", "use_quant_conv": False, "causal_decoder": False},
    "timestep_conditioning": False,
}


@recipe("vae_ltx", "vae/vae_ltx_tiny.safetensors", "LTX video VAE; everything from safetensors metadata")
def vae_ltx(seed):
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    return fill(shapes_of(build_on_meta(VideoVAE, config=LTX)), BF16, seed), {"config": json.dumps({"vae": LTX})}


LTX_AUDIO = {
    "audio_vae": {
        "model": {
            "params": {
                "sampling_rate": 16000,
                "ddconfig": {
                    **{"double_z": True, "mel_bins": 64, "z_channels": 8, "resolution": 256, "downsample_time": False},
                    **{"in_channels": 2, "out_ch": 2, "ch": 64, "ch_mult": [1, 2, 4], "num_res_blocks": 1},
                    **{"attn_resolutions": [], "dropout": 0.0, "mid_block_add_attention": False},
                    **{"norm_type": "pixel", "causality_axis": "height"},
                },
            }
        },
        "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
    },
    "vocoder": {"upsample_initial_channel": 256, "stereo": True, "resblock": "1"},
}


@recipe("vae_ltx_audio", "vae/vae_ltx_audio_tiny.safetensors", "LTX audio VAE and vocoder; everything from metadata")
def vae_ltx_audio(seed):
    from comfy.ldm.lightricks.vae.audio_vae import AudioVAE

    metadata = {"config": json.dumps(LTX_AUDIO)}
    return fill(shapes_of(build_on_meta(AudioVAE, metadata=metadata)), BF16, seed), metadata
