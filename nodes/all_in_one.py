"""The loader of a whole pipeline in one node."""

from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import (
    CLIP_TYPES,
    VAE_PRECISIONS,
    WEIGHT_DTYPES,
    ComponentSettings,
    Word,
    kind_of_vae,
    load_clip,
    load_clip_vision,
    load_diffusion_model,
    load_order,
    load_vae,
    payloads,
    settings_from,
    step_progress,
)
from .loaders import encoder_paths
from .widgets import (
    HIDDEN,
    NONE,
    gb_input,
    graph_options_input,
    lora_mode_input,
    mode_input,
    options_input,
    placement_input,
    surroundings,
)


class LayerwiseOffloadLoader(io.ComfyNode):
    """Diffusion model, text encoders, VAE and image encoder, each with its own placement."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        encoders = folder_paths.get_filename_list("text_encoders")
        more_encoders = [NONE, *encoders]
        return io.Schema(
            node_id="LayerwiseOffloadLoader",
            display_name="Layerwise Offload Loader",
            category="model/loaders",
            description=(
                "Loads a diffusion model, one to four text encoders, a VAE and, if you like, an image encoder, and "
                "streams their layers from system memory. The picture equals ComfyUI's full load to the bit."
            ),
            search_aliases=["load diffusion model", "load clip", "load vae", "offload", "low vram", "stream layers"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file in models/diffusion_models.",
                ),
                io.Combo.Input("clip_name1", options=encoders, tooltip="A file in models/text_encoders."),
                io.Combo.Input(
                    "clip_type",
                    options=list(CLIP_TYPES),
                    default="stable_diffusion",
                    tooltip="What the text encoders are for, as in ComfyUI's loaders.",
                ),
                io.Combo.Input(
                    "vae_name", options=folder_paths.get_filename_list("vae"), tooltip="A file in models/vae."
                ),
                mode_input(),
                placement_input("dit", "diffusion model", "dit_placement", optional=True),
                placement_input("text_encoder", "text encoder", "clip_placement", optional=True, cpu=True),
                placement_input("vae", "VAE", "vae_placement", optional=True, cpu=True),
                placement_input("image_encoder", "image encoder", "clip_vision_placement", optional=True),
                *(gb_input(name) for name in ("dit_budget_gb", "clip_budget_gb", "vae_budget_gb")),
                gb_input("clip_vision_budget_gb"),
                *(
                    io.Combo.Input(
                        name,
                        options=more_encoders,
                        default=NONE,
                        optional=True,
                        tooltip="Another text encoder; the order is that of ComfyUI's loaders.",
                    )
                    for name in ("clip_name2", "clip_name3", "clip_name4")
                ),
                io.Combo.Input(
                    "clip_vision_name",
                    options=[NONE, *folder_paths.get_filename_list("clip_vision")],
                    default=NONE,
                    optional=True,
                    tooltip="An image encoder, a file in models/clip_vision.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="The type the diffusion model's weights are kept in. default: the file's own.",
                ),
                io.Combo.Input(
                    "vae_precision",
                    options=list(VAE_PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="The type the VAE is kept and computed in. auto: what ComfyUI chooses; bf16 stays bf16.",
                ),
                options_input(),
                graph_options_input(),
                lora_mode_input(),
            ],
            hidden=HIDDEN,
            outputs=[
                io.Model.Output(tooltip="The diffusion model."),
                io.Clip.Output(tooltip="The text encoders."),
                io.Vae.Output(tooltip="The VAE."),
                io.ClipVision.Output(tooltip="The image encoder; nothing if none was chosen."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model_name: str,
        clip_name1: str,
        clip_type: str,
        vae_name: str,
        mode: str = "auto",
        clip_name2: str = NONE,
        clip_name3: str = NONE,
        clip_name4: str = NONE,
        clip_vision_name: str = NONE,
        weight_dtype: str = "default",
        vae_precision: str = "auto",
        options: Word | None = None,
        graph_options: str = "",
        lora_mode: str = "auto",
        **widgets: Any,
    ) -> io.NodeOutput:
        near = surroundings(cls, options, graph_options)
        files = {
            "dit": [folder_paths.get_full_path_or_raise("diffusion_models", model_name)],
            "text_encoder": encoder_paths(clip_name1, clip_name2, clip_name3, clip_name4),
            "vae": [folder_paths.get_full_path_or_raise("vae", vae_name)],
        }
        if clip_vision_name != NONE:
            files["image_encoder"] = [folder_paths.get_full_path_or_raise("clip_vision", clip_vision_name)]
        names = {kind: near.name(kind, kind_of_vae(files["vae"][0]) if kind == "vae" else None) for kind in _WIDGETS}
        asked = {
            kind: near.ask(
                _settings(names[kind], key, widgets, vae_precision if kind == "vae" else "auto", lora_mode), mode
            )
            for kind, key in _WIDGETS.items()
        }
        load = {
            "dit": lambda paths, asked: load_diffusion_model(paths[0], weight_dtype, asked),
            "text_encoder": lambda paths, asked: load_clip(
                paths, clip_type, asked, folder_paths.get_folder_paths("embeddings")
            ),
            "vae": lambda paths, asked: load_vae(paths[0], asked),
            "image_encoder": lambda paths, asked: load_clip_vision(paths[0], asked),
        }
        order = load_order(payloads(files))
        show_progress = step_progress(len(order))
        loaded = {}
        for done, name in enumerate(order, 1):
            loaded[name] = load[name](files[name], asked[name])
            show_progress(done)
        return io.NodeOutput(*(loaded.get(name) for name in _WIDGETS))


_WIDGETS = {"dit": "dit", "text_encoder": "clip", "vae": "vae", "image_encoder": "clip_vision"}
"""Components in the order of the outputs, and how their widgets' names begin."""


_TAKE_LORAS = ("dit", "clip")


def _settings(name: str, key: str, widgets: dict[str, Any], precision: str, lora_mode: str) -> ComponentSettings:
    """What the widgets say about one component."""
    placement, budget = widgets.get(f"{key}_placement", "auto"), widgets.get(f"{key}_budget_gb", 0.0)
    lora_mode = lora_mode if key in _TAKE_LORAS else "auto"
    return settings_from(name, placement, budget, lora_mode=lora_mode).with_value("precision", precision, "node")
