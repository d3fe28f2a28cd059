"""Bytes that a component may use (`allowances`), and the host memory of all components."""

__all__ = ["allowances", "host_memory"]
