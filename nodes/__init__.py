"""The pack's nodes: schemas and translation, no arithmetic. One file per family."""

import logging

from comfy_api.v0_0_2 import ComfyExtension, io

log = logging.getLogger(__name__)


class LayerwiseOffloadExtension(ComfyExtension):
    """The entry point of the app: the node list, and the HTTP routes, registered before the server starts."""

    async def on_load(self) -> None:
        from ..bridge.server.start import start

        start()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        try:
            from .apply import LayerwiseOffloadApply
            from .loaders import (
                LayerwiseOffloadCheckpointLoader,
                LayerwiseOffloadCLIPLoader,
                LayerwiseOffloadCLIPVisionLoader,
                LayerwiseOffloadControlNetLoader,
                LayerwiseOffloadDiffusionModelLoader,
                LayerwiseOffloadLoader,
                LayerwiseOffloadVAELoader,
            )
            from .options import LayerwiseOffloadOptions
            from .report import LayerwiseOffloadReport
        except Exception:
            log.exception("Layerwise Offload: the nodes could not be loaded")  # the app prints one line only
            raise
        return [
            LayerwiseOffloadLoader,
            LayerwiseOffloadDiffusionModelLoader,
            LayerwiseOffloadCheckpointLoader,
            LayerwiseOffloadCLIPLoader,
            LayerwiseOffloadVAELoader,
            LayerwiseOffloadCLIPVisionLoader,
            LayerwiseOffloadControlNetLoader,
            LayerwiseOffloadApply,
            LayerwiseOffloadOptions,
            LayerwiseOffloadReport,
        ]
