"""The Apply node, which takes over models that any loader has loaded."""

from typing import Any

from comfy_api.v0_0_2 import io

from ..bridge.api import NODES, widget_settings, wrap
from .parts import node_context
from .widgets import ADVANCED, HIDDEN, placement_input, placement_inputs, shared_inputs

INTERP_MODEL = io.Custom("INTERP_MODEL")
"""A frame interpolation model, as the app's own nodes call it."""


class LayerwiseOffloadApply(io.ComfyNode):
    """Layerwise offload for models that other nodes have loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadApply",
            display_name="Layerwise Offload Apply",
            category="model/patch",
            description=(
                "Streams the layers of models that any loader has loaded. Put it right behind the loader. For a model "
                "loaded under Dynamic VRAM the file is read a second time; the Layerwise Offload Loader reads it once."
            ),
            search_aliases=["offload", "low vram", "stream layers"],
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The model whose layers are to be streamed."),
                *placement_inputs(),
                io.Clip.Input("clip", optional=True, tooltip="Text encoders whose layers are to be streamed."),
                io.Vae.Input("vae", optional=True, tooltip="A VAE whose layers are to be streamed."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="An image encoder to be streamed."),
                io.ControlNet.Input("control_net", optional=True, tooltip="A ControlNet to be streamed."),
                placement_input("text_encoder", "text encoder", "clip_placement", optional=True),
                placement_input("vae", "VAE", "vae_placement", optional=True),
                placement_input("image_encoder", "image encoder", "clip_vision_placement", optional=True),
                placement_input("controlnet", "ControlNet", "control_net_placement", optional=True),
                *shared_inputs(loras=True),
                io.ModelPatch.Input("model_patch", optional=True, tooltip="A model patch to be streamed."),
                io.AudioEncoder.Input("audio_encoder", optional=True, tooltip="An audio encoder to be streamed."),
                io.UpscaleModel.Input("upscale_model", optional=True, tooltip="An upscale model to be streamed."),
                io.LatentUpscaleModel.Input(
                    "latent_upscale_model", optional=True, tooltip="A latent upscale model to be streamed."
                ),
                INTERP_MODEL.Input(
                    "interp_model", optional=True, tooltip="A frame interpolation model to be streamed."
                ),
                placement_input("model_patch", "model patch", "model_patch_placement", **ADVANCED),
                placement_input("audio_encoder", "audio encoder", "audio_encoder_placement", **ADVANCED),
                placement_input("upscaler", "upscale model", "upscale_model_placement", **ADVANCED),
                placement_input(
                    "latent_upscaler", "latent upscale model", "latent_upscale_model_placement", **ADVANCED
                ),
                placement_input(
                    "frame_interpolator", "frame interpolation model", "interp_model_placement", **ADVANCED
                ),
            ],
            hidden=HIDDEN,
            outputs=[
                io.Model.Output(tooltip="The same model, streamed."),
                io.Clip.Output(tooltip="The same text encoders, streamed; nothing if none are connected."),
                io.Vae.Output(tooltip="The same VAE, streamed; nothing if none is connected."),
                io.ClipVision.Output(tooltip="The same image encoder, streamed; nothing if none is connected."),
                io.ControlNet.Output(tooltip="The same ControlNet, streamed; nothing if none is connected."),
                io.ModelPatch.Output(tooltip="The same model patch; nothing if none is connected."),
                io.AudioEncoder.Output(tooltip="The same audio encoder; nothing if none is connected."),
                io.UpscaleModel.Output(tooltip="The same upscale model; nothing if none is connected."),
                io.LatentUpscaleModel.Output(tooltip="The same latent upscale model; nothing if none is connected."),
                INTERP_MODEL.Output(tooltip="The same frame interpolation model; nothing if none is connected."),
            ],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        context = node_context(cls, inputs)
        wrapped = []
        for slot in NODES["LayerwiseOffloadApply"]:
            model = inputs.get(slot.needs)
            if model is not None:
                settings = widget_settings(slot, inputs, context.name(slot.kind))
                model = wrap(model, slot.kind, settings, context)
            wrapped.append(model)
        return io.NodeOutput(*wrapped)
