"""What the nodes may use: one import for them, one place to look for what the bridge promises."""

from ..offload_core.errors import OffloadError
from ..offload_core.settings import ComponentSettings, bytes_from_gb
from .loading import WEIGHT_DTYPES, load_diffusion_model, wrap

__all__ = ["WEIGHT_DTYPES", "ComponentSettings", "OffloadError", "bytes_from_gb", "load_diffusion_model", "wrap"]
