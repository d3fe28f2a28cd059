"""Checks of single input values: type, finite, in range. Knows nothing about plans.

Each function returns the value, or raises `PlanError` naming the field, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import PlanError

MAX_BYTES = 1 << 50  # one PiB: beyond any host, and products with times still fit a float exactly enough
MAX_NS = 10**15  # eleven days for one layer
MAX_RATE = 1e15  # bytes per second
MAX_ITEMS = 100_000  # layers or visits
_MAX_NAME_CHARS = 1024


def as_int(field: str, value: object, low: int, high: int) -> int:
    """An integer within [low, high]. Booleans and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PlanError.bad_field(field, value, f"an integer from {low} to {high}")
    return value


def as_bytes(field: str, value: object, low: int = 0) -> int:
    """A number of bytes, at most one PiB."""
    return as_int(field, value, low, MAX_BYTES)


def as_rate(field: str, value: object) -> float:
    """A rate of 1 to `MAX_RATE` bytes per second, as a float."""
    # Compared before the conversion, which raises OverflowError for a huge integer. NaN fails both comparisons.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= MAX_RATE:
        raise PlanError.bad_field(field, value, f"a number from 1 to {MAX_RATE:g} (bytes per second)")
    return float(value)


def no_duplicates(refused: Callable[[str], Exception]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """The `object_pairs_hook` for `json.loads` that raises `refused(key)` for a key that an object has twice."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise refused(key)
            result[key] = value
        return result

    return members


def as_name(field: str, value: object) -> str:
    """A string of 1 to 1024 printable characters, so that it can be shown on one line."""
    if not isinstance(value, str) or not value or len(value) > _MAX_NAME_CHARS or not value.isprintable():
        raise PlanError.bad_field(field, value, f"a text of 1 to {_MAX_NAME_CHARS} printable characters")
    return value
