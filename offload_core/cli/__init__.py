"""`python3 -m offload_core`: one module per sub-command, and `adviser`, which compares budgets and devices."""

__all__ = ["main"]
