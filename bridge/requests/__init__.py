"""What users have set for the components of a prompt: by widgets, options nodes, graph options and ComfyUI settings."""

__all__ = ["graph", "node_context", "prompt_files", "requested"]
