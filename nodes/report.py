"""The report node: settings with their sources, plans, and the measurements of the last run."""

import json
from typing import Any

from comfy_api.v0_0_2 import io, ui

from ..bridge.api import live_document, report_image, report_text


class LayerwiseOffloadReport(io.ComfyNode):
    """Passes its input through and shows the plan and the last run of every component."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadReport",
            display_name="Layerwise Offload Report",
            category="model/patch",
            description=(
                "Shows, for every component under layerwise offload, its settings and who set them, the plan, and what "
                "the run cost. Put it behind the node whose work it is to report on: it passes its input through."
            ),
            search_aliases=["offload", "vram report", "memory report"],
            inputs=[
                io.AnyType.Input(
                    "value",
                    tooltip="Anything: the report is made when this has been computed. A sampler's latent, say.",
                ),
            ],
            outputs=[
                io.AnyType.Output(display_name="value", tooltip="What went in, unchanged."),
                io.String.Output(display_name="text", tooltip="The report for people."),
                io.String.Output(display_name="plan_json", tooltip="The report for programs, as by HTTP."),
                io.Image.Output(
                    display_name="image",
                    tooltip="The report as a picture: memory, where every layer is, copies over compute in one pass.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs: Any) -> float:
        return float("nan")  # never cached: the report changes with every run

    @classmethod
    def execute(cls, value: Any) -> io.NodeOutput:
        document = live_document()
        text = report_text(document)
        image = report_image(document)
        # Shown by web/node_widgets.js: the app clears a node's progress text when its job ends.
        return io.NodeOutput(value, text, json.dumps(document, indent=1), image, ui=ui.PreviewText(text))
