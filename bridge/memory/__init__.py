"""Bytes that a component may use (`allowances`), on another device too (`peers`), and the host memory of all
components."""

__all__ = ["allowances", "host_memory", "peers"]
