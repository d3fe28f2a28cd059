"""What one source asks of components by their names, and what all sources together ask of one. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ...offload_core.errors import SettingsError
from ...offload_core.settings.component_settings import (
    OF_THE_WORKFLOW,
    SOURCES,
    ComponentSettings,
    Setting,
    Source,
    bytes_from_gb,
)
from ...offload_core.settings.feasibility import require_device
from ...offload_core.settings.groups import ALL, match, normalise_selection
from ...offload_core.settings.node_table import OPTIONS_WIDGETS, Slot, is_gb
from ...offload_core.settings.policy import check_mode
from ...offload_core.settings.resolver import Wish, settings_for

AUTO = "auto"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """The request of one source for any components. `mode` None and `selection` None: not set by this source.

    `selection_text` is the selection as typed, before `default` was expanded: a graph may lack some of its groups.
    """

    source: str = Source.OPTIONS
    mode: str | None = None
    selection: tuple[str, ...] | None = None
    wishes: tuple[Wish, ...] = ()
    selection_text: str = ""

    @classmethod
    def of(cls, source: str, mode: str, selection: str, wishes: list[tuple[str, str, object]]) -> SourceRequest:
        """From user input; `wishes`: (component, setting, value). Raises SettingsError for an invalid value."""
        check_mode(mode)
        request = cls(
            source,
            None if mode == AUTO else mode,
            normalise_selection(selection),
            tuple(Wish(source, *wish) for wish in wishes),
            selection,
        )
        for wish in request.wishes:
            settings_for(wish.component, [wish])  # raises for an invalid value, also of an absent component
        return request

    def names(self) -> tuple[str, ...]:
        """Selectors with at least one value that is not auto, in order of first appearance."""
        selectors = [wish.component for wish in self.wishes if list(settings_for(wish.component, [wish]))]
        return tuple(dict.fromkeys(selectors))


@dataclass(frozen=True, slots=True)
class Requested:
    """The merged request for one component; a patcher carries it. `selection` None: no source lists components."""

    settings: ComponentSettings = field(default_factory=ComponentSettings)
    modes: tuple[tuple[str, str], ...] = ()
    """(source, mode) of each source that sets one, strongest source first."""
    selection: tuple[str, ...] | None = None
    nodes: tuple[str, ...] = ()
    """Ids of the graph nodes whose requests were merged."""
    in_split: bool = False
    """Whether the app divides each step of the model between devices, which all need their memory themselves."""

    @property
    def component(self) -> str:
        return self.settings.component

    @property
    def mode(self) -> str | None:
        """The mode of the strongest source; None if no source sets one."""
        return self.modes[0][1] if self.modes else None

    @property
    def selected(self) -> bool | None:
        """Whether the selection names the component; None without a selection."""
        if self.selection is None:
            return None
        return any(match(selector, [self.component]) for selector in self.selection)

    @property
    def has_budget(self) -> bool:
        """Whether device memory was set for it, alone or with all others: only we can keep that."""
        settings = (Setting.BUDGET_BYTES, Setting.WORKFLOW_BUDGET_BYTES)
        return any(self.settings.is_explicitly_set(name) for name in settings)

    def value(self, name: str) -> object:
        return self.settings.value(name)

    def without_widgets(self) -> Requested:
        """What is left of it for a node downstream, whose widgets override those of this one.

        What they said of the whole workflow stays: no node downstream has a widget for it.
        """
        modes = tuple((source, mode) for source, mode in self.modes if source != Source.NODE)
        return replace(self, settings=self.settings.without(Source.NODE, but=OF_THE_WORKFLOW), modes=modes)

    def named(self, component: str) -> Requested:
        """The same request under another component name."""
        return replace(self, settings=replace(self.settings, component=component))


def with_mode(modes: tuple[tuple[str, str], ...], source: str, mode: str | None) -> tuple[tuple[str, str], ...]:
    mode_by_source = dict(modes)
    agreed_mode = agreed("mode", source, mode_by_source.get(source), mode)
    if agreed_mode is not None:
        mode_by_source[source] = agreed_mode
    return tuple(sorted(mode_by_source.items(), key=lambda item: SOURCES.index(item[0])))


def agreed(what: str, source: str, first: T | None, second: T | None) -> T | None:
    """The value that is set. Raises SettingsError if the same source sets different values at two chained nodes."""
    if first is not None and second is not None and first != second:
        where = {
            Source.OPTIONS: ("Layerwise Offload Options nodes", "connect the same node to both"),
            Source.GRAPH: ("the graph's options", "give both nodes the same graph_options"),
            Source.SETTINGS: ("the user's ComfyUI settings", "give both nodes the same graph_options"),
        }[source]
        raise SettingsError(
            f"asked {what} = {first} and {what} = {second}; found that both come from {where[0]}, "
            f"at two nodes one behind the other; do leave one of them on auto, or {where[1]}"
        )
    return second if first is None else first


def widget_settings(slot: Slot, inputs: Mapping[str, object], component: str) -> ComponentSettings:
    """The settings that a node's widgets make for the component in `slot`. Raises SettingsError."""
    settings = ComponentSettings(component)
    for setting, widget in slot.widgets.items():
        value = inputs.get(widget, AUTO)
        settings = settings.with_value(setting, bytes_from_gb(value, widget) if is_gb(widget) else value, Source.NODE)
    return settings


def options_request(inputs: Mapping[str, Any]) -> SourceRequest:
    """The request in the widgets of an options node. Raises SettingsError."""
    wishes = [
        (selector, setting, bytes_from_gb(value, widget) if is_gb(widget) else value)
        for widget, (selector, setting) in OPTIONS_WIDGETS.items()
        for value in [inputs.get(widget, AUTO)]
    ]
    return SourceRequest.of(Source.OPTIONS, inputs.get("mode", AUTO), inputs.get("selection", ""), wishes)


def wrong_host_tier(value: object, device_names: Sequence[str] | None) -> str | None:
    """What is wrong with an options node's `host_tier`: neither a word of the setting nor one of these devices.

    `device_names` None: the app computes on the CPU, where a device has no effect, as every host tier.
    """
    try:
        settings = ComponentSettings(ALL).with_value(Setting.HOST_TIER, value, Source.OPTIONS)
        if device_names is not None:
            require_device(settings, device_names)
    except SettingsError as error:
        return str(error)
    return None
