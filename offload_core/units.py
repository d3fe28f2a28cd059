"""Bytes, times and counts as text for people. GB are 10^9 bytes."""

from __future__ import annotations


def format_bytes(size_bytes: int) -> str:
    """Bytes for people: "23.70 GB", "679.5 MB", "512 B"."""
    for unit, scale, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("KB", 10**3, 1)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.{digits}f} {unit}"
    return f"{size_bytes} B"


def format_ns(time_ns: int) -> str:
    """A duration for people: "1.42 s", "437.1 ms", "12 us", "340 ns"."""
    if abs(time_ns) >= 10**9:
        return f"{time_ns / 1e9:.2f} s"
    if abs(time_ns) >= 10**6:
        return f"{time_ns / 1e6:.1f} ms"
    return f"{time_ns / 1e3:.0f} us" if abs(time_ns) >= 10**4 else f"{time_ns} ns"


def count(number: int, singular: str, plural: str) -> str:
    """How many of something there are, for people: "1 pass", "0 passes"."""
    return f"{number} {singular if number == 1 else plural}"


def gb_at_least(size_bytes: int) -> str:
    """Bytes in GB, rounded up to the figure shown, so that giving that much is enough: "1.21 GB"."""
    digits = 2 if size_bytes >= 10**8 else 9
    scale = 10 ** (9 - digits)
    return f"{-(-size_bytes // scale) / 10**digits:.{digits}f} GB"


def widget_gb_at_least(size_bytes: int) -> float:
    """Bytes in GB, rounded up to 0.01 GB: what a widget or setting that takes a budget can hold, and is enough."""
    return -(-size_bytes // 10**7) / 100
