"""Facts about loader nodes, the pack's and the app's: which components each brings, from which files, by which widgets.

`python3 -m tests.support.tables` makes `web/tables.js` of it. The schemas in `nodes/` stay literal, for tools that read
them without running them; `tests/app/test_nodes.py` compares them with this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .component_settings import OF_THE_WORKFLOW, SETTINGS, Setting
from .groups import ALL, DIT, GROUPS, IMAGE_ENCODER, TEXT_ENCODER, VAE

CONTROLNET: Final = "controlnet"
MODEL_PATCH: Final = "model_patch"
AUDIO_ENCODER: Final = "audio_encoder"
UPSCALER: Final = "upscaler"
LATENT_UPSCALER: Final = "latent_upscaler"
FRAME_INTERPOLATOR: Final = "frame_interpolator"
APPLY_ONLY: Final = (MODEL_PATCH, AUDIO_ENCODER, UPSCALER, LATENT_UPSCALER, FRAME_INTERPOLATOR)
"""The kinds that have no loader of ours. The Apply node takes them over, or hands them on as they are and says why."""
TAKE_LORAS: Final = (DIT, TEXT_ENCODER)
"""The kinds whose layers a LoRA changes."""
COMPUTED_ON_CPU: Final = (TEXT_ENCODER, VAE)
"""The kinds that the app's own loaders can compute on the CPU, and so ours."""
DECLARED_AS: Final = {"audio_vae": VAE}
"""Kinds that are known only from their file, and the kind under which their loader node declares them."""

LOADER: Final = "LayerwiseOffloadLoader"
"""The loader of a whole pipeline."""
APPLY: Final = "LayerwiseOffloadApply"
OPTIONS: Final = "LayerwiseOffloadOptions"


def is_chosen(value: object) -> bool:
    """Whether an input names a file, or is connected."""
    return value not in (None, "", "none")


def widget_name(setting: str) -> str:
    """What widgets and graph options call a setting: sizes are in GB there."""
    return setting.replace("_bytes", "_gb")


def is_gb(widget: str) -> bool:
    """Whether a widget, or a graph's setting, of this name is a size in GB; all others are words."""
    return widget.endswith("_gb")


@dataclass(frozen=True, slots=True)
class Slot:
    """One component that a node brings, at the output of the same number.

    kind       the kind of component
    folder     the app's folder of its files; empty: the component comes by a wire
    files      the widgets that name its files
    prefix     how its widgets for placement, budget and ring begin on this node
    needs      the input without which the node does not bring it; empty: it always does
    precision  the widget for its precision; empty: there is none
    workflow   whether the node has the widget of the workflow's budget, which speaks of all its components
    """

    kind: str
    folder: str = ""
    files: tuple[str, ...] = ()
    prefix: str = ""
    needs: str = ""
    precision: str = ""
    workflow: bool = False

    @property
    def widgets(self) -> dict[str, str]:
        """The widget of each setting. A node may lack some of them, which then are on auto."""
        sizes_and_placement = (Setting.PLACEMENT, Setting.BUDGET_BYTES, Setting.RING_BYTES)
        names = {setting: f"{self.prefix}{widget_name(setting)}" for setting in sizes_and_placement}
        if self.kind in TAKE_LORAS:
            names[Setting.LORA_MODE] = Setting.LORA_MODE
        if self.workflow:
            names[Setting.WORKFLOW_BUDGET_BYTES] = widget_name(Setting.WORKFLOW_BUDGET_BYTES)
        return {**names, Setting.PRECISION: self.precision} if self.precision else names

    def is_brought(self, inputs: Mapping[str, object]) -> bool:
        """Whether a node with these inputs brings the component."""
        return not self.needs or is_chosen(inputs.get(self.needs))

    def names(self, inputs: Mapping[str, object]) -> list[object]:
        """The files that the inputs name, in the order of `files`."""
        return [inputs[name] for name in self.files if is_chosen(inputs.get(name))]


_ENCODERS = ("clip_name1", "clip_name2", "clip_name3", "clip_name4")

NODES: Final[dict[str, tuple[Slot, ...]]] = {
    "LayerwiseOffloadDiffusionModelLoader": (Slot(DIT, "diffusion_models", ("model_name",)),),
    "LayerwiseOffloadCLIPLoader": (Slot(TEXT_ENCODER, "text_encoders", _ENCODERS),),
    "LayerwiseOffloadVAELoader": (Slot(VAE, "vae", ("vae_name",), precision="precision"),),
    "LayerwiseOffloadCLIPVisionLoader": (Slot(IMAGE_ENCODER, "clip_vision", ("clip_name",)),),
    "LayerwiseOffloadControlNetLoader": (Slot(CONTROLNET, "controlnet", ("control_net_name",)),),
    "LayerwiseOffloadCheckpointLoader": (
        Slot(DIT, "checkpoints", ("ckpt_name",)),
        Slot(TEXT_ENCODER, "checkpoints", ("ckpt_name",), prefix="clip_"),
        Slot(VAE, "checkpoints", ("ckpt_name",), prefix="vae_"),
    ),
    LOADER: (
        Slot(DIT, "diffusion_models", ("model_name",), prefix="dit_", workflow=True),
        Slot(TEXT_ENCODER, "text_encoders", _ENCODERS, prefix="clip_", workflow=True),
        Slot(VAE, "vae", ("vae_name",), prefix="vae_", precision="vae_precision", workflow=True),
        Slot(
            IMAGE_ENCODER,
            "clip_vision",
            ("clip_vision_name",),
            prefix="clip_vision_",
            needs="clip_vision_name",
            workflow=True,
        ),
    ),
    APPLY: (
        Slot(DIT, needs="model"),
        Slot(TEXT_ENCODER, prefix="clip_", needs="clip"),
        Slot(VAE, prefix="vae_", needs="vae"),
        Slot(IMAGE_ENCODER, prefix="clip_vision_", needs="clip_vision"),
        Slot(CONTROLNET, prefix="control_net_", needs="control_net"),
        Slot(MODEL_PATCH, prefix="model_patch_", needs="model_patch"),
        Slot(AUDIO_ENCODER, prefix="audio_encoder_", needs="audio_encoder"),
        Slot(UPSCALER, prefix="upscale_model_", needs="upscale_model"),
        Slot(LATENT_UPSCALER, prefix="latent_upscale_model_", needs="latent_upscale_model"),
        Slot(FRAME_INTERPOLATOR, prefix="interp_model_", needs="interp_model"),
    ),
}
"""The pack's nodes that bring components, by node id."""

APP_LOADERS: Final[dict[str, tuple[Slot, ...]]] = {
    "UNETLoader": (Slot(DIT, "diffusion_models", ("unet_name",)),),
    "CLIPLoader": (Slot(TEXT_ENCODER, "text_encoders", ("clip_name",)),),
    "DualCLIPLoader": (Slot(TEXT_ENCODER, "text_encoders", _ENCODERS[:2]),),
    "TripleCLIPLoader": (Slot(TEXT_ENCODER, "text_encoders", _ENCODERS[:3]),),
    "QuadrupleCLIPLoader": (Slot(TEXT_ENCODER, "text_encoders", _ENCODERS),),
    "VAELoader": (Slot(VAE, "vae", ("vae_name",)),),
    "CLIPVisionLoader": (Slot(IMAGE_ENCODER, "clip_vision", ("clip_name",)),),
    "ControlNetLoader": (Slot(CONTROLNET, "controlnet", ("control_net_name",)),),
    "CheckpointLoaderSimple": tuple(Slot(kind, "checkpoints", ("ckpt_name",)) for kind in (DIT, TEXT_ENCODER, VAE)),
}
"""The app's loaders that an Apply node may stand behind."""

GRAPH_SETTINGS: Final[dict[str, str]] = {
    widget_name(setting): setting for setting in SETTINGS if setting != Setting.PRECISION
}
"""What the options of a graph and the user's ComfyUI settings can set of a component, by the name it has there."""

OPTIONS_WIDGETS: Final[dict[str, tuple[str, str]]] = {
    widget_name(name): (ALL, name)
    for name in (
        *(Setting.LORA_MODE, Setting.HOST_TIER, Setting.PIN_BUDGET_BYTES, Setting.PEER_BUDGET_BYTES),
        *OF_THE_WORKFLOW,
    )
} | {
    f"{group}_{widget_name(name)}": (group, name)
    for group in GROUPS
    for name in (Setting.PLACEMENT, Setting.BUDGET_BYTES)
}
"""The widgets of the options node: the components that each speaks of, and the setting."""
