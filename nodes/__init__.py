"""The pack's nodes: schemas and translation, no arithmetic. One file per family."""

import logging

from comfy_api.v0_0_2 import ComfyExtension, io

log = logging.getLogger(__name__)


class LayerwiseOffloadExtension(ComfyExtension):
    """What the app loads: the node list, and the routes before the server starts."""

    async def on_load(self) -> None:
        from ..bridge import routes

        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        try:
            from .apply import LayerwiseOffloadApply
            from .loaders import LayerwiseOffloadDiffusionModelLoader
        except Exception:
            log.exception("Layerwise Offload: the nodes could not be loaded")  # the app prints one line only
            raise
        return [LayerwiseOffloadDiffusionModelLoader, LayerwiseOffloadApply]
