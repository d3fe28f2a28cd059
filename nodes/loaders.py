"""Loader nodes: one of a whole pipeline, and those that replace the app's loaders, one per kind of file."""

from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import load_checkpoint
from .parts import LoadsParts, parts_of
from .widgets import (
    ADVANCED,
    HIDDEN,
    clip_type_input,
    file_input,
    further_encoder_inputs,
    gb_input,
    mode_input,
    placement_input,
    placement_inputs,
    precision_input,
    shared_inputs,
    weight_dtype_input,
)

_WORKFLOW_BUDGET_TOOLTIP = (
    "VRAM that the weights of all models of the workflow together may take while one of these is used, in GB (1 GB = "
    "1,000,000,000 bytes). It is divided among them by when they run; a budget of a model counts within it. 0 = auto: "
    "each for itself."
)


class LayerwiseOffloadLoader(LoadsParts, io.ComfyNode):
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
                placement_input("dit", "diffusion model", "dit_placement", **ADVANCED),
                placement_input("text_encoder", "text encoder", "clip_placement", cpu=True, **ADVANCED),
                placement_input("vae", "VAE", "vae_placement", cpu=True, **ADVANCED),
                placement_input("image_encoder", "image encoder", "clip_vision_placement", **ADVANCED),
                *(gb_input(f"{of}_budget_gb", advanced=True) for of in ("dit", "clip", "vae", "clip_vision")),
                *further_encoder_inputs("Another text encoder; the order is that of ComfyUI's loaders."),
                file_input(
                    "clip_vision_name", "clip_vision", "An image encoder, a file in models/clip_vision.", optional=True
                ),
                weight_dtype_input(
                    "The type the diffusion model's weights are kept in. default: the file's own.", optional=True
                ),
                precision_input("vae_precision", optional=True),
                *shared_inputs(loras=True),
                gb_input("workflow_budget_gb", _WORKFLOW_BUDGET_TOOLTIP),  # the one budget that is seen
            ],
            hidden=HIDDEN,
            outputs=[
                io.Model.Output(tooltip="The diffusion model."),
                io.Clip.Output(tooltip="The text encoders."),
                io.Vae.Output(tooltip="The VAE."),
                io.ClipVision.Output(tooltip="The image encoder; nothing if none was chosen."),
            ],
        )


class LayerwiseOffloadDiffusionModelLoader(LoadsParts, io.ComfyNode):
    """Load Diffusion Model, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadDiffusionModelLoader",
            display_name="Layerwise Offload Loader (Diffusion Model)",
            category="model/loaders",
            description=(
                "Loads a diffusion model whose layers are streamed from system memory through a small part of VRAM, "
                "ahead of the compute. Stands where Load Diffusion Model was; the picture equals ComfyUI's full load "
                "to the bit."
            ),
            search_aliases=["load diffusion model", "unet loader", "offload", "low vram", "stream layers"],
            inputs=[
                file_input("model_name", "diffusion_models"),
                weight_dtype_input(
                    "As in Load Diffusion Model: the type the weights are kept in. default: the file's own."
                ),
                *placement_inputs(),
                *shared_inputs(loras=True),
            ],
            hidden=HIDDEN,
            outputs=[io.Model.Output(tooltip="The model. Use it like any other: LoRA, samplers, model patches.")],
        )


class LayerwiseOffloadCLIPLoader(LoadsParts, io.ComfyNode):
    """Load CLIP for one to four files, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadCLIPLoader",
            display_name="Layerwise Offload Loader (CLIP)",
            category="model/loaders",
            description=(
                "Loads one to four text encoders as one CLIP and streams their layers, so that a new prompt does not "
                "throw the diffusion model out of VRAM. Stands where Load CLIP, DualCLIPLoader and the like were."
            ),
            search_aliases=["load clip", "dual clip loader", "triple clip loader", "quadruple clip loader", "offload"],
            inputs=[
                file_input("clip_name1", "text_encoders"),
                clip_type_input("type", "encoders"),
                *placement_inputs("text_encoder", "text encoder", cpu=True),
                *further_encoder_inputs("Another encoder of the same CLIP; the order is that of ComfyUI's loaders."),
                *shared_inputs(loras=True),
            ],
            hidden=HIDDEN,
            outputs=[io.Clip.Output(tooltip="The text encoders. Use them like those of any other loader.")],
        )


class LayerwiseOffloadVAELoader(LoadsParts, io.ComfyNode):
    """Load VAE, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadVAELoader",
            display_name="Layerwise Offload Loader (VAE)",
            category="model/loaders",
            description="Loads a VAE and streams its layers. Stands where Load VAE was; the picture is the same.",
            search_aliases=["load vae", "vae loader", "offload", "low vram"],
            inputs=[
                file_input("vae_name", "vae"),
                precision_input("precision"),
                *placement_inputs("vae", "VAE", cpu=True),
                *shared_inputs(),
            ],
            hidden=HIDDEN,
            outputs=[io.Vae.Output(tooltip="The VAE. Use it like that of any other loader.")],
        )


class LayerwiseOffloadCLIPVisionLoader(LoadsParts, io.ComfyNode):
    """Load CLIP Vision, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadCLIPVisionLoader",
            display_name="Layerwise Offload Loader (CLIP Vision)",
            category="model/loaders",
            description="Loads an image encoder and streams its layers. Stands where Load CLIP Vision was.",
            search_aliases=["load clip vision", "image encoder", "siglip", "dinov2", "offload"],
            inputs=[
                file_input("clip_name", "clip_vision"),
                *placement_inputs("image_encoder", "image encoder"),
                *shared_inputs(),
            ],
            hidden=HIDDEN,
            outputs=[io.ClipVision.Output(tooltip="The image encoder. Use it like that of any other loader.")],
        )


class LayerwiseOffloadControlNetLoader(LoadsParts, io.ComfyNode):
    """Load ControlNet Model, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadControlNetLoader",
            display_name="Layerwise Offload Loader (ControlNet)",
            category="model/loaders",
            description=(
                "Loads a ControlNet whose layers are streamed when asked for: it runs inside the diffusion model's "
                "step and shares copy queue and ring with it. Stands where Load ControlNet Model was."
            ),
            search_aliases=["load controlnet", "controlnet loader", "offload", "low vram"],
            inputs=[
                file_input(
                    "control_net_name", "controlnet", "A file in models/controlnet that brings weights of its own."
                ),
                *placement_inputs("controlnet", "ControlNet"),
                *shared_inputs(),
            ],
            hidden=HIDDEN,
            outputs=[io.ControlNet.Output(tooltip="The ControlNet. Use it like that of any other loader.")],
        )


class LayerwiseOffloadCheckpointLoader(io.ComfyNode):
    """Load Checkpoint, with the layers of all three parts streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadCheckpointLoader",
            display_name="Layerwise Offload Loader (Checkpoint)",
            category="model/loaders",
            description=(
                "Loads a checkpoint and streams the layers of its diffusion model, text encoders and VAE. Stands where "
                "Load Checkpoint was; the picture equals ComfyUI's full load to the bit."
            ),
            search_aliases=["load checkpoint", "checkpoint loader", "offload", "low vram"],
            inputs=[
                file_input("ckpt_name", "checkpoints"),
                *placement_inputs(),
                placement_input("text_encoder", "text encoder", "clip_placement", optional=True),
                placement_input("vae", "VAE", "vae_placement", optional=True),
                *shared_inputs(loras=True),
            ],
            hidden=HIDDEN,
            outputs=[
                io.Model.Output(tooltip="The diffusion model."),
                io.Clip.Output(tooltip="The text encoders; nothing if the checkpoint brings none."),
                io.Vae.Output(tooltip="The VAE; nothing if the checkpoint brings none."),
            ],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        parts = parts_of(cls, inputs)
        requested = {part.kind: part.requested for part in parts}
        return io.NodeOutput(
            *load_checkpoint(parts[0].paths[0], requested, folder_paths.get_folder_paths("embeddings"))
        )
