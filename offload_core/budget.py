"""Ceilings and link rates: how much of a device may be used, and how fast bytes reach it.

Plain data; `None` always means "nobody set it". Knows nothing about how a device is asked for these figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from .fields import as_bytes, as_name, as_rate

__all__ = ["DEFAULT_LINK", "DeviceBudget", "LinkSpeed"]


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """What one component may use of one device, in bytes.

    `budget_bytes` and `ring_bytes` are settings, `total_bytes` and `free_bytes` are what the device reported.
    """

    device: str
    budget_bytes: int | None
    ring_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None

    def __post_init__(self) -> None:
        as_name("device", self.device)
        for field in ("budget_bytes", "ring_bytes", "total_bytes", "free_bytes"):
            value = getattr(self, field)
            if value is not None:
                as_bytes(field, value)

    def clamped(self) -> tuple[int | None, str | None]:
        """The budget no larger than the device, and a sentence for the plan's decisions if that changed it."""
        if self.budget_bytes is None or self.total_bytes is None or self.budget_bytes <= self.total_bytes:
            return self.budget_bytes, None
        note = (
            f"a budget of {self.budget_bytes / 1e9:.2f} GB was asked for; {self.device} has "
            f"{self.total_bytes / 1e9:.2f} GB, which is used as the budget"
        )
        return self.total_bytes, note


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """Bytes per second from pinned host memory to the device, and where the figure comes from."""

    h2d_bytes_per_s: float
    source: str = "assumed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "h2d_bytes_per_s", as_rate("h2d_bytes_per_s", self.h2d_bytes_per_s))
        as_name("source", self.source)


DEFAULT_LINK = LinkSpeed(25e9, "assumed: PCIe 4.0 x16")
