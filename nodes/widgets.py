"""Widgets shared by several nodes. A widget on auto (or 0) sets nothing."""

from collections.abc import Iterable
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import CLIP_TYPES, LORA_MODES, MODES, PLACEMENTS, VAE_PRECISIONS, WEIGHT_DTYPES

_PLACEMENT_TOOLTIP = (
    "Where the weights live while the {what} runs.\n"
    "auto: {auto}\n"
    "layerwise: streamed within the budget, said by you and so never overridden.\n"
    "resident: all of it in VRAM, or an error.\n"
    "whole: ComfyUI's ordinary way, as if this node were not there."
)
_CPU_TOOLTIP = "\ncpu: computed on the CPU, as the device widget of ComfyUI's own loader does."
_WHEN_TOLD = "ComfyUI's ordinary way. {what} is streamed only when you say so."
_AUTO = {
    "dit": "as many layers as fit stay in VRAM, the others are streamed.",
    "controlnet": _WHEN_TOLD.format(what="A ControlNet"),
    "model_patch": _WHEN_TOLD.format(what="A model patch"),
    "audio_encoder": _WHEN_TOLD.format(what="An audio encoder"),
    "upscaler": _WHEN_TOLD.format(what="An upscale model"),
    "latent_upscaler": _WHEN_TOLD.format(what="A latent upscale model"),
    "frame_interpolator": _WHEN_TOLD.format(what="A frame interpolation model"),
}
_AUTO_OTHERS = "streamed through a small ring; layers stay only in VRAM that is free. Nothing is evicted for it."
_BUDGET_TOOLTIP = (
    "VRAM that the weights of this model may take, in GB (1 GB = 1,000,000,000 bytes): streamed layers, resident "
    "layers and everything else together. 0 = auto: what ComfyUI has left for it. Never exceeded; too small a budget "
    "is an error that names the smallest that works."
)
_OPTIONS_TOOLTIP = (
    "Optional: a Layerwise Offload Options node. What a widget here says is stronger than what that node says."
)
_GRAPH_OPTIONS_TOOLTIP = (
    "Written by the Layerwise Offload panel when you queue: the options of the whole graph and your ComfyUI settings, "
    "as JSON. Weaker than the widgets and than an options node. Leave it empty."
)
_MODE_TOOLTIP = (
    "What happens to components whose placement is auto.\n"
    "auto: kept in VRAM where everything fits, else streamed, encoders first.\n"
    "memory: streamed with a ring and nothing more.\n"
    "speed: as auto, with less VRAM kept free.\n"
    "manual: left to ComfyUI."
)
_LORA_MODE_TOOLTIP = (
    "What becomes of streamed layers that a LoRA has changed. The picture is the same.\n"
    "auto: kept in system memory while there is some to spare, so that each is changed once.\n"
    "host: all of them kept in system memory, or an error.\n"
    "on_arrival: none kept; each layer is changed again whenever it comes to the GPU. Least memory, slower steps."
)

OPTIONS = io.Custom("LAYERWISE_OFFLOAD_OPTIONS")
HIDDEN = [io.Hidden.prompt, io.Hidden.unique_id]
"""Hidden inputs from which a node knows its place in the graph."""
ADVANCED: dict[str, Any] = {"optional": True, "advanced": True}
"""Of an input that a node shows only on demand."""


def choice_input(name: str, options: Iterable[str], tooltip: str, default: str = "auto", **kwargs: Any) -> io.Input:
    return io.Combo.Input(name, options=list(options), default=default, tooltip=tooltip, **kwargs)


def placement_input(component: str, what: str, name: str = "placement", cpu: bool = False, **kwargs: Any) -> io.Input:
    """The placement widget of one component."""
    tooltip = _PLACEMENT_TOOLTIP.format(what=what, auto=_AUTO.get(component, _AUTO_OTHERS))
    choices = [choice for choice in PLACEMENTS if cpu or choice != "cpu"]
    return choice_input(name, choices, tooltip + _CPU_TOOLTIP if cpu else tooltip, **kwargs)


def gb_input(name: str, tooltip: str = _BUDGET_TOOLTIP, advanced: bool | None = None) -> io.Input:
    """A number of GB, 0 for auto. Optional, so that saved API prompts stay valid when inputs are added."""
    return io.Float.Input(
        name, default=0.0, min=0.0, max=1024.0, step=0.01, optional=True, advanced=advanced, tooltip=tooltip
    )


def placement_inputs(component: str = "dit", what: str = "model", cpu: bool = False) -> list[io.Input]:
    """Placement, budget and ring widgets of a node's main component."""
    ring = "VRAM of the ring through which layers are streamed, in GB, part of the budget."
    return [
        placement_input(component, what, cpu=cpu),
        gb_input("budget_gb"),
        gb_input("ring_gb", f"{ring} 0 = auto: chosen by the planner.", advanced=True),
    ]


def file_input(name: str, folder: str, tooltip: str = "", optional: bool = False) -> io.Input:
    """A choice of the files in one of the app's folders; with `none` if optional."""
    files = folder_paths.get_filename_list(folder)
    tooltip = tooltip or f"A file in models/{folder}."
    if optional:
        return choice_input(name, ["none", *files], tooltip, "none", optional=True)
    return io.Combo.Input(name, options=files, tooltip=tooltip)


def further_encoder_inputs(tooltip: str) -> list[io.Input]:
    """File widgets for the second to fourth text encoder."""
    return [file_input(f"clip_name{number}", "text_encoders", tooltip, optional=True) for number in (2, 3, 4)]


def clip_type_input(name: str, encoders: str) -> io.Input:
    tooltip = f"What the {encoders} are for, as in ComfyUI's loaders."
    return choice_input(name, CLIP_TYPES, tooltip, "stable_diffusion")


def weight_dtype_input(tooltip: str, **kwargs: Any) -> io.Input:
    return choice_input("weight_dtype", WEIGHT_DTYPES, tooltip, "default", advanced=True, **kwargs)


def precision_input(name: str, **kwargs: Any) -> io.Input:
    tooltip = "The type the VAE is kept and computed in. auto: what ComfyUI chooses; bf16 stays bf16."
    return choice_input(name, VAE_PRECISIONS, tooltip, advanced=True, **kwargs)


def shared_inputs(loras: bool = False) -> list[io.Input]:
    """The last inputs of every node that brings components; `loras`: some of these take LoRAs."""
    return [
        OPTIONS.Input("options", optional=True, tooltip=_OPTIONS_TOOLTIP),
        io.String.Input("graph_options", default="", optional=True, advanced=True, tooltip=_GRAPH_OPTIONS_TOOLTIP),
        *([lora_mode_input()] if loras else []),
    ]


def lora_mode_input() -> io.Input:
    return choice_input("lora_mode", LORA_MODES, _LORA_MODE_TOOLTIP, optional=True, advanced=True)


def mode_input() -> io.Input:
    return choice_input("mode", MODES, _MODE_TOOLTIP, optional=True)
