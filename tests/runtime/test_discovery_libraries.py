"""Discovery on transformers' and diffusers' models in published sizes, without their memory."""

import pytest
import torch

from bench.full_size import describe, give_memory

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")


def t5_xxl():
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return transformers.T5EncoderModel(config)


def clip_l():
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes))


def _qwen(tied, **text):
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "tie_word_embeddings": tied},
        vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen_7b():
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    return _qwen(False, **sizes, num_key_value_heads=4, vocab_size=152064)


def qwen_3b_tied():
    sizes = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
    return _qwen(True, **sizes, num_key_value_heads=2, vocab_size=151936)


def flux():
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


# layers by the start of their names, GB of tables on the host, share of loose bytes at most
EXPECTED = {
    t5_xxl: ({"encoder.block.": 24}, 0.26, 0.01),
    clip_l: ({"encoder.layers.": 12}, 0.08, 0.01),
    qwen_7b: ({"model.visual.": 33, "model.language_model.layers.": 28, "lm_head": 1}, 1.09, 0.01),
    qwen_3b_tied: ({"model.visual.": 33, "model.language_model.layers.": 36}, 0.0, 0.09),
    flux: ({"transformer_blocks.": 19, "single_transformer_blocks.": 38}, 0.0, 0.01),
}


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_layers_are_found_undeclared(make):
    layers, tables_gb, loose = EXPECTED[make]
    with torch.device("meta"):
        model = make()
    row = describe(give_memory(model, torch.bfloat16))
    names = [layer[0] for layer in row["layers"]]
    prefixes = sorted(layers, key=len, reverse=True)
    assert {p: sum(name.startswith(p) for name in names) for p in prefixes} == layers
    assert len(names) == sum(layers.values())
    assert sum(size for _, size in row["tables"][:1]) / 1e9 == pytest.approx(tables_gb, abs=0.01)
    assert row["loose_share"] < loose
