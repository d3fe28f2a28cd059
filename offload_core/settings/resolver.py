"""From what all sources asked to one value, source and reason for every setting of every component.

What was asked is never changed: a wish that cannot be honoured is an error, and where the policy has to fall back it
says so in ``notices``. Pure: equal requests give equal resolutions, whatever the order of components and wishes. Knows
nothing about JSON and layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import SettingsError, shown
from ..notices import Notice
from ..sentences import Sentence, sentence
from .component_settings import (
    EXPLICIT_SOURCES,
    OF_THE_WORKFLOW,
    SOURCE_SENTENCES,
    SOURCE_WORDS,
    UNSET,
    ComponentSettings,
    Setting,
    Source,
    Value,
    peer_of,
    validate,
)
from .feasibility import check_component, remarks
from .groups import ALL, DEFAULT, match, names_text, normalise_name, select, sort_key
from .policy import Choice, Component, Device, Placed, check_mode, decide

MAX_COMPONENTS: Final = 256


@dataclass(frozen=True, slots=True)
class Wish:
    """One source's word about one setting of a component, or of a group of them (``default`` and ``all`` included).

    A name that is both a component of the graph and a group means the component. Where one source speaks twice, the
    exact name beats the group, the group beats ``default``, and that beats ``all``.
    """

    source: str
    component: str
    setting: str
    value: object


@dataclass(frozen=True, slots=True)
class Request:
    """All that a resolution depends on. ``settings`` and ``wishes`` are two ways to say the same; both may be used."""

    components: tuple[Component, ...]
    mode: str = "auto"
    selection: str | Sequence[str] | None = None
    wishes: tuple[Wish, ...] = ()
    settings: Mapping[str, ComponentSettings] = field(default_factory=dict)
    device: Device | None = None
    host_available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """Settings with a value, a source and a reason for all settings of each component; and what fell back."""

    components: Mapping[str, ComponentSettings]
    notices: tuple[Notice, ...]

    def to_json(self) -> dict[str, Any]:
        """``warnings`` are what the notices say, in English, without what to do."""
        return {
            "components": {name: settings.to_json() for name, settings in self.components.items()},
            "warnings": [notice.text for notice in self.notices],
            "notices": [notice.to_json() for notice in self.notices],
        }


def resolve(request: Request) -> Resolution:
    """The resolution of a request.

    Raises SettingsError for anything that is not understood, contradicts itself, or names a component that is not
    there (a standing wish of the app's settings may; that is a warning); SettingsError or BudgetError for an explicit
    wish that cannot be honoured.
    """
    check_mode(request.mode)
    names = _names(request.components)
    notices = _absent(request, names)
    chosen = select(request.selection, names)
    wishes = {name: _settings_of(name, request, names, chosen) for name in names}
    device = request.device or Device("unknown")
    placed = [
        Placed(
            component,
            placement=wishes[component.name].explicit(Setting.PLACEMENT, str),
            budget_bytes=wishes[component.name].explicit(Setting.BUDGET_BYTES, int),
            ring_bytes=wishes[component.name].explicit(Setting.RING_BYTES, int),
            may_stream=chosen is None,
        )
        for component in request.components
    ]
    decision = decide(request.mode, device, request.host_available_bytes, placed)
    components = {}
    for component in sorted(request.components, key=lambda component: sort_key(component.name)):
        name = component.name
        settings = filled(wishes[name], decision.choices[name])
        check_component(component, settings, device, request.host_available_bytes)
        components[name] = settings
        notices.extend(remarks(component, settings, device))
    return Resolution(components, (*notices, *decision.notices))


def settings_for(name: str, wishes: Iterable[Wish], names: Sequence[str] = ()) -> ComponentSettings:
    """What the wishes say about one component, by its name alone: it need not be loaded, nor exist yet.

    ``names`` are the components known so far. Raises SettingsError for a wish that is not understood, and where one
    source says two different things about the same setting under names of equal reach.
    """
    known = (*names, name) if name not in names else names
    levels: dict[tuple[str, str, int], tuple[Wish, Value]] = {}
    for wish in wishes:
        selector, checked = _checked(wish)
        if checked is None or name not in _targets(selector, known):
            continue
        key = (wish.setting, wish.source, _reach(selector, name))
        first, value = levels.setdefault(key, (wish, checked))
        if value != checked:
            raise SettingsError(
                f"asked {selector}.{wish.setting} = {shown(first.value)} and {shown(wish.value)}; found that both come "
                f"from {SOURCE_WORDS[wish.source]}; do leave one of them on auto"
            )
    settings = ComponentSettings(name)
    for (setting, source, reach), (wish, value) in sorted(levels.items(), key=lambda item: -item[0][2]):
        name_of = SOURCE_SENTENCES[source]
        selector = normalise_name(wish.component)
        reason = sentence("set_by_for", source=name_of, selector=selector) if reach else None
        if selector == ALL:
            reason = sentence("set_by_for_all", source=name_of)
        settings = settings.with_value(setting, value, source, reason)
    return settings


def _checked(wish: Wish) -> tuple[str, Value]:
    """The normalised selector and value of a wish; value None if it says nothing."""
    if wish.source not in EXPLICIT_SOURCES:
        sources = ", ".join(EXPLICIT_SOURCES)
        raise SettingsError(f"asked source = {shown(wish.source)}; found no such source; do use one of: {sources}")
    selector = normalise_name(wish.component, "the component of a setting")
    value = validate(wish.setting, wish.value, selector)
    if wish.setting in OF_THE_WORKFLOW and value is not UNSET and selector != ALL:
        raise SettingsError(
            f"asked {selector}.{wish.setting} = {shown(wish.value)}; found that it is for all components together; "
            "do set it for all, or set a budget of the component"
        )
    return selector, None if value is UNSET else value


def _targets(selector: str, names: Sequence[str]) -> tuple[str, ...]:
    return (selector,) if selector in names else match(selector, names)


def _reach(selector: str, name: str) -> int:
    """0 for the exact name, 1 for its group, 2 for ``default``, 3 for ``all``."""
    return 0 if selector == name else {DEFAULT: 2, ALL: 3}.get(selector, 1)


def _names(components: Sequence[Component]) -> tuple[str, ...]:
    if len(components) > MAX_COMPONENTS:
        raise SettingsError(
            f"asked for {len(components)} components; found that at most {MAX_COMPONENTS} are handled; do send fewer"
        )
    names = tuple(sorted((component.name for component in components), key=sort_key))
    for name in names:
        if normalise_name(name) != name or name in (DEFAULT, ALL):
            raise SettingsError(
                f"asked for a component named {shown(name)}; found that it is not a component's canonical name; "
                "do use lower case and underscores, and neither default nor all"
            )
        if names.count(name) > 1:
            raise SettingsError(f"asked for the component {shown(name)} twice; found two sizes; do send it once")
    return names


def _absent(request: Request, names: Sequence[str]) -> list[Notice]:
    """Refuses wishes for components that are not there; standing ones of the app's settings only get a notice."""
    spoken = {(entry.source, name) for name, settings in request.settings.items() for entry in settings}
    spoken = {(source, name) for source, name in spoken if source in EXPLICIT_SOURCES}
    spoken |= {(wish.source, _checked(wish)[0]) for wish in request.wishes if _checked(wish)[1] is not None}
    notices = []
    for source, selector in sorted(spoken):
        if _targets(selector, names):
            continue
        if source != Source.SETTINGS:
            raise SettingsError(
                f"asked something of {shown(selector)} ({SOURCE_WORDS[source]}); found no such component among: "
                f"{names_text(names)}; do name one of those or a group of them"
            )
        notices.append(Notice(selector, sentence("absent", component=selector, source=SOURCE_SENTENCES[source])))
    return notices


def _settings_of(name: str, request: Request, names: Sequence[str], chosen: frozenset[str] | None) -> ComponentSettings:
    settings = request.settings.get(name, ComponentSettings(name)).without(Source.POLICY).without(Source.SELECTION)
    settings = settings.merged(settings_for(name, request.wishes, names))
    if chosen is not None and name in chosen:
        settings = settings.with_value(Setting.PLACEMENT, "layerwise", Source.SELECTION, sentence("selected"))
    return settings


def filled(settings: ComponentSettings, choice: Choice) -> ComponentSettings:
    """The settings with the policy's value for each that no source set; the others stay as they are."""
    idle = None if choice.placement == "layerwise" else sentence("nothing_to_decide", placement=choice.placement)
    peer = peer_of(settings)
    peer_free = sentence("no_other_device") if peer is None else sentence("free_on_other_device", device=peer)
    of_policy: dict[str, tuple[Value, Sentence | None]] = {
        Setting.PLACEMENT: (choice.placement, choice.reason),
        Setting.BUDGET_BYTES: (choice.budget_bytes, choice.budget_reason or idle or sentence("budget_ring")),
        Setting.RING_BYTES: (None, idle or sentence("planner_decides_ring")),
        Setting.HOST_TIER: (None, idle or sentence("tier_by_layer")),
        Setting.PIN_BUDGET_BYTES: (None, idle or sentence("pins_shared")),
        Setting.PEER_BUDGET_BYTES: (None, idle or peer_free),
        Setting.PRECISION: (None, sentence("precision_of_app")),
        Setting.LORA_MODE: (None, sentence("lora_when_applied")),
        Setting.WORKFLOW_BUDGET_BYTES: (None, sentence("no_workflow_budget")),
        Setting.WORKFLOW_HOST_BYTES: (None, sentence("no_workflow_host")),
    }
    for name, (value, reason) in of_policy.items():
        if not settings.is_explicitly_set(name):
            settings = settings.with_value(name, value, Source.POLICY, reason)
    return settings
