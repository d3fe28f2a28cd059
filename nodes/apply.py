"""Apply nodes: stand behind any loader and take over what it loaded."""

from comfy_api.v0_0_2 import io

from ..bridge.api import wrap
from .widgets import placement_inputs, settings_from


class LayerwiseOffloadApply(io.ComfyNode):
    """Layerwise offload for a model that another node has loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadApply",
            display_name="Layerwise Offload Apply",
            category="model/patch",
            description=(
                "Streams the layers of a model that any loader has loaded. Put it right behind the loader. For a model "
                "loaded under Dynamic VRAM the file is read a second time; the Layerwise Offload Loader reads it once."
            ),
            search_aliases=["offload", "low vram", "stream layers"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose layers are to be streamed."),
                *placement_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The same model, streamed.")],
        )

    @classmethod
    def execute(cls, model, placement: str, budget_gb: float = 0.0, ring_gb: float = 0.0) -> io.NodeOutput:
        patcher, _ = wrap(model, settings_from("dit", placement, budget_gb, ring_gb))
        return io.NodeOutput(patcher)
