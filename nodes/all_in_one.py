"""The loader node of a whole pipeline."""

from typing import Any

from comfy_api.v0_0_2 import io

from .parts import load_parts
from .widgets import (
    HIDDEN,
    clip_type_input,
    file_input,
    further_encoder_inputs,
    gb_input,
    mode_input,
    placement_input,
    precision_input,
    shared_inputs,
    weight_dtype_input,
)


class LayerwiseOffloadLoader(io.ComfyNode):
    """Diffusion model, text encoders, VAE and image encoder, each with its own placement."""

    @classmethod
    def define_schema(cls) -> io.Schema:
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
                file_input("model_name", "diffusion_models"),
                file_input("clip_name1", "text_encoders"),
                clip_type_input("clip_type", "text encoders"),
                file_input("vae_name", "vae"),
                mode_input(),
                placement_input("dit", "diffusion model", "dit_placement", optional=True),
                placement_input("text_encoder", "text encoder", "clip_placement", optional=True, cpu=True),
                placement_input("vae", "VAE", "vae_placement", optional=True, cpu=True),
                placement_input("image_encoder", "image encoder", "clip_vision_placement", optional=True),
                *(gb_input(name) for name in ("dit_budget_gb", "clip_budget_gb", "vae_budget_gb")),
                gb_input("clip_vision_budget_gb"),
                *further_encoder_inputs("Another text encoder; the order is that of ComfyUI's loaders."),
                file_input(
                    "clip_vision_name", "clip_vision", "An image encoder, a file in models/clip_vision.", optional=True
                ),
                weight_dtype_input(
                    "The type the diffusion model's weights are kept in. default: the file's own.", optional=True
                ),
                precision_input("vae_precision", optional=True),
                *shared_inputs(loras=True),
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
