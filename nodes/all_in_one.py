"""The loader of a whole pipeline in one node."""

from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import CLIP_TYPES, VAE_PRECISIONS, WEIGHT_DTYPES
from .parts import load_parts
from .widgets import (
    HIDDEN,
    NONE,
    gb_input,
    graph_options_input,
    lora_mode_input,
    mode_input,
    options_input,
    placement_input,
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
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return load_parts(cls, "LayerwiseOffloadLoader", inputs)
