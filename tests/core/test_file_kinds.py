"""Which component a file is for, by the names that real files have."""

import pytest

from offload_core.files.file_kinds import kinds_by_names

FILES = {
    "Stable Cascade stage A": (
        {"vae"},
        ["in_block.1.weight", "down_blocks.0.depthwise.1.weight", "vquantizer.codebook.weight", "up_blocks.0.0.weight"],
    ),
    "Stable Cascade previewer": ({"vae"}, ["blocks.0.weight", "blocks.11.num_batches_tracked"]),
    "Hunyuan3D 2.1 shape VAE": (
        {"vae"},
        [
            *("encoder.cross_attn.ln_1.bias", "geo_decoder.cross_attn_decoder.ln_1.bias", "post_kl.weight"),
            "transformer.resblocks.0.attn.c_qkv.weight",
        ],
    ),
    "LTX-2 projection and connectors": (
        {"dit", "text_encoder"},
        [
            "text_embedding_projection.aggregate_embed.weight",
            "model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.bias",
        ],
    ),
    "LTX-2 dual projection": ({"text_encoder"}, ["text_embedding_projection.audio_aggregate_embed.bias"]),
    "LTX-2 connectors alone": (
        {"dit", "text_encoder"},
        ["model.diffusion_model.audio_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.bias"],
    ),
    "Flux": ({"dit"}, ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"]),
    "diffusers UNet": ({"dit"}, ["down_blocks.0.resnets.0.conv1.weight", "up_blocks.0.resnets.0.conv1.weight"]),
    "Flux in a checkpoint": ({"dit"}, ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"]),
    "CLIP-G": ({"text_encoder"}, ["transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"]),
    "SD VAE": ({"vae"}, ["decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"]),
    "not known": (set(), ["x.weight"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_for_what_the_app_takes_it_for(name):
    kinds, names = FILES[name]
    assert kinds_by_names(names) == kinds
