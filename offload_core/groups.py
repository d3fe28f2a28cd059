"""Names of components, the groups they fall into, and the selectors people write.

A component has one canonical name: lower case, underscores, an optional number at the end (``text_encoder_2``). Groups
are decided by the name alone, so that a component which is loaded late in a graph can be asked about before it exists.

This module knows nothing about sizes, devices, placements or who asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from .errors import SettingsError, shown

__all__ = [
    "ALL",
    "DEFAULT",
    "DEFAULT_GROUPS",
    "GROUPS",
    "group_of",
    "match",
    "normalise_name",
    "normalise_selection",
    "numbered_base",
    "select",
    "sort_key",
]

DIT: Final = "dit"
TEXT_ENCODER: Final = "text_encoder"
IMAGE_ENCODER: Final = "image_encoder"
VAE: Final = "vae"
DEFAULT: Final = "default"
ALL: Final = "all"

GROUPS: Final[tuple[str, ...]] = (DIT, TEXT_ENCODER, IMAGE_ENCODER, VAE)
DEFAULT_GROUPS: Final[tuple[str, ...]] = (TEXT_ENCODER, IMAGE_ENCODER, VAE)

_DIT_NAMES: Final = frozenset({"dit", "transformer", "video_dit", "audio_dit", "dual_tower_bridge"})
# Audio VAEs, vocoders and upsamplers walk their layers in odd orders and are not part of any group on purpose: they are
# streamed when somebody names them, and only then.
_VAE_NAMES: Final = frozenset({"vae", "video_vae", "condition_image_encoder"})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NUMBERED = re.compile(r"(.*[a-z0-9])_([0-9]{1,3})", re.ASCII)


def numbered_base(name: str) -> tuple[str, int]:
    """``("text_encoder", 2)`` for ``text_encoder_2``; a name without a number is number 1."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 1)


def group_of(name: str) -> str | None:
    """The group of a canonical component name, or None for one that is only ever addressed by its exact name."""
    base, _number = numbered_base(name)
    if base in _DIT_NAMES:
        return DIT
    if name.startswith(TEXT_ENCODER) or base.endswith(TEXT_ENCODER):
        return TEXT_ENCODER
    if base == IMAGE_ENCODER:  # equality: condition_image_encoder belongs to the vae group
        return IMAGE_ENCODER
    if base in _VAE_NAMES:
        return VAE
    return None


def sort_key(name: str) -> tuple[int, str, int, str]:
    """Orders names by group (``GROUPS``, then the rest), base name and number, whatever order they came in."""
    group = group_of(name)
    base, number = numbered_base(name)
    return (GROUPS.index(group) if group else len(GROUPS), base, number, name)


def normalise_name(value: object, what: str = "a component name") -> str:
    """The canonical form of one name: trimmed, ``-`` as ``_``, lower case.

    Raises SettingsError if it is not text, or not a name (letters, digits, underscores, a letter first, at most 64).
    """
    if not isinstance(value, str):
        raise _refused(what, value, f"is {type(value).__name__}, not text", "give a name such as text_encoder")
    name = _canonical(value)
    if _NAME.fullmatch(name) is None:
        raise _refused(
            what, value, "is not a name", "use at most 64 letters, digits and underscores, starting with a letter"
        )
    return name


def normalise_selection(value: object) -> tuple[str, ...] | None:
    """The selectors in a list or a comma-separated string, in order, each once; None if nothing is selected.

    Every item is split at commas, trimmed, ``-`` becomes ``_``, upper case lower; empty items are dropped. ``default``
    is replaced by the groups it stands for; ``all`` anywhere makes the whole selection ``("all",)``.
    Raises SettingsError if the value, or an item of the list, is not text.
    """
    tokens = _tokens(value)
    if ALL in tokens:
        return (ALL,)
    expanded: list[str] = []
    for token in tokens:
        expanded.extend(DEFAULT_GROUPS if token == DEFAULT else (token,))
    return tuple(dict.fromkeys(expanded)) or None


def match(selector: str, names: Iterable[str]) -> tuple[str, ...]:
    """The ``names`` a normalised selector stands for, in their order: ``all``, ``default``, a group, or a name."""
    if selector == ALL:
        return tuple(names)
    if selector == DEFAULT:
        return tuple(name for name in names if group_of(name) in DEFAULT_GROUPS)
    if selector in GROUPS:
        return tuple(name for name in names if group_of(name) == selector)
    return tuple(name for name in names if name == selector)


def select(selection: object, names: Sequence[str]) -> frozenset[str] | None:
    """The ``names`` that a selection (see ``normalise_selection``) stands for; None if nothing is selected.

    Raises SettingsError for a selector that stands for none of them. ``default`` need not find all of its groups: a
    graph without an image encoder still has a default.
    """
    tokens = _tokens(selection)
    if not tokens:
        return None
    chosen: set[str] = set()
    for token in (ALL,) if ALL in tokens else tokens:
        found = match(token, names)
        if not found:
            known = ", ".join(sorted(names, key=sort_key)[:12]) or "no component at all"
            advice = f"name one of those, a group of them, {DEFAULT} or {ALL}"
            raise _refused("the selection", token, f"matches none of: {known}", advice)
        chosen.update(found)
    return frozenset(chosen)


def _canonical(text: str) -> str:
    return text.strip().replace("-", "_").lower()


def _tokens(value: object) -> tuple[str, ...]:
    """The normalised items as written, ``default`` and ``all`` not yet expanded, each once."""
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise _refused("the selection", value, f"is {type(value).__name__}", "give a list of names or one string")
    tokens: list[str] = []
    for item in items:
        if not isinstance(item, str):
            raise _refused("the selection", item, f"is {type(item).__name__}, not text", "list names only")
        tokens.extend(_canonical(part) for part in item.split(","))
    return tuple(dict.fromkeys(token for token in tokens if token))


def _refused(what: str, value: object, found: str, do: str) -> SettingsError:
    return SettingsError(f"asked {what} = {shown(value)}; found that it {found}; do {do}")
