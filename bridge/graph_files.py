"""What a prompt asks of which files, before it runs: for each component of ours its files and what every source asks
of it.

Reads the prompt alone, in API form, as a browser has it; widgets that come from other nodes say nothing yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..offload_core.errors import SettingsError, shown
from ..offload_core.groups import DIT, group_of
from ..offload_core.node_table import APP_LOADERS, APPLY, OPTIONS, Slot
from ..offload_core.resolver import settings_for
from ..offload_core.settings import ComponentSettings, Setting, Source
from .asked import AUTO, Asked, Word, options_word, widget_settings
from .graph import Place, names_in, slots_of, wire_of
from .surroundings import Surroundings

MAX_NODES = 4000
MAX_STEPS = 200
"""Nodes between an Apply node and the loader in front of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One component that a run of the prompt would load. `files` empty: they are seen only when it runs."""

    kind: str
    near: Surroundings
    settings: ComponentSettings
    """The widgets' word."""
    mode: str
    before: Wanted | None
    folder: str
    files: tuple[str, ...]
    nodes: tuple[str, ...]
    own_dtype: str
    budget_widget: str
    """The name of the node's widget for its budget; it may not have one."""
    options_node: str
    """The id of the options node that is connected to the node; empty if there is none."""
    taken_over: bool
    """An Apply node asks for it, and no node of ours in front of that."""

    @property
    def weight_dtype(self) -> str:
        """The type in which a loader of ours keeps a diffusion model's weights; default: the file's own."""
        return self.own_dtype if self.before is None else self.before.weight_dtype

    @property
    def by_the_app(self) -> bool:
        """Whether a loader of the app's brings it, which copies the weights out of their file."""
        return self.taken_over if self.before is None else self.before.by_the_app

    @property
    def name(self) -> str:
        return self.near.name(self.kind)

    def asked(self, turned_out: str | None = None) -> Asked:
        """All that is asked of it; `turned_out`: what its file says it is."""
        settings = ComponentSettings(self.near.name(self.kind, turned_out)).merged(self.settings)
        before = self.before.asked(turned_out) if self.before is not None else None
        return self.near.ask(settings, self.mode, before)

    def budget_widgets(self, component: str, source: str | None) -> tuple[tuple[str, str], ...]:
        """(node, widget) of each widget by which `source` set the budget of the component; none if no widget did.

        Of loader and Apply nodes the last one counts; of the options nodes connected to them, each that says it.
        """
        if source == Source.NODE:
            return ((self.near.node_id, self.budget_widget),)
        group = group_of(component)
        if source != Source.OPTIONS or group is None:
            return ()
        before = self.before.budget_widgets(component, source) if self.before is not None else ()
        says = any(
            settings_for(component, word.wishes).is_explicitly_set("budget_bytes")
            for word in self.near.words
            if word.source == Source.OPTIONS
        )
        mine = ((self.options_node, f"{group}_budget_gb"),) if says else ()
        return tuple(dict.fromkeys((*before, *mine)))


def wanted_in(prompt: Mapping[str, Any]) -> list[Wanted]:
    """The components of a prompt, in the order of their names. Raises SettingsError."""
    check_prompt(prompt)
    last: dict[str, Wanted] = {}
    made: dict[Place, Wanted] = {}
    for (node_id, kind), name in names_in(prompt).items():
        one = _wanted(prompt, node_id, kind, made)
        if name not in last or len(one.nodes) > len(last[name].nodes):
            last[name] = one
    return [last[name] for name in sorted(last)]


def check_prompt(prompt: object) -> None:
    """Raise SettingsError for what is no prompt in API form."""
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


def _wanted(prompt: Mapping[str, Any], node_id: str, kind: str, made: dict[Place, Wanted], steps: int = 0) -> Wanted:
    """`made`: those that are known already, each made once however many Apply nodes stand behind it."""
    if (node_id, kind) not in made:
        made[node_id, kind] = _made(prompt, node_id, kind, made, steps)
    return made[node_id, kind]


def _made(prompt: Mapping[str, Any], node_id: str, kind: str, made: dict[Place, Wanted], steps: int) -> Wanted:
    node = prompt[node_id]
    (slot,) = (slot for slot in slots_of(node) if slot.kind == kind)
    inputs = _plain(node)
    context = Surroundings.of(
        SimpleNamespace(prompt=prompt, unique_id=node_id), _options(prompt, node), inputs.get("graph_options", "")
    )
    before, folder, files = None, slot.folder, _files(slot, node)
    if node["class_type"] == APPLY:
        before, folder, files = (None, "", ()) if steps > MAX_STEPS else _behind(prompt, node_id, slot, made, steps)
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
        _options_node(prompt, node),
        node["class_type"] == APPLY,
    )


def _behind(
    prompt: Mapping[str, Any], node_id: str, slot: Slot, made: dict[Place, Wanted], steps: int
) -> tuple[Wanted | None, str, tuple[str, ...]]:
    """What an Apply node gets its component from: a node of ours, or a loader of the app's, through any other nodes."""
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
            before = _wanted(prompt, source, slot.kind, made, steps + 1)
            return before, before.folder, before.files
        wire = wire_of(prompt, source, slot.needs)
    return None, "", ()


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node that have a value, and do not come from another node."""
    return {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}


def _files(slot: Slot, node: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a node's widgets name; none at all if one of the names comes from another node."""
    names = slot.names(node["inputs"])
    return () if any(isinstance(name, list) for name in names) else tuple(map(str, names))


def _options_node(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """The id of the options node that is connected to a node; empty if there is none."""
    wire = node["inputs"].get("options")
    source = prompt.get(str(wire[0])) if isinstance(wire, list) else None
    return str(wire[0]) if source is not None and source["class_type"] == OPTIONS else ""


def _options(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> Word | None:
    node_id = _options_node(prompt, node)
    if not node_id:
        return None
    return options_word(_plain(prompt[node_id]))
