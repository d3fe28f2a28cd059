"""Loader nodes: stand where the app's loaders stand."""

import folder_paths
from comfy_api.v0_0_2 import io

from ..bridge.api import WEIGHT_DTYPES, load_diffusion_model
from .widgets import placement_inputs, settings_from


class LayerwiseOffloadDiffusionModelLoader(io.ComfyNode):
    """Load Diffusion Model, with the layers streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadDiffusionModelLoader",
            display_name="Layerwise Offload Loader (Diffusion Model)",
            category="model/loaders",
            description=(
                "Loads a diffusion model whose layers are streamed from system memory through a small part of VRAM, ahead "
                "of the compute. Stands where Load Diffusion Model was; the picture is the same to the bit."
            ),
            search_aliases=["load diffusion model", "unet loader", "offload", "low vram", "stream layers"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="As in Load Diffusion Model: the type the weights are kept in. default: the file's own.",
                ),
                *placement_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model. Use it like any other: LoRA, samplers, model patches.")],
        )

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str, placement: str, budget_gb: float = 0.0, ring_gb: float = 0.0
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", model_name)
        return io.NodeOutput(
            load_diffusion_model(path, weight_dtype, settings_from("dit", placement, budget_gb, ring_gb))
        )
