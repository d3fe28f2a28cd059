"""Weights in host memory: the masters and who shares them, a layer's host side, the parameters that show it."""

__all__ = ["host_layer", "host_parameter", "masters"]
