"""What kind of component an app model is: its name in settings and reports, where its passes begin, how often it runs.

Told from the model object itself, so that one patcher class serves whatever the app's loaders build.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import comfy.model_base
import torch

from ..offload_core.node_table import DECLARED_AS
from ..offload_core.runtime.controller import Entry
from ..offload_core.runtime.wrapped import unwrapped


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component.

    name            the component's name
    methods         the model's methods that run a pass, those it has; of the inner model for diffusion models
    passes          passes to plan for in one use, until they have been counted
    asks_for_ring   without a budget, ask the app for the room of the ring only, so that no model is evicted for it
    """

    name: str
    methods: tuple[str, ...] = ("forward",)
    passes: int = 2
    asks_for_ring: bool = True

    @property
    def declared_as(self) -> str:
        """The kind under which its loader node declares it: its name, but for what is known only from the file."""
        return DECLARED_AS.get(self.name, self.name)


DIT = Kind("dit", passes=20, asks_for_ring=False)
TEXT_ENCODER = Kind("text_encoder", ("encode_token_weights",))
IMAGE_ENCODER = Kind("image_encoder")
VAE = Kind("vae", ("decode", "encode", "decode_tiled", "encode_tiled"))
AUDIO_VAE = Kind("audio_vae", VAE.methods)
CONTROLNET = Kind("controlnet", passes=20, asks_for_ring=False)
OTHER = Kind("model")

_AUDIO = re.compile(r"audio|mmaudio|dcae")
"""What the app calls the classes and modules of its audio VAEs."""


def kind_of(model: torch.nn.Module) -> Kind:
    """The kind of an app model. `OTHER` is streamed like an encoder."""
    if isinstance(model, comfy.model_base.BaseModel):
        return DIT
    if hasattr(model, "encode_token_weights"):
        return TEXT_ENCODER
    if hasattr(model, "vision_model") or type(model).__module__.startswith(
        ("comfy.clip_model", "comfy.image_encoders")
    ):
        return IMAGE_ENCODER
    if hasattr(model, "decode") and hasattr(model, "encode"):
        return AUDIO_VAE if _AUDIO.search(f"{type(model).__module__}.{type(model).__name__}".lower()) else VAE
    if "controlnet" in type(model).__module__.lower() or type(model).__module__.startswith("comfy.cldm"):
        return CONTROLNET
    return OTHER


def entries_of(model: torch.nn.Module, kind: Kind) -> list[Entry]:
    """Where a pass over the model's layers begins: inside a compiled wrapper, which may be there for a while only."""
    inner = getattr(model, "diffusion_model", model) if kind is DIT else model
    inner = unwrapped(inner)
    return [(inner, method) for method in kind.methods if callable(getattr(inner, method, None))]
