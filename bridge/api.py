"""The interface of the bridge for the nodes, which import nothing else of it."""

from ..offload_core.errors import OffloadError, SettingsError
from ..offload_core.settings.component_settings import HOST_TIERS, LORA_MODES, PLACEMENTS, ComponentSettings
from ..offload_core.settings.groups import GROUPS, load_order
from ..offload_core.settings.node_table import COMPUTED_ON_CPU, NODES
from ..offload_core.settings.policy import MODES
from .app.recording import step_progress
from .load.file_kinds import kind_of_vae, payloads
from .load.loaders import (
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
from .load.wrapping import wrap
from .report.document import live_document, report_image
from .report.text import report_text
from .requests.graph import check_options
from .requests.node_context import NodeContext
from .requests.requested import Requested, SourceRequest, options_request, widget_settings

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
    "ComponentSettings",
    "NodeContext",
    "OffloadError",
    "Requested",
    "SettingsError",
    "SourceRequest",
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
    "options_request",
    "payloads",
    "report_image",
    "report_text",
    "step_progress",
    "widget_settings",
    "wrap",
]
