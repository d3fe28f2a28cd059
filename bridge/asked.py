"""What nodes, and what is connected to them or said about the whole graph, ask of one component. Knows no model.

`Word` is what one source says about any number of components, by name, loaded or not: an options node, the graph's
options, the user's ComfyUI settings. `Asked` is what a patcher carries: what concerns its own component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..offload_core.errors import SettingsError
from ..offload_core.groups import match, normalise_selection
from ..offload_core.node_table import OPTIONS_WIDGETS, Slot
from ..offload_core.policy import check_mode
from ..offload_core.resolver import Wish, settings_for
from ..offload_core.settings import SOURCES, ComponentSettings, Source, bytes_from_gb

AUTO = "auto"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Word:
    """What one source says. `mode` None and `selection` None: it says nothing about them.

    `selection_text` is the selection as it was written: `default` there may miss some of its groups.
    """

    source: str = Source.OPTIONS
    mode: str | None = None
    selection: tuple[str, ...] | None = None
    wishes: tuple[Wish, ...] = ()
    selection_text: str = ""

    @classmethod
    def of(cls, source: str, mode: str, selection: str, wishes: list[tuple[str, str, object]]) -> Word:
        """From values as people write them; `wishes`: (name, setting, value). SettingsError if not understood."""
        check_mode(mode)
        word = cls(
            source,
            None if mode == AUTO else mode,
            normalise_selection(selection),
            tuple(Wish(source, *wish) for wish in wishes),
            selection,
        )
        for wish in word.wishes:
            settings_for(wish.component, [wish])  # understood, whatever components there are
        return word

    def names(self) -> tuple[str, ...]:
        """The selectors that its wishes speak of; values on auto speak of nothing."""
        said = [wish.component for wish in self.wishes if list(settings_for(wish.component, [wish]))]
        return tuple(dict.fromkeys(said))


@dataclass(frozen=True, slots=True)
class Asked:
    """All that was asked of one component. `selection` None: nobody listed components to stream."""

    settings: ComponentSettings = field(default_factory=ComponentSettings)
    modes: tuple[tuple[str, str], ...] = ()
    """(source, mode) of everybody who chose one, strongest first."""
    selection: tuple[str, ...] | None = None
    nodes: tuple[str, ...] = ()
    """Ids of the graph's nodes that asked."""

    @property
    def component(self) -> str:
        return self.settings.component

    @property
    def mode(self) -> str | None:
        """The strongest source's mode; None if nobody chose one."""
        return self.modes[0][1] if self.modes else None

    @property
    def selected(self) -> bool | None:
        """Whether the selection names the component; None without a selection."""
        if self.selection is None:
            return None
        return any(match(selector, [self.component]) for selector in self.selection)

    def value(self, name: str) -> object:
        return self.settings.value(name)

    def named(self, component: str) -> Asked:
        """The same, asked of a component of another name."""
        return replace(self, settings=replace(self.settings, component=component))


def ask(
    settings: ComponentSettings, words: Sequence[Word] = (), mode: str = AUTO, before: Asked | None = None
) -> Asked:
    """What a node asks of a component: its widgets in `settings` and `mode`, and the `words` of weaker sources.

    `before` is what the node in front of an Apply node asked of the same component. Its widgets give way to those of
    the later node; any other source that contradicts itself between the two is an error, for neither is stronger.
    """
    said = Asked(ComponentSettings(settings.component))
    if before is not None:
        modes = tuple(one for one in before.modes if one[0] != Source.NODE)
        said = Asked(before.settings.without(Source.NODE), modes, before.selection)
    for word in words:
        theirs = settings_for(said.component, word.wishes)
        selection = _agreed("selection", word.source, said.selection, word.selection)
        said = Asked(said.settings.merged(theirs), _with_mode(said.modes, word.source, word.mode), selection)
    modes = _with_mode(said.modes, Source.NODE, None if mode == AUTO else check_mode(mode))
    return Asked(said.settings.merged(replace(settings, component=said.component)), modes, said.selection)


def _with_mode(modes: tuple[tuple[str, str], ...], source: str, mode: str | None) -> tuple[tuple[str, str], ...]:
    chosen = dict(modes)
    agreed = _agreed("mode", source, chosen.get(source), mode)
    if agreed is not None:
        chosen[source] = agreed
    return tuple(sorted(chosen.items(), key=lambda item: SOURCES.index(item[0])))


def _agreed(what: str, source: str, first: T | None, second: T | None) -> T | None:
    """The one that is set; an error if the same source set different ones at two nodes, one behind the other."""
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
    """What a node's widgets ask of the component in `slot`. Raises SettingsError for what is not understood."""
    settings = ComponentSettings(component)
    for setting, widget in slot.widgets.items():
        settings = settings.with_value(setting, _value(widget, inputs.get(widget, AUTO)), Source.NODE)
    return settings


def options_word(inputs: Mapping[str, Any]) -> Word:
    """What the widgets of an options node say. Raises SettingsError."""
    wishes = [
        (selector, setting, _value(widget, inputs.get(widget, AUTO)))
        for widget, (selector, setting) in OPTIONS_WIDGETS.items()
    ]
    return Word.of(Source.OPTIONS, inputs.get("mode", AUTO), inputs.get("selection", ""), wishes)


def _value(widget: str, value: object) -> object:
    return bytes_from_gb(value, widget) if widget.endswith("_gb") else value
