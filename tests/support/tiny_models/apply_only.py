"""Model patches, audio encoders, upscale, latent upscale and interpolation models: what only Apply takes over.

The app reads their sizes from the files, but for wav2vec 2, whose smaller form is made in its own size.
"""

from .fill import BF16, FP16, FP32, fill, shapes_of
from .registry import recipe
from .video import WAN_DIM


def _operations() -> dict:
    import comfy.ops

    return {"dtype": FP32, "device": "meta", "operations": comfy.ops.disable_weight_init}


@recipe(
    "uni3c_tiny", "model_patches/uni3c_tiny.safetensors", "Wan Uni3C ControlNet, 4 blocks, for wan_tiny", on_demand=True
)
def uni3c_tiny(seed):
    from comfy.ldm.wan.uni3c import WanUni3CControlnet

    dim = WAN_DIM["dim"]
    sizes = {"conv_out_dim": dim, "time_embed_dim": dim, "out_proj_dim": dim, "dim": 512, "ffn_dim": 1024}
    model = WanUni3CControlnet(**sizes, num_layers=4, mid_channels=64, **_operations())
    return fill(shapes_of(model), BF16, seed), {}


@recipe("wav2vec2_base", "audio_encoders/wav2vec2_base.safetensors", "wav2vec 2 base in real size", on_demand=True)
def wav2vec2_base(seed):
    from comfy.audio_encoders.wav2vec2 import Wav2Vec2Model

    sizes = {"embed_dim": 768, "num_heads": 12, "num_layers": 12}
    ways = dict.fromkeys(("conv_norm", "conv_bias", "do_normalize", "do_stable_layer_norm"), False)
    return fill(shapes_of(Wav2Vec2Model(**sizes, **ways, **_operations())), FP16, seed), {}


@recipe("swinir_tiny", "upscale_models/swinir_tiny.safetensors", "SwinIR x2, 4 groups of 4 blocks", on_demand=True)
def swinir_tiny(seed):
    from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR

    model = SwinIR(
        **{"upscale": 2, "img_size": 64, "window_size": 8, "img_range": 1.0, "mlp_ratio": 2.0},
        **{"depths": [4] * 4, "embed_dim": 120, "num_heads": [6] * 4, "upsampler": "pixelshuffle"},
    )
    made = fill(shapes_of(model), FP32, seed)
    counted = {name: value for name, value in model.state_dict().items() if name.endswith(("_index", "attn_mask"))}
    return {**made, **counted}, {}


@recipe(
    "hunyuan_sr_tiny",
    "latent_upscale_models/hunyuan_sr_tiny.safetensors",
    "HunyuanVideo 1.5's for 720p, 5 blocks of 96 channels",
    on_demand=True,
)
def hunyuan_sr_tiny(seed):
    import torch
    from comfy.ldm.hunyuan_video.upsampler import SRModel3DV2

    with torch.device("meta"):
        model = SRModel3DV2(in_channels=16, out_channels=16, hidden_channels=96, num_blocks=5)
    return fill(shapes_of(model), FP32, seed), {}


@recipe("rife", "frame_interpolation/rife.safetensors", "RIFE in real size", on_demand=True)
def rife(seed):
    from comfy_extras.frame_interpolation_models.ifnet import IFNet

    return fill(shapes_of(IFNet(device="meta")), FP16, seed), {}
