"""Tensors as bytes: the parts that they are made of, their layout in a flat buffer, and where their bytes come from.

`parts` takes wrapped tensor types apart and is the place to add another one.
"""

__all__ = ["file_rows", "host_source", "layout", "parts", "safetensors_map"]
