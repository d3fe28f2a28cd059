"""Which component a model file may be for, by the names of its tensors alone.

Full names by which ComfyUI detects a VAE take precedence over prefixes, which several kinds share. Where the names are
ambiguous, ComfyUI decides when it loads the file.
"""

from __future__ import annotations

from collections.abc import Collection

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
        # ComfyUI's LTX-2 encoder loads these from its second file, which may be the whole checkpoint.
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
"""Tensors by which ComfyUI detects a VAE whose other names match no prefix above, or those of another kind."""


def kinds_by_names(names: Collection[str]) -> set[str]:
    """The kinds of component that a file with these tensor names may be for; empty if none matches."""
    if not _VAES.isdisjoint(names):
        return {"vae"}
    return {kind for kind, prefixes in _PREFIXES.items() if any(name.startswith(prefixes) for name in names)}
