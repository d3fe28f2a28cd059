"""Loading: the app's loaders build our `patcher`; one function per kind of file, and what takes over loaded models."""

__all__ = ["loaders", "patcher", "wrapping"]
