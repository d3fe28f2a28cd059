"""The errors of the core. A message says in one line what was asked, what was found and what to do."""

from __future__ import annotations

_SHOWN_CHARS = 80


class OffloadError(Exception):
    """Base of the errors that this package raises intentionally."""


class SettingsError(OffloadError, ValueError):
    """A malformed setting, or a setting of the user that cannot be applied."""

    @classmethod
    def refused(cls, what: str, value: object, problem: str, do: str) -> SettingsError:
        """The error for one value (shortened), with what is wrong with it and what to do."""
        return cls(f"asked {what} = {shown(value)}; found that it {problem}; do {do}")


class BudgetError(OffloadError):
    """A budget that is smaller than what is needed.

    `asked_bytes` is the requested budget, `smallest_bytes` the smallest one that works, `setting` the one that it is.
    """

    def __init__(self, message: str, *, asked_bytes: int, smallest_bytes: int, setting: str = "budget_bytes") -> None:
        super().__init__(message)
        self.setting = setting
        self.asked_bytes = asked_bytes
        self.smallest_bytes = smallest_bytes


class PlanError(OffloadError, ValueError):
    """A request, inventory or plan that is not well formed."""

    @classmethod
    def bad_field(cls, field: str, value: object, allowed: str) -> PlanError:
        """The error for one field, with its name, its value (shortened) and the allowed values."""
        return cls(f"{field}: got {shown(value)}; allowed: {allowed}")


class StateError(OffloadError):
    """A call in a state that does not allow it: inside a pass, before a load, after a detach, or on a module that other
    code has changed meanwhile."""


def shown(value: object) -> str:
    """A value as one line of at most 80 ASCII characters, for error messages. Never raises."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # str() of a huge integer is slow, or refused
    if isinstance(value, (dict, list, tuple)) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)} items"
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
