"""Turns a node's inputs into files and requests of its components, by the table of nodes, and loads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import (
    NODES,
    NodeContext,
    Requested,
    kind_of_vae,
    load_clip,
    load_clip_vision,
    load_controlnet,
    load_diffusion_model,
    load_order,
    load_vae,
    payloads,
    step_progress,
    widget_settings,
)


@dataclass(frozen=True, slots=True)
class Part:
    """One component that a node is to load."""

    kind: str
    paths: list[str]
    requested: Requested


def node_context(node: type[io.ComfyNode], inputs: Mapping[str, Any]) -> NodeContext:
    """The context of a node, whose schema needs `widgets.HIDDEN`. Raises SettingsError."""
    hidden = node.hidden
    return NodeContext.of(hidden.prompt, hidden.unique_id, inputs.get("options"), inputs.get("graph_options", ""))


def parts_of(node: type[io.ComfyNode], inputs: Mapping[str, Any]) -> list[Part]:
    """The components of a loader node, in the order of its outputs. Raises FileNotFoundError, SettingsError."""
    context = node_context(node, inputs)
    slots = [slot for slot in NODES[node.SCHEMA.node_id] if slot.is_brought(inputs)]
    paths = [[folder_paths.get_full_path_or_raise(slot.folder, name) for name in slot.names(inputs)] for slot in slots]
    parts = []
    for slot, files in zip(slots, paths):
        turned_out = kind_of_vae(files[0]) if slot.folder == "vae" else None
        settings = widget_settings(slot, inputs, context.name(slot.kind, turned_out))
        parts.append(Part(slot.kind, files, context.ask(settings, inputs.get("mode", "auto"))))
    return parts


class LoadsParts:
    """Of a loader node: it loads every component from the component's own files."""

    @classmethod
    def execute(cls: Any, **inputs: Any) -> io.NodeOutput:
        """The components in the order of the outputs; None where no file was chosen."""
        parts = {part.kind: part for part in parts_of(cls, inputs)}
        files = {kind: part.paths for kind, part in parts.items()}
        order = load_order(payloads(files)) if len(parts) > 1 else list(parts)
        show_progress = step_progress(len(order))
        loaded = {}
        for done, kind in enumerate(order, 1):
            loaded[kind] = _LOAD[kind](parts[kind], inputs)
            show_progress(done)
        return io.NodeOutput(*(loaded.get(slot.kind) for slot in NODES[cls.SCHEMA.node_id]))


_LOAD: dict[str, Callable[[Part, Mapping[str, Any]], Any]] = {
    "dit": lambda part, inputs: load_diffusion_model(
        part.paths[0], inputs.get("weight_dtype", "default"), part.requested
    ),
    "text_encoder": lambda part, inputs: load_clip(
        part.paths,
        inputs["clip_type"] if "clip_type" in inputs else inputs["type"],
        part.requested,
        folder_paths.get_folder_paths("embeddings"),
    ),
    "vae": lambda part, inputs: load_vae(part.paths[0], part.requested),
    "image_encoder": lambda part, inputs: load_clip_vision(part.paths[0], part.requested),
    "controlnet": lambda part, inputs: load_controlnet(part.paths[0], part.requested),
}
"""Loading functions by kind; each returns what the app's loader node returns."""
