"""What was asked of a component, and by whom: names of settings, sources, and values that make sense by themselves.

Several sources may speak about the same setting; the strongest that said anything wins, and what the others said is
kept for reports. A widget on ``auto`` (or on 0, where it counts bytes) says nothing; every other value is explicit,
*also when it equals the default*. Knows nothing about devices, sizes, groups of components or modes.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final, TypeVar

from ..errors import SettingsError, shown
from ..fields import MAX_BYTES
from ..sentences import Sentence, reason_json, sentence


class Unset(enum.Enum):
    """The type of ``UNSET``, so that type checkers can tell it from a value."""

    UNSET = "auto"

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Final = Unset.UNSET
"""No source has set the setting."""

_refused = SettingsError.refused
T = TypeVar("T")
Value = str | int | None
"""What a setting can hold. ``None`` comes from the policy only: left to the layer below, with the reason beside it."""


class Setting:
    """Names of the settings of a component, in the order in which they are shown."""

    PLACEMENT: Final = "placement"
    BUDGET_BYTES: Final = "budget_bytes"
    RING_BYTES: Final = "ring_bytes"
    HOST_TIER: Final = "host_tier"
    PIN_BUDGET_BYTES: Final = "pin_budget_bytes"
    PEER_BUDGET_BYTES: Final = "peer_budget_bytes"
    PRECISION: Final = "precision"
    LORA_MODE: Final = "lora_mode"
    WORKFLOW_BUDGET_BYTES: Final = "workflow_budget_bytes"
    WORKFLOW_HOST_BYTES: Final = "workflow_host_bytes"


class Source:
    """Names of those who can set a value."""

    NODE: Final = "node"
    OPTIONS: Final = "options"
    GRAPH: Final = "graph"
    SETTINGS: Final = "settings"
    SELECTION: Final = "selection"
    POLICY: Final = "policy"


SETTINGS: Final[tuple[str, ...]] = tuple(name for key, name in vars(Setting).items() if key.isupper())
SOURCE_SENTENCES: Final[dict[str, Sentence]] = {
    Source.NODE: sentence("source_node"),
    Source.OPTIONS: sentence("source_options"),
    Source.GRAPH: sentence("source_graph"),
    Source.SETTINGS: sentence("source_settings"),
    Source.SELECTION: sentence("source_selection"),
    Source.POLICY: sentence("source_policy"),
}
"""What each source is called, within a sentence; strongest first."""
SOURCE_WORDS: Final[dict[str, str]] = {source: name.text for source, name in SOURCE_SENTENCES.items()}
SOURCES: Final[tuple[str, ...]] = tuple(SOURCE_SENTENCES)
EXPLICIT_SOURCES: Final[tuple[str, ...]] = SOURCES[:4]
"""Those who may set any setting. ``selection`` sets a placement only, ``policy`` what no other source has set."""

PLACEMENTS: Final[tuple[str, ...]] = ("auto", "layerwise", "resident", "whole", "cpu")
HOST_TIERS: Final[tuple[str, ...]] = ("auto", "pinned", "pageable", "mapped")
"""The words of the setting, which may also name another device (``peer_of``)."""
PRECISIONS: Final[tuple[str, ...]] = ("auto", "fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2")
LORA_MODES: Final[tuple[str, ...]] = ("auto", "host", "on_arrival")
# A streamed layer that a LoRA has changed is kept in host memory, or changed on each arrival; auto: as memory allows.

ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "placement": PLACEMENTS,
    "host_tier": HOST_TIERS,
    "precision": PRECISIONS,
    "lora_mode": LORA_MODES,
}
OF_THE_WORKFLOW: Final[tuple[str, ...]] = (Setting.WORKFLOW_BUDGET_BYTES, Setting.WORKFLOW_HOST_BYTES)
"""What all components take together: it cannot be set for some of them."""
BYTE_SETTINGS: Final[tuple[str, ...]] = (
    *("budget_bytes", "ring_bytes", "pin_budget_bytes", "peer_budget_bytes"),
    *OF_THE_WORKFLOW,
)
GB: Final = 10**9
_DEVICE: Final = re.compile(r"[a-z]{1,16}:(0|[1-9][0-9]{0,2})")
"""A device's name as torch writes it: its type and number."""


def bytes_from_gb(gigabytes: object, what: str = "a size in GB") -> int | Unset:
    """Bytes for a widget that counts GB (10**9 bytes, as in every text of ours); 0 and ``"auto"`` are ``UNSET``.

    Raises SettingsError for anything that is not a number from 0 to about a million GB.
    """
    if isinstance(gigabytes, Unset) or gigabytes == "auto":
        return UNSET
    advice = "give a number of GB, or 0 for auto"
    if isinstance(gigabytes, bool) or not isinstance(gigabytes, (int, float)):
        raise _refused(what, gigabytes, f"is {_kind(gigabytes)}, not a number", advice)
    if not 0 <= gigabytes <= MAX_BYTES / GB:  # NaN fails both comparisons
        raise _refused(what, gigabytes, f"is not within 0 .. {MAX_BYTES // GB}", advice)
    return UNSET if gigabytes == 0 else max(1, round(gigabytes * GB))


def validate(name: str, value: object, component: str = "") -> str | int | Unset:
    """The value as it is stored, or ``UNSET`` where it says nothing (``UNSET``, ``"auto"``, 0 bytes).

    Raises SettingsError, naming the value and what is allowed, if the setting does not exist or cannot hold the value.
    """
    what = f"{component}.{name}" if component else name
    _check_exists("the setting", name, SETTINGS)
    if isinstance(value, Unset):
        return UNSET
    if name in BYTE_SETTINGS:
        return _validate_bytes(what, value)
    may_be_device = name == Setting.HOST_TIER
    advice = f"choose one of: {', '.join(ALLOWED[name])}{', or another device such as cuda:1' if may_be_device else ''}"
    if not isinstance(value, str):
        raise _refused(what, value, f"is {_kind(value)}, not a word", advice)
    if value not in ALLOWED[name] and not (may_be_device and _DEVICE.fullmatch(value)):
        raise _refused(what, value, "is not a choice of this setting", advice)
    return UNSET if value == "auto" else value


def _validate_bytes(what: str, value: object) -> int | Unset:
    advice = f"give a whole number of bytes from 1 to {MAX_BYTES}, or auto"
    if value == "auto" and isinstance(value, str):
        return UNSET
    if isinstance(value, float) and value.is_integer():  # JSON writers spell 8000000000 as 8e9
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refused(what, value, f"is {_kind(value)}, not a whole number", advice)
    if not 0 <= value <= MAX_BYTES:
        raise _refused(what, value, "is out of range", advice)
    return UNSET if value == 0 else value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {"str": "text", "bool": "a truth value", "float": "a fraction", "int": "a number"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _check_exists(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise _refused(what, name, "does not exist", f"use one of: {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class SettingValue:
    """One thing one source said of the setting ``name``, and why."""

    name: str
    source: str
    value: Value
    reason: Sentence


@dataclass(frozen=True, slots=True)
class ComponentSettings:
    """What all sources said about one component. Immutable, hashable; a new one has every setting ``UNSET``.

    The order in which sources speak does not matter, only their strength does (``SOURCES``, strongest first).
    """

    component: str = ""
    _entries: tuple[SettingValue, ...] = field(default=(), repr=False)  # by setting, then strongest source first

    def with_value(self, name: str, value: object, source: str, reason: Sentence | None = None) -> ComponentSettings:
        """A copy in which ``source`` says ``value``, replacing what it said before; ``auto`` takes that back.

        Raises SettingsError for an unknown setting, source or value, when ``selection`` speaks about anything but the
        placement, and for ``None`` from any source but the policy.
        """
        _check_exists("the source", source, SOURCES)
        from_policy = value is None and source == Source.POLICY and name in SETTINGS
        checked: Value | Unset = None if from_policy else validate(name, value, self.component)
        if source == Source.SELECTION and name != Setting.PLACEMENT:
            raise _refused(f"{name} from the selection", value, "can only set a placement", "set it on a node")
        entries = [entry for entry in self._entries if (entry.name, entry.source) != (name, source)]
        if not isinstance(checked, Unset):
            reason = reason or sentence("set_by", source=SOURCE_SENTENCES[source])
            entries.append(SettingValue(name, source, checked, reason))
        return self._with(entries)

    def value(self, name: str) -> Value | Unset:
        """The strongest source's value; ``UNSET`` without one; ``None`` if the policy left it to a layer below."""
        return next((entry.value for entry in self.entries(name)), UNSET)

    def source(self, name: str) -> str | None:
        """The strongest source that set it, or None."""
        return next((entry.source for entry in self.entries(name)), None)

    def reason(self, name: str) -> Sentence | None:
        """Why it has this value, with what weaker sources had asked for; None if no source set it."""
        entries = self.entries(name)
        if not entries:
            return None
        weaker = [
            sentence("asked_for", source=SOURCE_SENTENCES[other.source], value=str(other.value))
            for other in entries[1:]
            if other.value != entries[0].value
        ]
        if not weaker:
            return entries[0].reason
        differing = reduce(lambda first, second: sentence("both", first=first, second=second), weaker)
        return sentence("stronger", reason=entries[0].reason, weaker=differing)

    def is_explicitly_set(self, name: str) -> bool:
        """True if a source other than the policy set it, to any value, the default included."""
        return self.source(name) not in (None, Source.POLICY)

    def explicit(self, name: str, kind: type[T]) -> T | None:
        """The value, of this type, that a source other than the policy set; None without one."""
        value = self.value(name)
        return value if self.is_explicitly_set(name) and isinstance(value, kind) else None

    def entries(self, name: str) -> tuple[SettingValue, ...]:
        """All that was said about a setting, strongest source first. Raises SettingsError for an unknown setting."""
        _check_exists("the setting", name, SETTINGS)
        return tuple(entry for entry in self._entries if entry.name == name)

    def merged(self, other: ComponentSettings) -> ComponentSettings:
        """What both hold, for the same component. Raises SettingsError where one source says two different things."""
        entries = {(entry.name, entry.source): entry for entry in self._entries}
        for entry in other._entries:
            present = entries.setdefault((entry.name, entry.source), entry)
            if present.value != entry.value:
                what = f"{self.component or other.component}.{entry.name}".lstrip(".")
                raise SettingsError(
                    f"asked {what} = {shown(present.value)} and {what} = {shown(entry.value)}; found that both come "
                    f"from {SOURCE_WORDS[entry.source]}; do leave one of them on auto"
                )
        return ComponentSettings(self.component or other.component)._with(entries.values())

    def without(self, source: str, but: Iterable[str] = ()) -> ComponentSettings:
        """A copy in which ``source`` said nothing, or nothing ``but`` what it said of these settings."""
        _check_exists("the source", source, SOURCES)
        return self._with(entry for entry in self._entries if entry.source != source or entry.name in but)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """``{setting: {"value", "source", "reason", "why"}}`` for the settings that have a value."""
        return {
            entry.name: {"value": entry.value, "source": entry.source, **reason_json(self.reason(entry.name))}
            for entry in self
        }

    def __iter__(self) -> Iterator[SettingValue]:
        """The winning value of every setting that has one, in the order of ``SETTINGS``."""
        for name in SETTINGS:
            yield from self.entries(name)[:1]

    def _with(self, entries: Iterable[SettingValue]) -> ComponentSettings:
        # One order for equal contents, so that equality and hashes do not depend on the order of the calls.
        ordered = sorted(entries, key=lambda entry: (SETTINGS.index(entry.name), SOURCES.index(entry.source)))
        return replace(self, _entries=tuple(ordered))


def peer_of(settings: ComponentSettings) -> str | None:
    """The other device in whose memory streamed layers may lie, as `host_tier` names it; None if it names no device.

    Where the streamed layers lie that have no room there is then decided for each layer, as on auto.
    """
    tier = settings.explicit(Setting.HOST_TIER, str)
    return tier if tier is not None and _DEVICE.fullmatch(tier) else None


def budget_set(components: Collection[ComponentSettings]) -> int | None:
    """The device bytes that were set for components that are on a device together: the largest number for a whole
    workflow, else the sum of their own budgets; None where one of them has neither, or there are no components."""
    numbers = [settings.explicit(Setting.WORKFLOW_BUDGET_BYTES, int) for settings in components]
    if known := [number for number in numbers if number is not None]:
        return max(known)
    own = [settings.explicit(Setting.BUDGET_BYTES, int) for settings in components]
    budgets = [budget for budget in own if budget is not None]
    return sum(budgets) if budgets and len(budgets) == len(own) else None
