"""The options node: settings for many components, weaker than the widgets of loader and Apply nodes."""

from typing import Any

from comfy_api.v0_0_2 import io

from ..bridge.api import (
    COMPUTED_ON_CPU,
    GROUPS,
    HOST_TIERS,
    check_options,
    computes_on_cpu,
    device_names,
    options_request,
    wrong_host_tier,
)
from .widgets import HIDDEN, OPTIONS, choice_input, gb_input, lora_mode_input, mode_input, placement_input

_GROUPS = dict(zip(GROUPS, ("diffusion model", "text encoder", "image encoder", "VAE")))
_HOST_TIER_TOOLTIP = (
    "Where streamed layers wait between their uses, for all components. The picture is the same.\n"
    "auto: in page-locked system memory as far as there is room, then ordinary memory, then read from the file.\n"
    "pinned: all of them page-locked, the fastest, or an error.\n"
    "pageable: all of them in ordinary memory, or an error. Nothing is read from the disk while a model runs.\n"
    "mapped: none of them in memory; read from the file in every step. Least memory, as slow as the disk.\n"
    "Another device of this machine, such as cuda:1: in its memory as far as there is room, the others as with auto."
)
_PIN_BUDGET_TOOLTIP = (
    "System memory that each model may page-lock for its streamed layers, in GB (1 GB = 1,000,000,000 bytes). The rest "
    "is kept in ordinary memory, which copies more slowly. 0 = auto: what the machine can spare."
)

_PEER_BUDGET_TOOLTIP = (
    "Memory of the device that host_tier names that the streamed layers of each model may take, in GB (1 GB = "
    "1,000,000,000 bytes). 0 = auto: what is free there. Without effect where host_tier names no device."
)
_WORKFLOW_BUDGET_TOOLTIP = (
    "VRAM that the weights of all these models together may take at any moment, in GB (1 GB = 1,000,000,000 bytes). It "
    "is divided among them by when they run; a budget of a model counts within it. 0 = auto: each for itself."
)
_WORKFLOW_HOST_TOOLTIP = (
    "System memory that copies of streamed layers may take, of all these models together, in GB (1 GB = 1,000,000,000 "
    "bytes). What has no room is read from its file. 0 = auto: what the machine can spare."
)


class LayerwiseOffloadOptions(io.ComfyNode):
    """Mode, selection, placements and budgets for the nodes it is connected to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LayerwiseOffloadOptions",
            display_name="Layerwise Offload Options",
            category="model/patch",
            description=(
                "Settings for any number of Layerwise Offload nodes, in one place. What a widget of such a node says "
                "is stronger; whatever is on auto everywhere is decided when a component is loaded."
            ),
            search_aliases=["offload", "low vram", "memory mode", "vram budget"],
            inputs=[
                mode_input(),
                io.String.Input(
                    "selection",
                    default="",
                    optional=True,
                    tooltip=(
                        "Components to stream, separated by commas: dit, text_encoder, image_encoder, vae, default "
                        "(the last three), all, or an exact name such as controlnet. Others are left to ComfyUI. "
                        "Empty = auto."
                    ),
                ),
                *(
                    placement_input(group, what, f"{group}_placement", optional=True, cpu=group in COMPUTED_ON_CPU)
                    for group, what in _GROUPS.items()
                ),
                *(
                    gb_input(
                        f"{group}_budget_gb",
                        f"VRAM that the weights of each {what} may take, in GB (1 GB = 1,000,000,000 bytes). 0 = auto.",
                        advanced=True,
                    )
                    for group, what in _GROUPS.items()
                ),
                lora_mode_input(),
                choice_input(
                    "host_tier", [*HOST_TIERS, *device_names()], _HOST_TIER_TOOLTIP, optional=True, advanced=True
                ),
                gb_input("pin_budget_gb", _PIN_BUDGET_TOOLTIP, advanced=True),
                gb_input("workflow_budget_gb", _WORKFLOW_BUDGET_TOOLTIP),
                gb_input("workflow_host_gb", _WORKFLOW_HOST_TOOLTIP, advanced=True),
                gb_input("peer_budget_gb", _PEER_BUDGET_TOOLTIP, advanced=True),
            ],
            outputs=[
                OPTIONS.Output(display_name="options", tooltip="Connect it to the options of Layerwise Offload nodes.")
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def validate_inputs(cls, host_tier: str | None = "auto") -> bool | str:
        """Our own check of `host_tier`, instead of the app's: a workflow may name a device of another machine.

        None: it is linked, and its value is checked when it is there.
        """
        if host_tier is None:
            return True
        return wrong_host_tier(host_tier, None if computes_on_cpu() else device_names()) or True

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        options = options_request(inputs)
        check_options(options, cls.hidden.prompt, cls.hidden.unique_id)
        return io.NodeOutput(options)
