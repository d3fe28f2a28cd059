"""Text encoders. The app hard-codes their dims: small ones carry theirs in a JSON byte tensor that the shim reads."""

import io
import json
import random

import torch

from .fill import BF16, FP16, FP32, build_on_meta, fill, on_meta_kwargs, shapes_of
from .registry import SHIM, recipe
from .video import LTXAV, LTXAV_TEXT_WIDTH

SHIM_KEY = "__tiny_te__"
RECOGNISED_AS = "recognised_as"
"""Beside the dims: the app's name of an encoder that it knows by a width, which a small file does not have."""
T5_DIMS = {"d_model": 64, "d_kv": 32, "num_heads": 2}
CLIP_L_DIMS = {"num_hidden_layers": 4, "intermediate_size": 256}
QWEN_DIMS = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
UMT5_DIMS = {**T5_DIMS, "vocab_size": 512, "d_ff": 10240}
GEMMA_DIMS = {
    **{"hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}
GEMMA_12B_LAYERS = 48
"""The app tells this encoder by them."""
QWEN3_8B_DIMS = {
    **{"hidden_size": 16, "intermediate_size": 15360, "num_hidden_layers": 28},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}
PIECES = 400
"""Words of the tokenizer that a file carries."""


def json_tensor(value) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _transformer(cls, **model_options):
    options = {"model_options": model_options} if model_options else {}
    return build_on_meta(cls, device="meta", dtype=FP32, **options).transformer


def clip_l_shapes(prefix: str = "") -> dict:
    from comfy.sd1_clip import SDClipModel

    return shapes_of(_transformer(SDClipModel), prefix)


@recipe("clip_l", "text_encoders/clip_l.safetensors", "CLIP-L in real size")
def clip_l(seed):
    return fill(clip_l_shapes(), FP16, seed), {}


@recipe(
    "t5_base", "text_encoders/t5_base.safetensors", "T5-base in real size: the smallest unpatched T5", on_demand=True
)
def t5_base(seed):
    from comfy.text_encoders.sa_t5 import T5BaseModel

    return fill(shapes_of(_transformer(T5BaseModel)), FP16, seed), {}


@recipe("clip_l_tiny", "text_encoders/clip_l_tiny.safetensors", "CLIP-L with 4 layers and a narrow MLP", kind=SHIM)
def clip_l_tiny(seed):
    from comfy.sd1_clip import SDClipModel

    dims = {"clip_l_model_config": CLIP_L_DIMS}
    tensors = fill(shapes_of(_transformer(SDClipModel, model_name="clip_l", **dims)), FP16, seed)
    return {**tensors, SHIM_KEY: json_tensor(dims)}, {}


@recipe("lora_clip_l_tiny", "loras/lora_clip_l_tiny.safetensors", "rank 4 over the MLPs of clip_l_tiny")
def lora_clip_l_tiny(seed, rank=4):
    shapes, width, inside = {}, 768, CLIP_L_DIMS["intermediate_size"]
    for layer in range(CLIP_L_DIMS["num_hidden_layers"]):
        for name, outputs, inputs in (("fc1", inside, width), ("fc2", width, inside)):
            key = f"text_encoders.clip_l.transformer.text_model.encoder.layers.{layer}.mlp.{name}"
            shapes |= {f"{key}.lora_down.weight": (rank, inputs), f"{key}.lora_up.weight": (outputs, rank)}
    return {key: value * 0.2 for key, value in fill(shapes, FP32, seed).items()}, {}


@recipe(
    "t5xxl_tiny", "text_encoders/t5xxl_tiny.safetensors", "24 blocks of d_ff 10240 (both checked), 64 wide", kind=SHIM
)
def t5xxl_tiny(seed):
    from comfy.text_encoders.sd3_clip import T5XXLModel

    dims = {"t5xxl_model_config": T5_DIMS}
    tensors = fill(shapes_of(_transformer(T5XXLModel, model_name="t5xxl", **dims)), BF16, seed)
    return {**tensors, SHIM_KEY: json_tensor(dims)}, {}


def _sentencepiece_model(seed: int, unknown: int, begin: int) -> torch.Tensor:
    """A tokenizer trained on random words, as files of UMT5 and Gemma carry theirs. `begin`: -1 if there is no such
    token."""
    import sentencepiece

    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 8))) for _ in range(400)]
    sentences = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(800)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        **{"vocab_size": PIECES, "character_coverage": 1.0, "model_type": "unigram", "byte_fallback": False},
        **{"pad_id": 0, "eos_id": 1, "unk_id": unknown, "bos_id": begin, "minloglevel": 2, "num_threads": 1},
    )
    return torch.tensor(list(written.getvalue()), dtype=torch.uint8)


@recipe("umt5xxl_tiny", "text_encoders/umt5xxl_tiny.safetensors", "UMT5 for Wan, with its own tokenizer", kind=SHIM)
def umt5xxl_tiny(seed):
    from comfy.text_encoders.wan import UMT5XXlModel

    dims = {"umt5xxl_model_config": UMT5_DIMS}
    tensors = fill(shapes_of(_transformer(UMT5XXlModel, model_name="umt5xxl", **dims)), BF16, seed)
    tokenizer = _sentencepiece_model(seed, unknown=2, begin=-1)
    return {**tensors, "spiece_model": tokenizer, SHIM_KEY: json_tensor(dims)}, {}


@recipe(
    "qwen25vl_tiny", "text_encoders/qwen25vl_tiny.safetensors", "language part, 4 layers, real vocabulary", kind=SHIM
)
def qwen25vl_tiny(seed):
    from comfy.text_encoders.qwen_image import Qwen25_7BVLIModel

    dims = {"qwen25_7b_model_config": QWEN_DIMS}
    transformer = _transformer(Qwen25_7BVLIModel, model_name="qwen25_7b", **dims)
    shapes = {key: shape for key, shape in shapes_of(transformer).items() if not key.startswith("visual.")}
    return {**fill(shapes, BF16, seed), SHIM_KEY: json_tensor(dims)}, {}


@recipe(
    "gemma3_tiny",
    "text_encoders/gemma3_tiny.safetensors",
    "Gemma 3 (4B), 4 layers, generates text: its table of 67 MB is the output projection as well",
    kind=SHIM,
)
def gemma3_tiny(seed):
    from comfy.text_encoders.lumina2 import Gemma3_4BModel

    dims = {"gemma3_4b_model_config": GEMMA_DIMS}
    tensors = fill(shapes_of(_transformer(Gemma3_4BModel, model_name="gemma3_4b", **dims)), BF16, seed)
    tensors["model.embed_tokens.weight"][PIECES:] *= 0.01  # never the likeliest: the tokenizer has no words for them
    tokenizer = _sentencepiece_model(seed, unknown=3, begin=2)
    return {**tensors, "spiece_model": tokenizer, SHIM_KEY: json_tensor(dims)}, {}


VISION = "vision"
"""Beside the dims: those of an encoder's eyes, by its name. The app has them in constants."""
GEMMA_VISION_DIMS = {
    **{"hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 2},
    **{"num_channels": 3, "image_size": 224, "patch_size": 14},
    **{"hidden_act": "gelu_pytorch_tanh", "model_type": "siglip_vision_model"},
}
"""The image has the least size of which the app's projector makes its 256 tokens."""


@recipe(
    "gemma3_vision_tiny",
    "text_encoders/gemma3_vision_tiny.safetensors",
    "Gemma 3 (4B) that sees: 4 layers that an image goes through once, 4 for each token of the text",
    kind=SHIM,
)
def gemma3_vision_tiny(seed):
    import comfy.ops
    from comfy.clip_model import CLIPVision
    from comfy.text_encoders.lumina2 import Gemma3_4BModel

    dims = {"gemma3_4b_vision_model_config": {**GEMMA_DIMS, "vocab_size": 512}}
    text = {"gemma3_4b_model_config": dims["gemma3_4b_vision_model_config"]}
    shapes = shapes_of(_transformer(Gemma3_4BModel, model_name="gemma3_4b", **text))
    shapes |= shapes_of(CLIPVision(GEMMA_VISION_DIMS, FP32, "meta", comfy.ops.disable_weight_init), "vision_model.")
    width, seen = GEMMA_DIMS["hidden_size"], GEMMA_VISION_DIMS["hidden_size"]
    projector = {"mm_input_projection_weight": (seen, width), "mm_soft_emb_norm.weight": (seen,)}
    shapes |= {f"multi_modal_projector.{name}": shape for name, shape in projector.items()}
    tensors = fill(shapes, BF16, seed)
    tensors["model.embed_tokens.weight"][PIECES:] *= 0.01
    tokenizer = _sentencepiece_model(seed, unknown=3, begin=2)
    return {
        **tensors,
        "spiece_model": tokenizer,
        SHIM_KEY: json_tensor({**dims, VISION: {"gemma3": GEMMA_VISION_DIMS}}),
    }, {}


LTXAV_GEMMA_DIMS = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 3072},
    **{"num_attention_heads": 1, "num_key_value_heads": 1},
}


@recipe(
    "gemma3_12b_tiny",
    "text_encoders/gemma3_12b_tiny.safetensors",
    "Gemma 3 (12B), 48 layers of 64: the first file of LTX-2's encoder",
    kind=SHIM,
)
def gemma3_12b_tiny(seed):
    import comfy.text_encoders.llama  # noqa: F401 - the module below uses it without importing it
    from comfy.text_encoders.lt import Gemma3_12BModel

    dims = {"gemma3_12b_model_config": LTXAV_GEMMA_DIMS}
    transformer = _transformer(Gemma3_12BModel, model_name="gemma3_12b", **dims)
    shapes = {key: shape for key, shape in shapes_of(transformer).items() if key.startswith("model.")}
    tokenizer = _sentencepiece_model(seed, unknown=3, begin=2)
    return {**fill(shapes, BF16, seed), "spiece_model": tokenizer, SHIM_KEY: json_tensor(dims)}, {}


@recipe(
    "ltxav_projection_tiny",
    "text_encoders/ltxav_projection_tiny.safetensors",
    "the second file of LTX-2's encoder: projection, and connectors as the diffusion model has them",
    kind=SHIM,
)
def ltxav_projection_tiny(seed):
    from comfy.ldm.lightricks.av_model import LTXAVModel

    size = (LTXAV_TEXT_WIDTH, LTXAV_GEMMA_DIMS["hidden_size"] * (GEMMA_12B_LAYERS + 1))
    network = shapes_of(LTXAVModel(**LTXAV, **on_meta_kwargs()), "model.diffusion_model.")
    connectors = {key: shape for key, shape in network.items() if "_embeddings_connector." in key}
    tensors = fill({"text_embedding_projection.aggregate_embed.weight": size, **connectors}, BF16, seed)
    return {**tensors, SHIM_KEY: json_tensor({"ltxav_projection": {"size": size}})}, {}


@recipe(
    "qwen3_8b_tiny",
    "text_encoders/qwen3_8b_tiny.safetensors",
    "28 blocks (the layers that are taken are fixed), 16 wide; an unused lm_head of 3 blocks' size, as the real one",
    kind=SHIM,
)
def qwen3_8b_tiny(seed):
    from comfy.text_encoders.flux import Qwen3_8BModel

    dims = {"qwen3_8b_model_config": QWEN3_8B_DIMS}
    tensors = fill(shapes_of(_transformer(Qwen3_8BModel, model_name="qwen3_8b", **dims)), BF16, seed)
    tensors["lm_head.weight"] = tensors.pop("model.lm_head.weight")  # as public files spell it
    return {**tensors, SHIM_KEY: json_tensor({**dims, RECOGNISED_AS: "QWEN3_8B"})}, {}


QWEN35_DIMS = {
    **{"hidden_size": 16, "intermediate_size": 15360, "num_hidden_layers": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2},
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
}


@recipe(
    "qwen35_9b_tiny",
    "text_encoders/qwen35_9b_tiny.safetensors",
    "Qwen 3.5 (9B), 8 blocks of both kinds, 16 wide; its lm_head is used without a call",
    kind=SHIM,
    on_demand=True,
)
def qwen35_9b_tiny(seed):
    from comfy.text_encoders.qwen35 import Qwen35ClipModel

    dims = {"qwen35_9b_model_config": QWEN35_DIMS}
    options = {"model_options": {"model_name": "qwen35_9b", **dims}, "model_type": "qwen35_9b"}
    transformer = build_on_meta(Qwen35ClipModel, device="meta", dtype=FP32, **options).transformer
    shapes = {key: shape for key, shape in shapes_of(transformer).items() if key.startswith("model.")}
    eyes = {"qwen35_9b": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1}}
    return {**fill(shapes, BF16, seed), SHIM_KEY: json_tensor({**dims, VISION: eyes, RECOGNISED_AS: "QWEN35_9B"})}, {}
