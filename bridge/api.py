"""The interface of the bridge for the nodes, which import nothing else of it."""

from ..offload_core.errors import OffloadError, SettingsError
from ..offload_core.groups import GROUPS
from ..offload_core.load_order import load_order
from ..offload_core.node_table import COMPUTED_ON_CPU, NODES, Slot
from ..offload_core.policy import MODES
from ..offload_core.settings import HOST_TIERS, LORA_MODES, PLACEMENTS, ComponentSettings
from .asked import Asked, Word, options_word, widget_settings
from .file_kinds import kind_of_vae, payloads
from .graph import check_options
from .loaders import (
    CLIP_TYPES,
    VAE_PRECISIONS,
    WEIGHT_DTYPES,
    load_checkpoint,
    load_clip,
    load_clip_vision,
    load_controlnet,
    load_diffusion_model,
    load_vae,
)
from .recording import step_progress
from .report import live_document, report_image
from .report_text import report_json, report_text
from .surroundings import Surroundings
from .wrapping import wrap_clip, wrap_clip_vision, wrap_controlnet, wrap_model, wrap_vae

__all__ = [
    "CLIP_TYPES",
    "COMPUTED_ON_CPU",
    "GROUPS",
    "HOST_TIERS",
    "LORA_MODES",
    "MODES",
    "NODES",
    "PLACEMENTS",
    "VAE_PRECISIONS",
    "WEIGHT_DTYPES",
    "Asked",
    "ComponentSettings",
    "OffloadError",
    "SettingsError",
    "Slot",
    "Surroundings",
    "Word",
    "check_options",
    "kind_of_vae",
    "live_document",
    "load_checkpoint",
    "load_clip",
    "load_clip_vision",
    "load_controlnet",
    "load_diffusion_model",
    "load_order",
    "load_vae",
    "options_word",
    "payloads",
    "report_image",
    "report_json",
    "report_text",
    "step_progress",
    "widget_settings",
    "wrap_clip",
    "wrap_clip_vision",
    "wrap_controlnet",
    "wrap_model",
    "wrap_vae",
]
