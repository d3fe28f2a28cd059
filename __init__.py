"""Layerwise Offload for ComfyUI. Nothing happens at import; the app asks for the nodes through `comfy_entrypoint`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's nodes, imported when the app asks and not before."""
    from .nodes import LayerwiseOffloadExtension

    return LayerwiseOffloadExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
