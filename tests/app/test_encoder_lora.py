"""A LoRA on a text encoder: applied by the app's arithmetic to streamed masters, equal to the app's loaded encoder."""

import pytest
import torch
from safetensors.torch import save

from tests.app.test_components import encoding, saved
from tests.support.workflows import CLIP, POSITIVE, node, with_our_loaders

pytestmark = pytest.mark.app


@pytest.fixture
def lora(model_files):
    """A rank-4 LoRA on the MLPs of clip_l_tiny (width 768, 256 inside, 4 layers)."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(4):
        for name, outputs, inputs in (("fc1", 256, 768), ("fc2", 768, 256)):
            key = f"text_encoders.clip_l.transformer.text_model.encoder.layers.{layer}.mlp.{name}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) * 0.05
            tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator) * 0.05
    return model_files.put("loras", "clip_l.safetensors", save(tensors))


def with_lora(prompt: dict, lora: str, strength: float) -> dict:
    """LoraLoader wants a MODEL too; the small Flux serves."""
    prompt["1"] = node("UNETLoader", unet_name="flux_tiny.safetensors", weight_dtype="default")
    prompt["2"] = node(
        *("LoraLoader",),
        **{"model": ["1", 0], "clip": [CLIP, 0], "lora_name": lora, "strength_model": 0.0, "strength_clip": strength},
    )
    prompt[POSITIVE]["inputs"]["clip"] = ["2", 1]
    return prompt


def test_a_lora_on_a_streamed_encoder_equals_the_app(sim, lora):
    plain = saved(sim, encoding())
    reference = saved(sim, with_lora(encoding(), lora, 0.8))
    assert reference != plain
    sim.free()
    ours = with_our_loaders(encoding(), {CLIP: {"placement": "layerwise"}})
    assert saved(sim, with_lora(ours, lora, 0.8)) == reference
    assert saved(sim, with_our_loaders(encoding(), {CLIP: {"placement": "layerwise"}})) == plain, (
        "a LoRA that was taken out"
    )
