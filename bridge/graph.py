"""Looks at the prompt, in API form, for what an options node is connected to. Knows our nodes by their public names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..offload_core.errors import SettingsError
from ..offload_core.groups import match, select
from .asked import Options

_LOADED_BY: dict[str, tuple[str, ...]] = {
    "LayerwiseOffloadDiffusionModelLoader": ("dit",),
    "LayerwiseOffloadCLIPLoader": ("text_encoder",),
    "LayerwiseOffloadVAELoader": ("vae",),
    "LayerwiseOffloadCLIPVisionLoader": ("image_encoder",),
    "LayerwiseOffloadControlNetLoader": ("controlnet",),
    "LayerwiseOffloadCheckpointLoader": ("dit", "text_encoder", "vae"),
}
_BY_INPUT: dict[str, dict[str, str]] = {
    "LayerwiseOffloadApply": {
        "model": "dit",
        "clip": "text_encoder",
        "vae": "vae",
        "clip_vision": "image_encoder",
        "control_net": "controlnet",
    },
    "LayerwiseOffloadLoader": {
        "model_name": "dit",
        "clip_name1": "text_encoder",
        "vae_name": "vae",
        "clip_vision_name": "image_encoder",
    },
}
_NOT_CHOSEN = (None, "none")


def components_behind(prompt: Mapping[str, Any], node_id: str) -> set[str]:
    """The components that the options node `node_id` of `prompt` speaks to."""
    found: set[str] = set()
    for node in prompt.values():
        inputs = node.get("inputs", {})
        wire = inputs.get("options")
        if isinstance(wire, list) and wire and str(wire[0]) == str(node_id):
            found.update(_LOADED_BY.get(node.get("class_type", ""), ()))
            by_input = _BY_INPUT.get(node.get("class_type", ""), {})
            found.update(name for key, name in by_input.items() if inputs.get(key) not in _NOT_CHOSEN)
    return found


def check_options(options: Options, prompt: Mapping[str, Any] | None, node_id: str | None) -> None:
    """Raise SettingsError if the options name a component that none of the connected nodes brings."""
    if not prompt or node_id is None or node_id not in prompt:
        return  # a node that another one made while running: nobody knows what it is connected to
    names = sorted(components_behind(prompt, node_id))
    select(options.selection_text, names)
    for selector in options.names():
        if not match(selector, names):
            raise SettingsError(
                f"asked something of {selector} in Layerwise Offload Options; found that the nodes it is connected to "
                f"bring {', '.join(names) or 'no component at all'}; do connect it to the node that brings {selector}, "
                "or set it back to auto"
            )
