"""Which component a model file may be for, by the names of its tensors alone.

Names by which ComfyUI itself tells a VAE, or finds the parts of an encoder, count for more than prefixes, which several
kinds have in common. What a name only hints at is for ComfyUI to judge.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["kinds_by_names"]

_PREFIXES: dict[str, tuple[str, ...]] = {
    "controlnet": ("controlnet_", "zero_convs.", "control_model.", "input_hint_block."),
    "image_encoder": ("vision_model.", "visual.transformer.", "encoder.layer.0."),
    "vae": (
        *("decoder.conv", "decoder.up", "decoder.mid", "decoder.middle.", "decoder.head.", "first_stage_model."),
        *("decoder.0.", "decoder.1.", "taesd_decoder.", "vae."),
    ),
    "dit": (
        *("double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks.", "joint_blocks."),
        *("model.diffusion_model.", "diffusion_model.", "input_blocks.", "down_blocks.", "blocks.0.self_attn."),
    ),
    "text_encoder": (
        *("transformer.resblocks.0.", "text_model.", "shared.weight", "model.embed_tokens.", "encoder.block."),
        # What ComfyUI's LTX-2 encoder takes from its second file, which may be the whole checkpoint.
        *("text_embedding_projection.", "model.diffusion_model.video_embeddings_connector."),
        "model.diffusion_model.audio_embeddings_connector.",
    ),
}

_VAES = frozenset(
    {
        "vquantizer.codebook.weight",  # Stable Cascade, stage A
        "backbone.1.0.block.0.1.num_batches_tracked",  # Stable Cascade, stage C: encoder, previewer, both
        "blocks.11.num_batches_tracked",
        "encoder.backbone.1.0.block.0.1.num_batches_tracked",
        "geo_decoder.cross_attn_decoder.ln_1.bias",  # Hunyuan3D 2.0 and 2.1, shapes
        "student.dconv_encoder.proj_out.weight",  # Mage
        "blocks.2.blocks.3.stack.5.weight",  # Mochi
        "layers.4.layers.1.attn_block.attn.qkv.weight",
        "decoder.transformer_blocks.0.scale1",  # MiniMax H3
        "gs.base_offset_scale",  # TripoSplat
    }
)
"""Tensors by which ComfyUI tells a VAE whose other names look like those of something else, or like nothing known."""


def kinds_by_names(names: Collection[str]) -> set[str]:
    """The components that a file with these tensors may be for. Empty: nothing known."""
    if not _VAES.isdisjoint(names):
        return {"vae"}
    return {kind for kind, prefixes in _PREFIXES.items() if any(name.startswith(prefixes) for name in names)}
