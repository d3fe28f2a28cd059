"""What a prompt asks of which files, before it runs: for each component of ours its files and everybody's word on it.

Reads the prompt alone, in API form, as a browser has it; widgets that come from other nodes say nothing yet. What
nodes do with their widgets is in `nodes/`; the tables here repeat it by the widgets' names, and a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..offload_core.errors import SettingsError, shown
from ..offload_core.groups import group_of
from ..offload_core.resolver import settings_for
from ..offload_core.settings import ComponentSettings, Source
from .asked import AUTO, Asked, Word, options_word, settings_from
from .graph import APPLY, BY_INPUT, Place, names_in, wire_of
from .surroundings import Surroundings

MAX_NODES = 4000
MAX_STEPS = 200
"""Nodes between an Apply node and the loader in front of it."""

_CLIPS = ("clip_name1", "clip_name2", "clip_name3", "clip_name4")
_NONE = (None, "", "none")

_TAKE_LORAS = ("dit", "text_encoder")

Files = dict[str, tuple[str, tuple[str, ...]]]
"""By kind of component: the app's folder, and the widgets that name files in it."""

_ENCODERS: Files = {"text_encoder": ("text_encoders", _CLIPS)}
OURS: dict[str, Files] = {
    "LayerwiseOffloadDiffusionModelLoader": {"dit": ("diffusion_models", ("model_name",))},
    "LayerwiseOffloadCLIPLoader": _ENCODERS,
    "LayerwiseOffloadVAELoader": {"vae": ("vae", ("vae_name",))},
    "LayerwiseOffloadCLIPVisionLoader": {"image_encoder": ("clip_vision", ("clip_name",))},
    "LayerwiseOffloadControlNetLoader": {"controlnet": ("controlnet", ("control_net_name",))},
    "LayerwiseOffloadCheckpointLoader": dict.fromkeys(("dit", "text_encoder", "vae"), ("checkpoints", ("ckpt_name",))),
    "LayerwiseOffloadLoader": {
        "dit": ("diffusion_models", ("model_name",)),
        **_ENCODERS,
        "vae": ("vae", ("vae_name",)),
        "image_encoder": ("clip_vision", ("clip_vision_name",)),
    },
}
APPS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "UNETLoader": ("diffusion_models", ("unet_name",), ("dit",)),
    "CLIPLoader": ("text_encoders", ("clip_name",), ("text_encoder",)),
    "DualCLIPLoader": ("text_encoders", _CLIPS[:2], ("text_encoder",)),
    "TripleCLIPLoader": ("text_encoders", _CLIPS[:3], ("text_encoder",)),
    "QuadrupleCLIPLoader": ("text_encoders", _CLIPS, ("text_encoder",)),
    "VAELoader": ("vae", ("vae_name",), ("vae",)),
    "CLIPVisionLoader": ("clip_vision", ("clip_name",), ("image_encoder",)),
    "ControlNetLoader": ("controlnet", ("control_net_name",), ("controlnet",)),
    "CheckpointLoaderSimple": ("checkpoints", ("ckpt_name",), ("dit", "text_encoder", "vae")),
}
"""The app's own loaders that an Apply node may stand behind: folder, widgets, and what comes at which output."""

_PREFIXES = {
    **{"dit": "", "text_encoder": "clip_", "vae": "vae_"},
    **{"image_encoder": "clip_vision_", "controlnet": "control_net_"},
}
"""How a component's widgets begin where a node has several."""


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
    inputs = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
    near = Surroundings.of(
        SimpleNamespace(prompt=prompt, unique_id=node_id), _options(prompt, node), inputs.get("graph_options", "")
    )
    files: tuple[str, ...]
    before, folder, files = None, "", ()
    if node["class_type"] == APPLY:
        before, folder, files = (None, "", ()) if steps > MAX_STEPS else _behind(prompt, node_id, kind, made, steps)
        if steps > MAX_STEPS or (before is not None and len(before.nodes) > MAX_STEPS):
            raise SettingsError(f"asked about node {shown(node_id)}; found more than {MAX_STEPS} Apply nodes before it")
    else:
        folder, widgets = OURS[node["class_type"]][kind]
        files = _names(inputs, widgets)
    return Wanted(
        kind,
        near,
        _settings(node["class_type"], kind, inputs),
        inputs.get("mode", AUTO),
        before,
        folder,
        files,
        (*(before.nodes if before is not None else ()), node_id),
        str(inputs.get("weight_dtype", "default")) if kind == "dit" else "default",
        f"{_prefix(node['class_type'], kind)}budget_gb",
        _options_node(prompt, node),
        node["class_type"] == APPLY,
    )


def _behind(
    prompt: Mapping[str, Any], node_id: str, kind: str, made: dict[Place, Wanted], steps: int
) -> tuple[Wanted | None, str, tuple[str, ...]]:
    """What an Apply node gets its component from: one of ours, or a loader of the app's, through any other nodes."""
    key, seen = BY_INPUT[APPLY][kind], {node_id}
    wire = wire_of(prompt, node_id, key)
    while wire is not None and wire[0] not in seen:
        source, slot = wire
        seen.add(source)
        found = prompt[source]["class_type"]
        if found == APPLY or found in OURS:
            kinds = tuple(BY_INPUT[APPLY] if found == APPLY else OURS[found])
            if slot >= len(kinds) or kinds[slot] != kind:
                break
            before = _wanted(prompt, source, kind, made, steps + 1)
            return before, before.folder, before.files
        if found in APPS:
            folder, widgets, kinds = APPS[found]
            if slot < len(kinds) and kinds[slot] == kind:
                return None, folder, _names(prompt[source]["inputs"], widgets)
            break
        wire = wire_of(prompt, source, key)
    return None, "", ()


def _names(inputs: Mapping[str, Any], widgets: tuple[str, ...]) -> tuple[str, ...]:
    """The files that are named; none at all if one of them comes from another node."""
    values = [inputs.get(widget) for widget in widgets]
    if any(isinstance(value, list) for value in values):
        return ()
    return tuple(str(value) for value in values if value not in _NONE)


def _prefix(class_type: str, kind: str) -> str:
    """How the widgets for a kind of component begin on a node."""
    if class_type == "LayerwiseOffloadLoader" and kind == "dit":
        return "dit_"
    return _PREFIXES[kind] if class_type == APPLY or len(OURS[class_type]) > 1 else ""


def _settings(class_type: str, kind: str, inputs: Mapping[str, Any]) -> ComponentSettings:
    prefix = _prefix(class_type, kind)
    settings = settings_from(
        kind,
        inputs.get(f"{prefix}placement", AUTO),
        inputs.get(f"{prefix}budget_gb", 0.0),
        inputs.get(f"{prefix}ring_gb", 0.0),
        inputs.get("lora_mode", AUTO) if kind in _TAKE_LORAS else AUTO,
    )
    if kind != "vae":
        return settings
    precision = inputs.get("vae_precision" if class_type == "LayerwiseOffloadLoader" else "precision", AUTO)
    return settings.with_value("precision", precision, "node")


def _options_node(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """The id of the options node that is connected to a node; empty if there is none."""
    wire = node["inputs"].get("options")
    source = prompt.get(str(wire[0])) if isinstance(wire, list) else None
    return str(wire[0]) if source is not None and source["class_type"] == "LayerwiseOffloadOptions" else ""


def _options(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> Word | None:
    node_id = _options_node(prompt, node)
    if not node_id:
        return None
    source = prompt[node_id]
    said = {name: value for name, value in source["inputs"].items() if not isinstance(value, list)}
    return options_word(said, said.get("mode", AUTO), said.get("selection", ""))
