"""All families, and which of the app's classes have none of their own."""

from __future__ import annotations

from . import encoders, others, pictures, sounds_and_shapes, unets, vaes, videos
from .entry import Family

MODULES = (unets, pictures, videos, sounds_and_shapes, encoders, vaes, others)
FAMILIES: dict[str, Family] = {family.name: family for module in MODULES for family in module.FAMILIES}

WITHOUT_A_FAMILY: dict[str, str] = {}
"""A class of the app's `supported_models` to the reason why it has no row of its own."""


def chosen(names: list[str]) -> list[Family]:
    """The families of these names, all if there are none."""
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        raise SystemExit(f"asked for {', '.join(unknown)}; found no such family; `list` prints what there is")
    return [FAMILIES[name] for name in names] if names else list(FAMILIES.values())
