"""The widgets that several nodes share, and what they say as settings. A widget on auto (or 0) says nothing."""

from comfy_api.v0_0_2 import io

from ..bridge.api import ComponentSettings, bytes_from_gb

PLACEMENTS = ["auto", "layerwise", "resident", "whole"]

_PLACEMENT_TOOLTIP = (
    "Where the weights live while the model runs.\n"
    "auto: as many layers as fit stay in VRAM, the others are streamed.\n"
    "layerwise: the same, said by you and so never overridden.\n"
    "resident: all of it in VRAM, or an error.\n"
    "whole: ComfyUI's ordinary way, as if this node were not there."
)
_BUDGET_TOOLTIP = (
    "VRAM that the weights of this model may take, in GB (1 GB = 1,000,000,000 bytes): streamed layers, resident layers "
    "and everything else together. 0 = auto: what ComfyUI has left for it. Never exceeded; too small a budget is an "
    "error that names the smallest that works."
)
_RING_TOOLTIP = (
    "VRAM of the ring through which layers are streamed, in GB, part of the budget. 0 = auto: chosen by the planner."
)


def placement_inputs() -> list[io.Input]:
    """Placement, budget and ring: optional, so that saved API prompts stay valid when inputs are added."""
    return [
        io.Combo.Input("placement", options=PLACEMENTS, default="auto", tooltip=_PLACEMENT_TOOLTIP),
        io.Float.Input(
            "budget_gb",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.01,
            optional=True,
            tooltip=_BUDGET_TOOLTIP,
        ),
        io.Float.Input(
            "ring_gb",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip=_RING_TOOLTIP,
        ),
    ]


def settings_from(component: str, placement: str, budget_gb: float, ring_gb: float) -> ComponentSettings:
    """What the widgets of a node say."""
    return (
        ComponentSettings(component)
        .with_value("placement", placement, "node")
        .with_value("budget_bytes", bytes_from_gb(budget_gb, "budget_gb"), "node")
        .with_value("ring_bytes", bytes_from_gb(ring_gb, "ring_gb"), "node")
    )
