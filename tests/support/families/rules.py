"""What must hold of every family in full size, and which are let off and why. Measured figures in, complaints out."""

from __future__ import annotations

from .full_size import Figures

LEAST_SHARE = 0.9
"""Of a model's bytes, in layers and in tables that stay on the host: what need not stay on the device."""
LEAST_SHARE_OF_EXCEPTIONS = 0.5
MOST_LEAST_BYTES = 2_500_000_000
"""A card of 4 GB leaves about this much for weights."""

NO_LAYERS = {
    "vae_taesd": "5 MB in all: none of its blocks has 1 MB",
    "te_lens_gpt_oss_20b": "its experts' weights are made of the file; what is built without one is the table",
}
LOW_SHARE = {
    "te_stable_audio_t5_base": "its table of 49 MB is under the 64 MB from which rows are gathered on the host",
    "vae_cascade_stage_c_coder": "48 MB in all, and many of its blocks are under 1 MB",
    "vae_taehv_wan22": "23 MB in all, and many of its blocks are under 1 MB",
    "vae_minimax_audio": "0.3 GB in all, a fifth of it in convolutions beside the blocks",
    "flux_redux": "two matrices, of which the smaller is under the size of a layer that stands alone",
    "ltx_latent_upsampler": "0.25 GB in all, a tenth of it in the convolutions before and after the blocks",
}

_PART_BY_PART = "9 MB of its geometry encoder are copied for each use: the layers there are also called part by part"
USED_OUTSIDE = {
    "SAM3": _PART_BY_PART,
    "SAM31": _PART_BY_PART,
    "RT_DETR_v4": "5 MB of its hybrid encoder are copied for each use: its transformer's layers are called without it",
}
"""Families some of whose weights are used although the layer that they belong to is not called."""
USED_OUTSIDE_IN_SMALL_FORM = frozenset(
    (
        *("te_sdxl", "te_sdxl_refiner", "te_sd3", "te_flux", "te_kandinsky5", "te_hunyuan_video", "te_hidream"),
        *("te_ace15_2b", "vision_clip_g", "vision_siglip_384", "vision_siglip_512"),
    )
)
"""As `USED_OUTSIDE`, of a part that is a layer in the small form alone, where it is large beside the blocks."""


def complaints(found: Figures) -> list[str]:
    """What is wrong with the figures of a family, in words with numbers; nothing if they are as they must be."""
    wrong = []
    if not found.layers and found.name not in NO_LAYERS:
        wrong.append(f"no layers in {found.total_bytes / 1e9:.2f} GB")
    least_share = LEAST_SHARE_OF_EXCEPTIONS if found.name in LOW_SHARE else LEAST_SHARE
    if found.share < least_share and found.name not in NO_LAYERS:
        wrong.append(f"{found.share:.3f} of its bytes are in layers and tables; at least {least_share} must be")
    if found.not_called:
        wrong.append(f"its layers {', '.join(found.not_called)} are lists of modules, and nothing calls a list")
    if found.least_bytes > MOST_LEAST_BYTES:
        wrong.append(
            f"needs {found.least_bytes / 1e9:.2f} GB of the device, and may need {MOST_LEAST_BYTES / 1e9} GB; "
            f"its largest layer, {found.largest_name}, has {found.largest_bytes / 1e9:.2f} GB"
        )
    return wrong


def needless_exceptions(found: Figures) -> list[str]:
    """The exceptions made for a family that keeps the rule without them."""
    needless = []
    if found.name in NO_LAYERS and found.layers:
        needless.append(f"NO_LAYERS has {found.name}, in which {found.layers} layers were found")
    if found.name in LOW_SHARE and found.share >= LEAST_SHARE:
        needless.append(f"LOW_SHARE has {found.name}, {found.share:.3f} of which is in layers and tables")
    return needless
