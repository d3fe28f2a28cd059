"""What a node, and the options node connected to it, ask of one component. Plain data; knows no model.

`Options` is what travels over the wire of the custom type: mode, selection and wishes, by name, for components that
may not be loaded yet. `Asked` is what a patcher carries: what concerns its own component.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..offload_core.errors import SettingsError
from ..offload_core.groups import match, normalise_selection
from ..offload_core.policy import check_mode
from ..offload_core.resolver import Wish, settings_for
from ..offload_core.settings import ComponentSettings, Source

AUTO = "auto"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """An options node's word. `mode` None and `selection` None: it says nothing about them.

    `selection_text` is the selection as it was written: `default` there may miss some of its groups.
    """

    mode: str | None = None
    selection: tuple[str, ...] | None = None
    wishes: tuple[Wish, ...] = ()
    selection_text: str = ""

    @classmethod
    def of(cls, mode: str, selection: str, wishes: list[tuple[str, str, object]]) -> Options:
        """From widget values; raises SettingsError for what is not understood. `wishes`: (name, setting, value)."""
        check_mode(mode)
        options = cls(
            None if mode == AUTO else mode,
            normalise_selection(selection),
            tuple(Wish(Source.OPTIONS, *wish) for wish in wishes),
            selection,
        )
        for wish in options.wishes:
            settings_for(wish.component, [wish])  # understood, whatever components there are
        return options

    def names(self) -> tuple[str, ...]:
        """The components that its wishes speak of; values on auto speak of nothing."""
        said = [wish.component for wish in self.wishes if list(settings_for(wish.component, [wish]))]
        return tuple(dict.fromkeys(said))


@dataclass(frozen=True, slots=True)
class Asked:
    """All that was asked of one component. `mode` None: nobody chose one; `selection` None: nobody listed any."""

    settings: ComponentSettings = field(default_factory=ComponentSettings)
    mode: str | None = None
    selection: tuple[str, ...] | None = None

    @property
    def component(self) -> str:
        return self.settings.component

    @property
    def selected(self) -> bool | None:
        """Whether the selection names the component; None without a selection."""
        if self.selection is None:
            return None
        return any(match(selector, [self.component]) for selector in self.selection)

    def value(self, name: str) -> object:
        return self.settings.value(name)


def ask(
    settings: ComponentSettings, options: Options | None = None, mode: str = AUTO, before: Asked | None = None
) -> Asked:
    """What a node asks of a component: its widgets in `settings` and `mode`, and the options node connected to it.

    `before` is what the node in front of an Apply node asked. Its widgets give way to those of the later node; two
    options nodes that contradict each other are an error, for neither is stronger.
    """
    said = Asked(ComponentSettings(settings.component))
    if before is not None:
        said = replace(before, settings=before.settings.without(Source.NODE))
    if options is not None:
        theirs = settings_for(settings.component, options.wishes)
        said = Asked(
            said.settings.merged(theirs),
            _agreed("mode", said.mode, options.mode),
            _agreed("selection", said.selection, options.selection),
        )
    return replace(said, settings=said.settings.merged(settings), mode=said.mode if mode == AUTO else check_mode(mode))


def _agreed(what: str, first: T | None, second: T | None) -> T | None:
    """The one that is set; an error if two options nodes set different ones."""
    if first is not None and second is not None and first != second:
        raise SettingsError(
            f"asked {what} = {first} and {what} = {second}; found that both come from Layerwise Offload Options nodes, "
            "one behind the other; do leave one of them on auto, or connect the same node to both"
        )
    return second if first is None else first
