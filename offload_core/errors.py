"""The errors of the core. A message says what was asked, what was found and what to do; it fits on one line.

Knows nothing about who shows the message.
"""

from __future__ import annotations

__all__ = ["BudgetError", "OffloadError", "PlanError", "SettingsError", "StateError"]

_SHOWN_CHARS = 80


class OffloadError(Exception):
    """Base of every error this package raises on purpose."""


class SettingsError(OffloadError, ValueError):
    """A setting that cannot be understood, or one the user set that cannot be honoured."""


class BudgetError(OffloadError):
    """A device budget too small for what must be on the device.

    `asked_bytes` is the budget that was asked for, `smallest_bytes` the smallest one that works.
    """

    def __init__(self, message: str, *, asked_bytes: int, smallest_bytes: int) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes
        self.smallest_bytes = smallest_bytes


class PlanError(OffloadError, ValueError):
    """A request, inventory or plan that is not well formed."""

    @classmethod
    def bad_field(cls, field: str, value: object, allowed: str) -> PlanError:
        """The error for one field: names the field, shows the value (shortened) and says what is allowed."""
        return cls(f"{field}: got {shown(value)}; allowed: {allowed}")


class StateError(OffloadError):
    """A call that is right at another time: inside a pass, before a load, after a detach, on a module that others have
    changed meanwhile."""


def shown(value: object) -> str:
    """A value as an error message shows it: one line, at most 80 characters, whatever it holds."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # str() of a huge integer is slow, or refused
    if isinstance(value, (dict, list, tuple)) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)} items"
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
