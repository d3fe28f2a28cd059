"""Bytes from a model's file: read in slices, around the page cache where it is too small. Knows no layers."""

__all__ = ["direct_read", "weight_file"]
