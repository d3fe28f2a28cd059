"""The components that a prompt would load, with their files and the requests of every source, before it runs.

Reads only the prompt, in API form, as a browser has it; inputs that are connected to other nodes have no value yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...offload_core.errors import SettingsError, shown
from ...offload_core.settings.component_settings import ComponentSettings, Setting, Source
from ...offload_core.settings.groups import DIT, group_of
from ...offload_core.settings.node_table import APP_LOADERS, APPLY, OPTIONS, Slot
from ...offload_core.settings.resolver import settings_for
from .graph import Place, names_in, slots_of, wire_of
from .node_context import NodeContext
from .requested import AUTO, Requested, options_request, widget_settings

MAX_NODES = 4000
MAX_STEPS = 200
"""Limit of the Apply nodes between a node and its loader."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One component that a run of the prompt would load. `files` empty: they are known only when it runs.

    `context`: its node's context. `before`: the same component at the node of ours upstream. `nodes`: the ids of its
    nodes, the loader's first.
    """

    kind: str
    context: NodeContext
    settings: ComponentSettings
    """Set by the node's widgets."""
    mode: str
    before: Wanted | None
    folder: str
    files: tuple[str, ...]
    nodes: tuple[str, ...]
    own_dtype: str
    budget_widget: str
    """The name of the node's budget widget, whether the node has one or not."""
    options_node: str
    """The id of the options node that is connected to the node; empty if there is none."""
    taken_over: bool
    """An Apply node brings it. If `before` is None, no node of ours is upstream."""

    @property
    def weight_dtype(self) -> str:
        """The loader's weight_dtype of a diffusion model; `default`: the file's own type."""
        return self.own_dtype if self.before is None else self.before.weight_dtype

    @property
    def by_the_app(self) -> bool:
        """Whether another loader than ours loads it, which copies the weights out of their file."""
        return self.taken_over if self.before is None else self.before.by_the_app

    @property
    def name(self) -> str:
        return self.context.name(self.kind)

    def requested(self, turned_out: str | None = None) -> Requested:
        """The merged request of all sources; `turned_out`: the kind detected in its file. Raises SettingsError."""
        settings = ComponentSettings(self.context.name(self.kind, turned_out)).merged(self.settings)
        before = self.before.requested(turned_out) if self.before is not None else None
        return self.context.ask(settings, self.mode, before)

    def budget_widgets(self, component: str, source: str | None) -> tuple[tuple[str, str], ...]:
        """(node id, widget) of each widget by which `source` set the budget of the component; empty if no widget did.

        Of loader and Apply nodes the last one counts; of the options nodes connected to them, each that sets a budget.
        """
        if source == Source.NODE:
            return ((self.context.node_id, self.budget_widget),)
        group = group_of(component)
        if source != Source.OPTIONS or group is None:
            return ()
        before = self.before.budget_widgets(component, source) if self.before is not None else ()
        is_set = any(
            settings_for(component, request.wishes).is_explicitly_set("budget_bytes")
            for request in self.context.requests
            if request.source == Source.OPTIONS
        )
        widgets = ((self.options_node, f"{group}_budget_gb"),) if is_set else ()
        return tuple(dict.fromkeys((*before, *widgets)))


def wanted_in(prompt: Mapping[str, Any]) -> list[Wanted]:
    """The components of a prompt, sorted by name, each at its last node of ours. Raises SettingsError."""
    check_prompt(prompt)
    last: dict[str, Wanted] = {}
    known: dict[Place, Wanted] = {}
    for (node_id, kind), name in names_in(prompt).items():
        component = _wanted(prompt, node_id, kind, known)
        if name not in last or len(component.nodes) > len(last[name].nodes):
            last[name] = component
    return [last[name] for name in sorted(last)]


def check_prompt(prompt: object) -> None:
    """Raise SettingsError if `prompt` is not a prompt in API form."""
    if not isinstance(prompt, dict) or len(prompt) > MAX_NODES:
        raise SettingsError(f"asked with a prompt that is no object of at most {MAX_NODES} nodes; send the API form")
    for node_id, node in prompt.items():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict) or not isinstance(node.get("class_type"), str):
            raise SettingsError(f"asked with node {shown(node_id)}; found no class_type and inputs; send the API form")
        for name, value in inputs.items():
            if isinstance(value, list) and not (len(value) == 2 and isinstance(value[1], int)):
                raise SettingsError(
                    f"asked with {shown(name)} of node {shown(node_id)}; found a link that is not [node, slot]"
                )


def _wanted(prompt: Mapping[str, Any], node_id: str, kind: str, known: dict[Place, Wanted], steps: int = 0) -> Wanted:
    """The component of `kind` at a node. `known`: a cache, for any number of Apply nodes downstream of one node."""
    if (node_id, kind) not in known:
        known[node_id, kind] = _read_node(prompt, node_id, kind, known, steps)
    return known[node_id, kind]


def _read_node(prompt: Mapping[str, Any], node_id: str, kind: str, known: dict[Place, Wanted], steps: int) -> Wanted:
    node = prompt[node_id]
    (slot,) = (slot for slot in slots_of(node) if slot.kind == kind)
    inputs = _plain(node)
    options_node = _options_node(prompt, node_id)
    options = options_request(_plain(prompt[options_node])) if options_node else None
    context = NodeContext.of(prompt, node_id, options, inputs.get("graph_options", ""))
    before, folder, files = None, slot.folder, _files(slot, node)
    if node["class_type"] == APPLY:
        before, folder, files = (None, "", ()) if steps > MAX_STEPS else _upstream(prompt, node_id, slot, known, steps)
        if steps > MAX_STEPS or (before is not None and len(before.nodes) > MAX_STEPS):
            raise SettingsError(f"asked about node {shown(node_id)}; found more than {MAX_STEPS} Apply nodes before it")
    return Wanted(
        kind,
        context,
        widget_settings(slot, inputs, kind),
        inputs.get("mode", AUTO),
        before,
        folder,
        files,
        (*(before.nodes if before is not None else ()), node_id),
        str(inputs.get("weight_dtype", "default")) if kind == DIT else "default",
        slot.widgets[Setting.BUDGET_BYTES],
        options_node,
        node["class_type"] == APPLY,
    )


def _upstream(
    prompt: Mapping[str, Any], node_id: str, slot: Slot, known: dict[Place, Wanted], steps: int
) -> tuple[Wanted | None, str, tuple[str, ...]]:
    """(component, folder, files) at the loader or Apply node from which an Apply node gets its component.

    Other nodes between them are passed. Component None: a loader of the app's; folder and files empty: none found.
    """
    seen = {node_id}
    wire = wire_of(prompt, node_id, slot.needs)
    while wire is not None and wire[0] not in seen:
        source, output = wire
        seen.add(source)
        node = prompt[source]
        ours, slots = slots_of(node), slots_of(node) or APP_LOADERS.get(node["class_type"], ())
        if slots:
            if output >= len(slots) or slots[output].kind != slot.kind:
                break
            if not ours:
                return None, slots[output].folder, _files(slots[output], node)
            before = _wanted(prompt, source, slot.kind, known, steps + 1)
            return before, before.folder, before.files
        wire = wire_of(prompt, source, slot.needs)
    return None, "", ()


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node that are values, not connections."""
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}


def _files(slot: Slot, node: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a node's widgets name; empty if one of the names is a connection."""
    names = slot.names(node["inputs"])
    return () if any(isinstance(name, list) for name in names) else tuple(map(str, names))


def _options_node(prompt: Mapping[str, Any], node_id: str) -> str:
    """The id of the options node that is connected to a node; empty if there is none."""
    wire = wire_of(prompt, node_id, "options")
    return wire[0] if wire is not None and prompt[wire[0]]["class_type"] == OPTIONS else ""
