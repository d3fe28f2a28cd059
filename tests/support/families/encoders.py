"""Text encoders, as the app loads them: often several in one module."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .entry import Draw, Family, Settings, no_run, sizes

BF16 = torch.bfloat16
Tokens = int | Callable[[Draw], Any]
"""How many tokens an encoder is given, or what makes its tokens and weights."""


def tokens(draw: Draw, count: int) -> list[list[tuple[int, float]]]:
    """A batch of one prompt, as the app's tokenizers give it."""
    return [[(int(number), 1.0) for number in torch.randint(5, 200, (count,), generator=draw.generator)]]


def encoder(
    name: str,
    path: str,
    tiny: Settings,
    given: dict[str, Tokens],
    *,
    factory: Settings | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    **more: Any,
) -> Family:
    """`path` names a class below `comfy`, or with `factory` a function that makes one; `tiny` are model options.

    `prepare` changes the tiny form where the app's options do not reach.
    """

    def build(device: str, small: bool) -> nn.Module:
        module, _, attribute = path.rpartition(".")
        kind = getattr(importlib.import_module("comfy." + module), attribute)
        if factory is not None:
            kind = kind(**factory)
        model = kind(device=device, dtype=BF16, model_options=sizes(tiny) if small else {})
        if small and prepare:
            prepare(model)
        return model

    def run(model: nn.Module, draw: Draw) -> Any:
        model.reset_clip_options()
        model.set_clip_options({"execution_device": torch.device(draw.device)})
        prompt = {key: tokens(draw, what) if isinstance(what, int) else what(draw) for key, what in given.items()}
        return model.encode_token_weights(prompt)

    return Family(name, "encoder", build, run, lambda model: [(model, "encode_token_weights")], **more)


# ---------------------------------------------------------------------- what the tiny forms are

T5 = sizes(d_model=64, d_kv=32, num_heads=2, d_ff=256, num_layers=4, vocab_size=1024)
LLAMA = sizes(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
CLIP = sizes(num_hidden_layers=4, intermediate_size=256)


def llama(**changes: int) -> Settings:
    return sizes(LLAMA, **changes)


WRITES = "the app has it write text, and its class cannot encode"


def gemma4(size: str) -> Family:
    """Its classes differ by size, and the app's function is given one of them."""

    def build(device: str, small: bool) -> nn.Module:
        module = importlib.import_module("comfy.text_encoders.gemma4")
        kind = module.gemma4_te(model_class=getattr(module, f"Gemma4_{size}"))
        return kind(device=device, dtype=BF16, model_options={})

    return Family(f"te_gemma4_{size.lower()}", "encoder", build, no_run, no_tiny=WRITES)


def _narrow_projection(model: nn.Module) -> None:
    """LTX-2's projections have their sizes in the code; so has the vision model, which a prompt does not use."""
    operations = model.gemma3_12b.operations
    model.gemma3_12b.transformer.vision_model = nn.Identity()
    width = 256 * 5
    if isinstance(model.text_embedding_projection, nn.Linear):
        model.text_embedding_projection = operations.Linear(width, 64, bias=False, dtype=BF16, device="cpu")
        return
    dual = importlib.import_module("comfy.text_encoders.lt").DualLinearProjection
    model.text_embedding_projection = dual(width, 64, 32, dtype=BF16, device="cpu", operations=operations)


def _with_a_picture(draw: Draw) -> list[list[tuple[Any, float]]]:
    picture = torch.rand(1, 64, 64, 3, generator=draw.generator)
    seen = {"type": "image", "data": picture, "original_type": "image"}
    return [[(5, 1.0), (6, 1.0), (seen, 1.0), (7, 1.0)]]


def _song_settings(draw: Draw) -> Settings:
    """Of the language model that writes ACE-Step 1.5's audio codes before the song is encoded."""
    return sizes(
        generate_audio_codes=True,
        min_tokens=4,
        seed=1,
        cfg_scale=2.0,
        temperature=0.85,
        top_p=0.9,
        top_k=0,
        min_p=0.0,
    )


# ---------------------------------------------------------------------- CLIP and T5

CLIPS_AND_T5S = (
    encoder("te_sd1_clip_l", "sd1_clip.SD1ClipModel", {"clip_l_model_config": CLIP}, {"l": 77}),
    encoder(
        "te_sdxl",
        "sdxl_clip.SDXLClipModel",
        {"clip_l_model_config": CLIP, "clip_g_model_config": CLIP},
        {"l": 77, "g": 77},
    ),
    encoder("te_sdxl_refiner", "sdxl_clip.SDXLRefinerClipModel", {"clip_g_model_config": CLIP}, {"g": 77}),
    encoder(
        "te_sam3_clip",
        "text_encoders.sam3_clip.SAM3ClipModelWrapper",
        {"sam3_clip_model_config": CLIP},
        {"sam3_clip": 32},
    ),
    encoder("te_sd2_clip_h", "text_encoders.sd2_clip.SD2ClipModel", {"clip_h_model_config": CLIP}, {"h": 77}),
    encoder(
        "te_sd3",
        "text_encoders.sd3_clip.SD3ClipModel",
        {
            "t5xxl_model_config": sizes(T5, d_model=4096, d_kv=8),
            **{"clip_g_model_config": CLIP, "clip_l_model_config": CLIP},
        },
        {"l": 77, "g": 77, "t5xxl": 77},
    ),
    encoder(
        "te_flux",
        "text_encoders.flux.FluxClipModel",
        {"t5xxl_model_config": T5, "clip_l_model_config": CLIP},
        {"l": 77, "t5xxl": 77},
    ),
    encoder(
        "te_aura_pile_t5",
        "text_encoders.aura_t5.AuraT5Model",
        {"pile_t5xl_model_config": T5, "t5xl_model_config": T5},
        {"pile_t5xl": 24},
    ),
    encoder("te_pixart_t5", "text_encoders.pixart_t5.PixArtT5XXL", {"t5xxl_model_config": T5}, {"t5xxl": 24}),
    encoder("te_mochi_ltxv_t5", "text_encoders.genmo.MochiT5XXL", {"t5xxl_model_config": T5}, {"t5xxl": 24}),
    encoder("te_cosmos_old_t5", "text_encoders.cosmos.CosmosT5XXL", {"t5xxl_model_config": T5}, {"t5xxl": 24}),
    encoder("te_cogvideo_t5", "text_encoders.cogvideo.CogVideoXT5XXL", {"t5xxl_model_config": T5}, {"t5xxl": 24}),
    encoder("te_wan_umt5", "text_encoders.wan.WanT5Model", {"umt5xxl_model_config": T5}, {"umt5xxl": 24}),
    encoder(
        "te_ace_umt5_base",
        "text_encoders.ace.AceT5Model",
        {"umt5base_model_config": T5, "umt5_model_config": T5},
        {"umt5base": 24, "lyrics": 8},
    ),
    encoder("te_stable_audio_t5_base", "text_encoders.sa_t5.SAT5Model", {"t5base_model_config": T5}, {"t5base": 24}),
    encoder("te_stable_audio3_t5gemma", "text_encoders.sa3.SAT5GemmaModel", {}, {"t5gemma": 24}),
    encoder(
        "te_hunyuan_dit",
        "text_encoders.hydit.HyditModel",
        {"mt5xl_model_config": T5, "hydit_clip_model_config": {"num_hidden_layers": 4}},
        {"hydit_clip": 77, "mt5xl": 256},
    ),
)

# ---------------------------------------------------------------------- Gemma

GEMMAS = (
    encoder(
        "te_lumina2_gemma2",
        "text_encoders.lumina2.te",
        {"gemma2_2b_model_config": LLAMA},
        {"gemma2_2b": 24},
        factory={},
    ),
    encoder(
        "te_gemma3_4b",
        "text_encoders.lumina2.te",
        {"gemma3_4b_model_config": LLAMA},
        {"gemma3_4b": 24},
        factory={"model_type": "gemma3_4b"},
    ),
    encoder(
        "te_gemma3_4b_vision",
        "text_encoders.lumina2.te",
        {"gemma3_4b_vision_model_config": LLAMA},
        {"gemma3_4b_vision": 24},
        factory={"model_type": "gemma3_4b_vision"},
        no_tiny=WRITES,
    ),
    encoder(
        "te_pixeldit_gemma2",
        "text_encoders.pixeldit.PixelDiTGemma2TE",
        {"gemma2_2b_model_config": LLAMA},
        {"gemma2_2b": 24},
    ),
    encoder(
        "te_ltxav_single",
        "text_encoders.lt.ltxav_te",
        {"_model_config": LLAMA},
        {"gemma3_12b": 64},
        factory={"text_projection_type": "single_linear", "dtype_llama": BF16},
        prepare=_narrow_projection,
    ),
    encoder(
        "te_ltxav_dual",
        "text_encoders.lt.ltxav_te",
        {"_model_config": LLAMA},
        {"gemma3_12b": 64},
        factory={"text_projection_type": "dual_linear", "dtype_llama": BF16},
        prepare=_narrow_projection,
    ),
    *(gemma4(size) for size in ("E2B", "E4B", "12B", "31B")),
    encoder(
        "te_newbie",
        "text_encoders.newbie.te",
        {"gemma_model_config": LLAMA, "jina_model_config": {"num_hidden_layers": 4}},
        {"gemma": 24, "jina": 24},
        factory={},
        no_tiny="the app's class does not pass its sizes on: the tiny form would be the full one",
    ),
)

# ---------------------------------------------------------------------- Qwen

QWENS = (
    encoder(
        "te_omnigen2", "text_encoders.omnigen2.Omnigen2Model", {"qwen25_3b_model_config": LLAMA}, {"qwen25_3b": 24}
    ),
    encoder(
        "te_qwen_image",
        "text_encoders.qwen_image.QwenImageTEModel",
        {"qwen25_7b_model_config": LLAMA},
        {"qwen25_7b": 60},
    ),
    encoder(
        "te_hunyuan_image",
        "text_encoders.hunyuan_image.HunyuanImageTEModel",
        {"qwen25_7b_model_config": LLAMA},
        {"qwen25_7b": 60, "byt5": 20},
    ),
    encoder(
        "te_kandinsky5",
        "text_encoders.kandinsky5.Kandinsky5TEModel",
        {"qwen25_7b_model_config": LLAMA, "clip_l_model_config": CLIP},
        {"qwen25_7b": 60, "l": 77},
    ),
    encoder(
        "te_longcat", "text_encoders.longcat_image.te", {"qwen25_7b_model_config": LLAMA}, {"qwen25_7b": 60}, factory={}
    ),
    encoder(
        "te_klein_qwen3_4b",
        "text_encoders.flux.klein_te",
        {"qwen3_4b_model_config": llama(num_hidden_layers=29)},
        {"qwen3_4b": 24},
        factory={"model_type": "qwen3_4b"},
    ),
    encoder(
        "te_klein_qwen3_8b",
        "text_encoders.flux.klein_te",
        {"qwen3_8b_model_config": llama(num_hidden_layers=29)},
        {"qwen3_8b": 24},
        factory={"model_type": "qwen3_8b"},
    ),
    encoder("te_z_image", "text_encoders.z_image.te", {"qwen3_4b_model_config": LLAMA}, {"qwen3_4b": 24}, factory={}),
    encoder("te_ovis", "text_encoders.ovis.te", {"qwen3_2b_model_config": LLAMA}, {"qwen3_2b": 60}, factory={}),
    encoder(
        "te_anima",
        "text_encoders.anima.AnimaTEModel",
        {"qwen3_06b_model_config": LLAMA},
        {"qwen3_06b": 24, "t5xxl": 16},
    ),
    encoder(
        "te_ideogram4",
        "text_encoders.ideogram4.Ideogram4Qwen3VLTEModel",
        {"qwen3vl_8b_model_config": llama(num_hidden_layers=36)},
        {"qwen3vl_8b": 60},
    ),
    encoder(
        "te_qwen3vl_4b",
        "text_encoders.qwen3vl.te",
        {"qwen3vl_4b_model_config": LLAMA},
        {"qwen3vl_4b": 24},
        factory={"model_type": "qwen3vl_4b"},
    ),
    encoder(
        "te_qwen3vl_4b_with_a_picture",
        "text_encoders.qwen3vl.te",
        {"qwen3vl_4b_model_config": LLAMA},
        {"qwen3vl_4b": _with_a_picture},
        factory={"model_type": "qwen3vl_4b"},
    ),
    encoder("te_boogu", "text_encoders.boogu.te", {"qwen3vl_8b_model_config": LLAMA}, {"qwen3vl_8b": 60}, factory={}),
    encoder(
        "te_krea2",
        "text_encoders.krea2.te",
        {"qwen3vl_4b_model_config": llama(num_hidden_layers=36)},
        {"qwen3vl_4b": 60},
        factory={},
    ),
    encoder(
        "te_mage_flow", "text_encoders.mage_flow.te", {"qwen3vl_4b_model_config": LLAMA}, {"qwen3vl_4b": 60}, factory={}
    ),
    encoder(
        "te_joy_image", "text_encoders.joyimage.te", {"qwen3vl_8b_model_config": LLAMA}, {"qwen3vl_8b": 60}, factory={}
    ),
    encoder(
        "te_minimax_qwen3vl_32b",
        "text_encoders.minimax.te",
        {"qwen3vl_32b_model_config": llama(num_hidden_layers=6)},
        {"qwen3vl_32b": 60},
        factory={},
    ),
    encoder(
        "te_qwen35_2b",
        "text_encoders.qwen35.te",
        {"qwen35_2b_model_config": llama(num_hidden_layers=8)},
        {"qwen35_2b": 24},
        factory={"model_type": "qwen35_2b"},
    ),
    encoder(
        "te_ace15_2b",
        "text_encoders.ace15.te",
        {"_model_config": llama(vocab_size=152700, hidden_size=64)},
        {"qwen3_06b": 16, "lyrics": 16, "lm_prompt": 16, "lm_prompt_negative": 16, "lm_metadata": _song_settings},
        factory={"lm_model": "qwen3_2b", "dtype_llama": BF16},
    ),
)

# ---------------------------------------------------------------------- Llama, Mistral and others

LLAMAS = (
    encoder(
        "te_hunyuan_video",
        "text_encoders.hunyuan_video.HunyuanVideoClipModel",
        {"llama_model_config": LLAMA, "clip_l_model_config": CLIP},
        {"l": 77, "llama": 60},
    ),
    encoder(
        "te_hidream",
        "text_encoders.hidream.HiDreamTEModel",
        {
            **{"t5xxl_model_config": T5, "llama_model_config": LLAMA},
            **{"clip_g_model_config": CLIP, "clip_l_model_config": CLIP},
        },
        {"l": 77, "g": 77, "t5xxl": 77, "llama": 60},
    ),
    encoder(
        "te_flux2_mistral",
        "text_encoders.flux.flux2_te",
        {"mistral3_24b_model_config": llama(num_hidden_layers=32)},
        {"mistral3_24b": 24},
        factory={},
    ),
    encoder(
        "te_ernie_ministral",
        "text_encoders.ernie.te",
        {"ministral3_3b_model_config": LLAMA},
        {"ministral3_3b": 24},
        factory={},
    ),
    encoder(
        "te_jina_clip2",
        "text_encoders.jina_clip_2.JinaClip2TextModelWrapper",
        {
            "jina_clip_2_model_config": sizes(
                num_hidden_layers=4, hidden_size=256, intermediate_size=8192, num_attention_heads=4
            )
        },
        {"jina_clip_2": 24},
    ),
    encoder(
        "te_lens_gpt_oss_20b",
        "text_encoders.gpt_oss.lens_te",
        {},
        {"gpt_oss": 24},
        factory={"dtype_llama": BF16},
        no_tiny="its experts' weights are made of the file alone",
    ),
)

FAMILIES = (*CLIPS_AND_T5S, *GEMMAS, *QWENS, *LLAMAS)
