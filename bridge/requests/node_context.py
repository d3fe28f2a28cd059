"""The context of a node of ours beyond its widgets: connected options, graph options, and its component names.

The browser part of the pack writes the options of the whole graph and the user's ComfyUI settings into the input
`graph_options` of our nodes, as one JSON text (`docs/formats.md`), so that the app's cache and runs without a browser
see them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...offload_core.errors import SettingsError, shown
from ...offload_core.settings.component_settings import SOURCE_WORDS, ComponentSettings, Source, bytes_from_gb
from ...offload_core.settings.groups import numbered_base
from ...offload_core.settings.node_table import GRAPH_SETTINGS, is_gb
from ...offload_core.settings.policy import check_mode
from ...offload_core.settings.resolver import settings_for
from .graph import check_known, names_in, numbered
from .requested import AUTO, Requested, SourceRequest, agreed, with_mode

SCHEMA = 1
MAX_CHARACTERS = 65536
_SOURCES = {"graph": Source.GRAPH, "settings": Source.SETTINGS}


@dataclass(frozen=True, slots=True)
class NodeContext:
    """The requests of sources weaker than a node's widgets, and the names of the components that the node brings."""

    requests: tuple[SourceRequest, ...] = ()
    node_id: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    """Component names by kind."""

    @classmethod
    def of(
        cls, prompt: Mapping[str, Any] | None, node_id: str | None, options: SourceRequest | None, graph_options: str
    ) -> NodeContext:
        """`options`: the request of the options node that is connected. Raises SettingsError."""
        requests = parse_graph_options(graph_options)
        prompt, node_id = prompt or {}, str(node_id or "")
        names = names_in(prompt)
        if node_id in prompt:
            for request in requests:
                if request.source == Source.GRAPH:
                    check_known(request, sorted(set(names.values())), SOURCE_WORDS[Source.GRAPH])
        own_names = {kind: name for (user, kind), name in names.items() if user == node_id}
        return cls(requests if options is None else (options, *requests), node_id, own_names)

    def name(self, kind: str, turned_out: str | None = None) -> str:
        """The name of the node's component of `kind`; `turned_out`: the kind detected in its file."""
        name = self.names.get(kind, kind)
        if turned_out is None or turned_out == kind:
            return name
        return numbered(turned_out, numbered_base(name)[1])

    def ask(self, settings: ComponentSettings, mode: str = AUTO, before: Requested | None = None) -> Requested:
        """The merged request of the node's widgets (`settings`, `mode`) and weaker sources. Raises SettingsError.

        before: the request of the node upstream for the same component. This node's widgets override its widgets; any
        other source that sets different values at the two nodes raises SettingsError.
        """
        merged = Requested(ComponentSettings(settings.component)) if before is None else before.without_widgets()
        for request in self.requests:
            source_settings = settings_for(merged.component, request.wishes)
            selection = agreed("selection", request.source, merged.selection, request.selection)
            modes = with_mode(merged.modes, request.source, request.mode)
            merged = Requested(merged.settings.merged(source_settings), modes, selection, merged.nodes)
        own_settings = merged.settings.merged(replace(settings, component=merged.component))
        modes = with_mode(merged.modes, Source.NODE, None if mode == AUTO else check_mode(mode))
        nodes = dict.fromkeys((*merged.nodes, self.node_id) if self.node_id else merged.nodes)
        return Requested(own_settings, modes, merged.selection, tuple(nodes))


def parse_graph_options(text: str) -> tuple[SourceRequest, ...]:
    """The requests in a `graph_options` text; none if it is empty. Raises SettingsError, naming the invalid part."""
    if not isinstance(text, str):
        raise _refused(text, f"is {type(text).__name__}, not text")
    if not text.strip():
        return ()
    if len(text) > MAX_CHARACTERS:
        raise _refused(text, f"has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(text, f"is not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise _refused(text, f"is not an object with schema = {SCHEMA}")
    unknown = sorted(set(content) - {"schema", *_SOURCES})
    if unknown:
        raise _refused(unknown[0], f"is not one of {', '.join(_SOURCES)}")
    return tuple(_request(_SOURCES[key], content[key]) for key in _SOURCES if content.get(key) is not None)


def _request(source: str, content: object) -> SourceRequest:
    if not isinstance(content, dict) or set(content) - {"mode", "components"}:
        raise _refused(content, f"({SOURCE_WORDS[source]}) is not an object of mode and components")
    mode, components = content.get("mode", AUTO), content.get("components", {})
    if not isinstance(components, dict):
        raise _refused(components, f"({SOURCE_WORDS[source]}) is not an object of components")
    wishes = []
    for name, values in components.items():
        if not isinstance(values, dict):
            raise _refused(values, f"is not an object of settings of {name}")
        for key, value in values.items():
            if key not in GRAPH_SETTINGS:
                raise _refused(
                    key, f"is no setting of {name} that the graph can set; it can set {', '.join(GRAPH_SETTINGS)}"
                )
            wishes.append((name, GRAPH_SETTINGS[key], bytes_from_gb(value, f"{name}.{key}") if is_gb(key) else value))
    return SourceRequest.of(source, mode, "", wishes)


def _refused(value: object, problem: str) -> SettingsError:
    return SettingsError(
        f"asked graph_options = {shown(value)}; found that it {problem}; do leave it empty, or correct it"
    )
