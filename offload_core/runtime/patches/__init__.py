"""Patched weights: host copies of patched layers (`versions`), and changes of tensors outside layers."""

__all__ = ["patched_loose", "versions"]
