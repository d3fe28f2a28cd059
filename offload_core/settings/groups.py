"""Names of components, their groups and order, and selectors of components in user input.

A component has one canonical name: lower case, underscores, an optional number at the end (``text_encoder_2``). The
group depends on the name alone, so it is known before the component is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..errors import SettingsError

DIT: Final = "dit"
TEXT_ENCODER: Final = "text_encoder"
IMAGE_ENCODER: Final = "image_encoder"
VAE: Final = "vae"
DEFAULT: Final = "default"
ALL: Final = "all"

GROUPS: Final[tuple[str, ...]] = (DIT, TEXT_ENCODER, IMAGE_ENCODER, VAE)
DEFAULT_GROUPS: Final[tuple[str, ...]] = (TEXT_ENCODER, IMAGE_ENCODER, VAE)

_DIT_NAMES: Final = frozenset({"dit", "transformer", "video_dit", "audio_dit", "dual_tower_bridge"})
# Audio VAEs, vocoders and upsamplers visit their layers in unusual orders. They are in no group, so that they are
# streamed only if selected by name.
_VAE_NAMES: Final = frozenset({"vae", "video_vae", "condition_image_encoder"})

_refused = SettingsError.refused
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NUMBERED = re.compile(r"(.*[a-z0-9])_([0-9]{1,3})", re.ASCII)


def numbered_base(name: str) -> tuple[str, int]:
    """(base, number): ``("text_encoder", 2)`` for ``text_encoder_2``; a name without a number has the number 1."""
    numbered = _NUMBERED.fullmatch(name)
    return (numbered[1], int(numbered[2])) if numbered else (name, 1)


def group_of(name: str) -> str | None:
    """The group of a canonical component name; None if it is in no group."""
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
    """Sort key of a name: by group (``GROUPS``, then names without one), base name and number."""
    group = group_of(name)
    base, number = numbered_base(name)
    return (GROUPS.index(group) if group else len(GROUPS), base, number, name)


def names_text(names: Iterable[str]) -> str:
    """The first twelve of the names as text, for errors."""
    return ", ".join(sorted(names, key=sort_key)[:12]) or "no component at all"


def load_order(sizes_bytes: Mapping[str, int]) -> list[str]:
    """Component names, largest size first, as most host memory is free at the start.

    Variants of one base (`dit`, `dit_2`) are adjacent, ordered by the largest of them, the highest number first.
    """
    bases = {name: numbered_base(name)[0] for name in sizes_bytes}
    largest = {base: max(size for name, size in sizes_bytes.items() if bases[name] == base) for base in bases.values()}
    return sorted(sizes_bytes, key=lambda name: (-largest[bases[name]], bases[name], -numbered_base(name)[1]))


def normalise_name(value: object, what: str = "a component name") -> str:
    """The canonical form of one name: trimmed, ``-`` replaced by ``_``, lower case.

    Raises SettingsError if it is not text, or not a name (a letter, then letters, digits and underscores; at most 64).
    """
    if not isinstance(value, str):
        raise _refused(what, value, f"is {type(value).__name__}, not text", "give a name such as text_encoder")
    name = _canonical(value)
    if _NAME.fullmatch(name) is None:
        advice = "use at most 64 letters, digits and underscores, starting with a letter"
        raise _refused(what, value, "is not a name", advice)
    return name


def normalise_selection(value: object) -> tuple[str, ...] | None:
    """The selectors in a list or a comma-separated string, in order, each once; None if there are none.

    Items are split at commas and made canonical; empty ones are dropped. ``default`` is replaced by its groups; if
    ``all`` is among them, the result is ``("all",)``. Raises SettingsError if the value, or an item of the list, is not
    text.
    """
    tokens = _tokens(value)
    if ALL in tokens:
        return (ALL,)
    expanded: list[str] = []
    for token in tokens:
        expanded.extend(DEFAULT_GROUPS if token == DEFAULT else (token,))
    return tuple(dict.fromkeys(expanded)) or None


def match(selector: str, names: Iterable[str]) -> tuple[str, ...]:
    """The ``names`` that match a normalised selector (``all``, ``default``, a group or a name), in their order."""
    if selector == ALL:
        return tuple(names)
    if selector == DEFAULT:
        return tuple(name for name in names if group_of(name) in DEFAULT_GROUPS)
    if selector in GROUPS:
        return tuple(name for name in names if group_of(name) == selector)
    return tuple(name for name in names if name == selector)


def select(selection: object, names: Sequence[str]) -> frozenset[str] | None:
    """The ``names`` that match a selection (see ``normalise_selection``); None for an empty selection.

    Raises SettingsError for a selector that matches none of them. ``default`` needs to match one of its groups only.
    """
    tokens = _tokens(selection)
    if not tokens:
        return None
    chosen: set[str] = set()
    for token in (ALL,) if ALL in tokens else tokens:
        matches = match(token, names)
        if not matches:
            advice = f"name one of those, a group of them, {DEFAULT} or {ALL}"
            raise _refused("the selection", token, f"matches none of: {names_text(names)}", advice)
        chosen.update(matches)
    return frozenset(chosen)


def _canonical(text: str) -> str:
    return text.strip().replace("-", "_").lower()


def _tokens(value: object) -> tuple[str, ...]:
    """The canonical items of a selection, each once, ``default`` and ``all`` not expanded. Raises SettingsError."""
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
