"""Bytes that a component may use (`allowances`), the host memory of all components, and memory given back."""

__all__ = ["allowances", "giving_back", "host_memory"]
