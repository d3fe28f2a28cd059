"""Diffusion models of the UNet kind: Stable Diffusion and what grew out of it, and Stable Cascade."""

from __future__ import annotations

import torch

from .entry import Drawn, Settings, constant, diffusion, integers, noise, ones, sizes

UNET: Settings = sizes(
    use_checkpoint=False,
    image_size=32,
    use_spatial_transformer=True,
    legacy=False,
    out_channels=4,
    in_channels=4,
    model_channels=320,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)
SD2 = sizes(
    UNET,
    adm_in_channels=None,
    num_res_blocks=[2, 2, 2, 2],
    channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_middle=1,
    transformer_depth_output=[1] * 9 + [0] * 3,
    context_dim=1024,
    use_linear_in_transformer=True,
)
SD1 = sizes(SD2, context_dim=768, use_linear_in_transformer=False)
SDXL_WIDTHS = sizes(
    UNET,
    num_classes="sequential",
    adm_in_channels=2816,
    use_linear_in_transformer=True,
    context_dim=2048,
    channel_mult=[1, 2, 4],
)
SDXL = sizes(
    SDXL_WIDTHS,
    num_res_blocks=[2, 2, 2],
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
)
SSD_1B = sizes(
    SDXL,
    transformer_depth=[0, 0, 2, 2, 4, 4],
    transformer_depth_output=[0, 0, 0, 1, 1, 2, 10, 4, 4],
    transformer_depth_middle=-1,
)
VEGA = sizes(
    SDXL,
    transformer_depth=[0, 0, 1, 1, 2, 2],
    transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
    transformer_depth_middle=-1,
)
KOALA_700M = sizes(
    SDXL_WIDTHS,
    num_res_blocks=[1, 1, 1],
    transformer_depth=[0, 2, 5],
    transformer_depth_output=[0, 0, 2, 2, 5, 5],
    transformer_depth_middle=-2,
)
KOALA_1B = sizes(
    KOALA_700M,
    transformer_depth=[0, 2, 6],
    transformer_depth_output=[0, 0, 2, 2, 6, 6],
    transformer_depth_middle=6,
)
REFINER = sizes(
    UNET,
    num_classes="sequential",
    adm_in_channels=2560,
    model_channels=384,
    num_res_blocks=[2, 2, 2, 2],
    transformer_depth=[0, 0, 4, 4, 4, 4, 0, 0],
    channel_mult=[1, 2, 4, 4],
    transformer_depth_middle=4,
    use_linear_in_transformer=True,
    context_dim=1280,
    transformer_depth_output=[0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
)
SVD = sizes(
    SD2,
    in_channels=8,
    num_classes="sequential",
    adm_in_channels=768,
    use_temporal_attention=True,
    use_temporal_resblock=True,
    extra_ff_mix_layer=True,
    use_spatial_context=True,
    merge_strategy="learned_with_images",
    merge_factor=0.0,
    video_kernel_size=[3, 1, 1],
)
UPSCALER = sizes(SD2, in_channels=7, model_channels=256, num_classes=1000)
STAGE_B = sizes(
    stable_cascade_stage="b",
    c_hidden=[320, 640, 1280, 1280],
    nhead=[-1, -1, 20, 20],
    blocks=[[2, 6, 28, 6], [6, 28, 6, 2]],
    block_repeat=[[1, 1, 1, 1], [3, 3, 2, 2]],
)

SMALL: Settings = sizes(
    num_res_blocks=[1, 1],
    channel_mult=[1, 1],
    transformer_depth=[1, 1],
    transformer_depth_output=[1, 1, 1, 1],
    model_channels=64,
)
SMALL_UPSCALER = sizes(
    SMALL,
    num_res_blocks=[1, 1, 1, 1],
    channel_mult=[1, 1, 1, 1],
    transformer_depth=[0, 1, 1, 1],
    transformer_depth_output=[0, 0, 1, 1, 1, 1, 1, 1],
)
SMALL_STAGE_B = sizes(c_hidden=[32, 64, 64, 64], nhead=[-1, -1, 2, 2], blocks=[[1, 2, 2, 2], [2, 2, 2, 1]], c_cond=64)
SMALL_STAGE_C = sizes(c_cond=64, c_hidden=[64, 64], nhead=[2, 2], blocks=[[2, 3], [3, 2]])


def picture(channels: int, context: int, label: Drawn | None = None) -> Settings:
    given = {"x": noise(1, channels, 16, 16), "timesteps": constant(300), "context": noise(1, 8, context)}
    return given if label is None else sizes(given, y=label)


def frames(label: int) -> Settings:
    return {
        **{"x": noise(3, 8, 16, 16), "timesteps": ones(3, dtype=torch.float32), "context": noise(3, 1, 1024)},
        **{"y": noise(3, label), "num_video_frames": 3},
    }


def _zero123_projection() -> dict[str, torch.Tensor]:
    return {"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)}


STAGE_B_INPUTS = {"x": noise(1, 4, 64, 64), "r": constant(0.5), "effnet": noise(1, 16, 8, 8), "clip": noise(1, 1, 1280)}
STAGE_C_INPUTS = {
    **{"x": noise(1, 16, 12, 12), "r": constant(0.5), "clip_text": noise(1, 77, 1280)},
    **{"clip_text_pooled": noise(1, 1, 1280), "clip_img": noise(1, 1, 768)},
}
XL = picture(4, 2048, noise(1, 2816))

FAMILIES = (
    diffusion("SD15", "SD15", SD1, SMALL, picture(4, 768)),
    diffusion("SD15_instructpix2pix", "SD15_instructpix2pix", sizes(SD1, in_channels=8), SMALL, picture(8, 768)),
    diffusion(
        "Stable_Zero123",
        "Stable_Zero123",
        sizes(SD1, in_channels=8),
        SMALL,
        picture(8, 768),
        weights=_zero123_projection,
    ),
    diffusion("SD20", "SD20", SD2, SMALL, picture(4, 1024)),
    diffusion("LotusD", "LotusD", sizes(SD2, adm_in_channels=4), SMALL, picture(4, 1024, noise(1, 4))),
    diffusion(
        "SD21UnclipL",
        "SD21UnclipL",
        sizes(SD2, num_classes="sequential", adm_in_channels=1536),
        SMALL,
        picture(4, 1024, noise(1, 1536)),
    ),
    diffusion(
        "SD21UnclipH",
        "SD21UnclipH",
        sizes(SD2, num_classes="sequential", adm_in_channels=2048),
        SMALL,
        picture(4, 1024, noise(1, 2048)),
    ),
    diffusion("SD_X4Upscaler", "SD_X4Upscaler", UPSCALER, SMALL_UPSCALER, picture(7, 1024, integers(1, below=300))),
    diffusion("SDXL", "SDXL", SDXL, SMALL, XL),
    diffusion("SDXLRefiner", "SDXLRefiner", REFINER, SMALL, picture(4, 1280, noise(1, 2560))),
    diffusion(
        "SDXL_instructpix2pix",
        "SDXL_instructpix2pix",
        sizes(SDXL, in_channels=8),
        SMALL,
        picture(8, 2048, noise(1, 2816)),
    ),
    diffusion("SSD1B", "SSD1B", SSD_1B, SMALL, XL),
    diffusion("Segmind_Vega", "Segmind_Vega", VEGA, SMALL, XL),
    diffusion("KOALA_700M", "KOALA_700M", KOALA_700M, SMALL, XL),
    diffusion("KOALA_1B", "KOALA_1B", KOALA_1B, SMALL, XL),
    diffusion("SVD_img2vid", "SVD_img2vid", SVD, SMALL, frames(768)),
    diffusion("SV3D_u", "SV3D_u", sizes(SVD, adm_in_channels=256), SMALL, frames(256)),
    diffusion("SV3D_p", "SV3D_p", sizes(SVD, adm_in_channels=1280), SMALL, frames(1280)),
    diffusion("Stable_Cascade_C", "Stable_Cascade_C", sizes(stable_cascade_stage="c"), SMALL_STAGE_C, STAGE_C_INPUTS),
    diffusion("Stable_Cascade_B", "Stable_Cascade_B", STAGE_B, SMALL_STAGE_B, STAGE_B_INPUTS),
)
