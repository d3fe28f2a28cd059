"""What is done when the app loads the pack: its patcher is compared with the app's, and the routes are registered."""

from __future__ import annotations

from ..app import compat
from ..load.patcher import REPLACED, LayerwiseModelPatcher
from . import routes


def start() -> None:
    """Called before the app's server starts."""
    compat.compare(LayerwiseModelPatcher, REPLACED)
    routes.register()
