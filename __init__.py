"""Layerwise Offload for ComfyUI. Nothing happens at import; the app asks for the nodes through `comfy_entrypoint`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """The pack's nodes, imported when the app asks and not before. What this app lacks for them is said in its log."""
    from .bridge.app import compat

    compat.look()
    from .nodes import LayerwiseOffloadExtension

    return LayerwiseOffloadExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
