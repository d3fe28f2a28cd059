"""The components that a prompt would load, with their files and the requests of every source, before it runs.

Reads only the prompt, in API form, as a browser has it; inputs that are connected to other nodes have no value yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...offload_core.errors import SettingsError, shown
from ...offload_core.settings.component_settings import OF_THE_WORKFLOW, ComponentSettings, Setting, Source
from ...offload_core.settings.groups import ALL, DIT, group_of
from ...offload_core.settings.node_table import APPLY, OPTIONS, OPTIONS_WIDGETS, Slot
from ...offload_core.settings.resolver import settings_for
from .graph import Place, names_in, slots_of, sources_before, wire_of
from .node_context import NodeContext
from .requested import AUTO, Requested, options_request, widget_settings

MAX_NODES = 4000
MAX_STEPS = 200
"""Limit of the Apply nodes between a node and its loader."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one node of ours says of a component."""

    context: NodeContext
    settings: ComponentSettings
    """Set by the node's widgets."""
    mode: str
    widgets: Mapping[str, str]
    """The names of the node's widgets by setting, whether the node has them or not."""
    options_node: str
    """The id of the options node that is connected to the node; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One component that a run of the prompt would load, at its nodes of ours: `steps`, the loader's first."""

    kind: str
    name: str
    steps: tuple[Step, ...]
    folder: str
    files: tuple[str, ...]
    """Empty: they are known only when it runs."""
    weight_dtype: str
    """The loader's weight_dtype of a diffusion model; `default`: the file's own type."""
    by_the_app: bool
    """Whether another loader than ours loads it, which copies the weights out of their file."""

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(step.context.node_id for step in self.steps)

    def requested(self, turned_out: str | None = None) -> Requested:
        """The merged request of all sources; `turned_out`: the kind detected in its file. Raises SettingsError."""
        requested = None
        for step in self.steps:
            settings = replace(step.settings, component=step.context.name(self.kind, turned_out))
            requested = step.context.ask(settings, step.mode, requested)
        assert requested is not None
        return requested

    def budget_widgets(
        self, component: str, source: str | None, setting: str = Setting.BUDGET_BYTES
    ) -> tuple[tuple[str, str], ...]:
        """(node id, widget) of each widget by which `source` set the budget of the component, or the `setting` that is
        the budget of the whole workflow; empty if no widget did.

        Of loader and Apply nodes the last one counts, for the workflow's the last that sets it; of the options nodes
        connected to them, each that sets a budget.
        """
        if source == Source.NODE:
            steps = [step for step in self.steps if step.settings.is_explicitly_set(setting)]
            return tuple((step.context.node_id, step.widgets[setting]) for step in steps[-1:])
        selector = ALL if setting in OF_THE_WORKFLOW else group_of(component)
        widget = next((name for name, said in OPTIONS_WIDGETS.items() if said == (selector, setting)), None)
        if source != Source.OPTIONS or widget is None:
            return ()
        nodes = [
            step.options_node
            for step in self.steps
            for request in step.context.requests
            if request.source == Source.OPTIONS and settings_for(component, request.wishes).is_explicitly_set(setting)
        ]
        return tuple((node, widget) for node in dict.fromkeys(nodes))


def wanted_in(prompt: Mapping[str, Any]) -> list[Wanted]:
    """The components of a prompt, sorted by name, each at its last node of ours. Raises SettingsError."""
    check_prompt(prompt)
    last: dict[str, Wanted] = {}
    steps: dict[Place, Step] = {}
    for place, name in names_in(prompt).items():
        component = _wanted(prompt, place, name, steps)
        if name not in last or len(component.steps) > len(last[name].steps):
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


def _step(prompt: Mapping[str, Any], place: Place) -> Step:
    node_id, kind = place
    slot, inputs = _slot(prompt, place), _plain(prompt[node_id])
    wire = wire_of(prompt, node_id, "options")
    options_node = wire[0] if wire is not None and prompt[wire[0]]["class_type"] == OPTIONS else ""
    options = options_request(_plain(prompt[options_node])) if options_node else None
    context = NodeContext.of(prompt, node_id, options, inputs.get("graph_options", ""))
    settings = widget_settings(slot, inputs, kind)
    return Step(context, settings, inputs.get("mode", AUTO), slot.widgets, options_node)


def _wanted(prompt: Mapping[str, Any], place: Place, name: str, steps: dict[Place, Step]) -> Wanted:
    """The component at a place. `steps`: a cache, for any number of Apply nodes downstream of one node."""
    node_id, kind = place
    slot = _slot(prompt, place)
    sources = [(node_id, slot)]
    if prompt[node_id]["class_type"] == APPLY:
        sources += sources_before(prompt, node_id, slot)
    places = [(source, kind) for source, _ in reversed(sources) if slots_of(prompt[source])]
    if len(places) > MAX_STEPS + 1 or len(set(places)) < len(places):
        raise SettingsError(f"asked about node {shown(node_id)}; found more than {MAX_STEPS} Apply nodes before it")
    steps |= {place: _step(prompt, place) for place in places if place not in steps}
    source, slot = sources[-1]
    files = slot.names(prompt[source]["inputs"])
    loader = prompt[places[0][0]]
    return Wanted(
        kind=kind,
        name=name,
        steps=tuple(steps[place] for place in places),
        folder=slot.folder,
        files=() if any(isinstance(file, list) for file in files) else tuple(map(str, files)),
        weight_dtype=str(_plain(loader).get("weight_dtype", "default")) if kind == DIT else "default",
        by_the_app=loader["class_type"] == APPLY,
    )


def _slot(prompt: Mapping[str, Any], place: Place) -> Slot:
    return next(slot for slot in slots_of(prompt[place[0]]) if slot.kind == place[1])


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node that are values, not connections."""
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
