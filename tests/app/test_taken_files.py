"""Files that the app's loaders take are taken by ours, whatever their names look like."""

import pytest
import torch
from safetensors.torch import save

from tests.support import pixels, workflows
from tests.support.workflows import build

pytestmark = pytest.mark.app


def test_stage_a_of_stable_cascade_is_a_vae(sim):
    """Its `down_blocks` are those of no diffusion model."""
    prompt = build("sd15", vae="vae_stage_a")
    expected = pixels.sha256(sim.images(sim.run(prompt).check()))
    sim.free()
    ours = workflows.with_our_loaders(prompt, {workflows.VAE: {"placement": "layerwise", "budget_gb": 0.02}})
    assert pixels.sha256(sim.images(sim.run(ours).check())) == expected
    report = next(component for component in sim.report()["components"] if component["component"] == "vae")
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])


REFUSAL = "found that it is"


def test_the_second_file_of_an_ltx2_encoder_is_not_refused_by_its_kind(sim, model_files):
    """Not a whole encoder: what the app then says of the pair is its word."""
    names = ["text_embedding_projection.aggregate_embed.weight"]
    names += [
        f"model.diffusion_model.{side}_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.bias"
        for side in ("video", "audio")
    ]
    file = save({name: torch.zeros(8) for name in names})
    second = model_files.put("text_encoders", "ltx2_projection.safetensors", file)
    prompt = workflows.with_our_loaders(build("flux"), {workflows.CLIP: {"clip_name2": second, "type": "ltxv"}})
    result = sim.run(prompt)
    assert REFUSAL not in result.message, result.message
