"""The kind of component of an app model: name in settings and reports, where its passes begin, how often it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import torch

from ...offload_core.runtime.engine.controller import Borrower, Entry
from ...offload_core.runtime.layers.wrapped import unwrapped


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component.

    name            the component's name
    methods         methods that run a pass, as far as the model has them; of the inner model for diffusion models
    passes          passes to plan for in one use, until they have been counted
    asks_for_ring   without a budget, request memory for the ring only from the app, so that no model is evicted
    """

    name: str
    methods: tuple[str, ...] = ("forward",)
    passes: int = 2
    asks_for_ring: bool = True


DIT = Kind("dit", passes=20, asks_for_ring=False)
TEXT_ENCODER = Kind("text_encoder", ("encode_token_weights",))
IMAGE_ENCODER = Kind("image_encoder")
VAE = Kind("vae", ("decode", "encode", "decode_tiled", "encode_tiled"))
AUDIO_VAE = Kind("audio_vae", VAE.methods)
CONTROLNET = Kind("controlnet", passes=20, asks_for_ring=False)
MODEL_PATCH = Kind("model_patch", passes=20, asks_for_ring=False)
AUDIO_ENCODER = Kind("audio_encoder")
UPSCALER = Kind("upscaler", passes=8)
"""A pass is a tile of the picture."""
LATENT_UPSCALER = Kind("latent_upscaler")
FRAME_INTERPOLATOR = Kind("frame_interpolator", ("forward", "forward_multi_timestep"), passes=20)
"""A pass is a pair of frames."""
OTHER = Kind("model")
APPLY_ONLY = (MODEL_PATCH, AUDIO_ENCODER, UPSCALER, LATENT_UPSCALER, FRAME_INTERPOLATOR)
"""Kinds that are told by the input of the Apply node that a model comes by, and not by the model: model patches have no
class in common, and some stand among the app's ControlNets."""
KIND_BY_NAME = {kind.name: kind for kind in (DIT, TEXT_ENCODER, IMAGE_ENCODER, VAE, CONTROLNET, *APPLY_ONLY)}
"""The kinds that a node of a prompt can declare."""
_BY_INPUT = {kind.name: kind for kind in APPLY_ONLY}

_AUDIO = re.compile(r"audio|mmaudio|dcae")
"""In the lower-case names of the app's modules and classes of audio VAEs."""


def kind_of(model: torch.nn.Module, declared: str = "") -> Kind:
    """The kind of an app model; `OTHER`, which is streamed like an encoder, if none is recognised.

    declared: the kind of the Apply node's input that it came by, if it did.
    """
    if declared in _BY_INPUT:
        return _BY_INPUT[declared]
    if isinstance(model, comfy.model_base.BaseModel):
        return DIT
    if hasattr(model, "encode_token_weights"):
        return TEXT_ENCODER
    module = type(model).__module__
    if hasattr(model, "vision_model") or module.startswith(("comfy.clip_model", "comfy.image_encoders")):
        return IMAGE_ENCODER
    if hasattr(model, "decode") and hasattr(model, "encode"):
        return AUDIO_VAE if _AUDIO.search(f"{module}.{type(model).__name__}".lower()) else VAE
    if "controlnet" in module.lower() or module.startswith("comfy.cldm"):
        return CONTROLNET
    return OTHER


def entries_of(model: torch.nn.Module, kind: Kind) -> list[Entry]:
    """(module, method) at which a pass over the model's layers begins. The module is the one inside a compiled wrapper,
    which may be removed later. Each token of a text that an encoder generates is a pass, as each encoding is."""
    inner = unwrapped(getattr(model, "diffusion_model", model) if kind is DIT else model)
    entries = [(inner, method) for method in kind.methods if callable(getattr(inner, method, None))]
    if kind is TEXT_ENCODER:
        entries += [(unwrapped(generator.model), "forward") for generator in _generators(inner)]
    return entries


def borrowers_of(model: torch.nn.Module, kind: Kind) -> list[Borrower]:
    """The methods that use a weight outside its module's call: the app's `logits` multiplies by the weight of an output
    projection, or by the embedding table, which is not listed here because it is no layer."""
    generators = _generators(model) if kind is TEXT_ENCODER else []
    return [
        (generator, "logits", unwrapped(head))
        for generator in generators
        if callable(getattr(generator, "logits", None))
        and isinstance(head := getattr(unwrapped(generator.model), "lm_head", None), torch.nn.Module)
    ]


def _generators(encoder: torch.nn.Module) -> list[Any]:
    """The modules in `encoder` whose `generate` calls the forward of their `model` once for each token (the app's
    `BaseGenerate`)."""
    return [
        module
        for module in encoder.modules()
        if callable(getattr(module, "generate", None)) and isinstance(getattr(module, "model", None), torch.nn.Module)
    ]
