"""What people are told, as data: a code, and the values that stand in it. A reader in another language translates it.

``TEMPLATES`` has the English text of every code. The panel says the same from ``web/words/``, by ``why.<code>``. Sizes
and counts are text already: they are formatted once, where the sentence is made, so that every language shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that is said; see ``sentence``. Equal ones say the same."""

    code: str
    values: tuple[tuple[str, str | Sentence], ...] = ()

    @property
    def text(self) -> str:
        """The sentence in English."""
        shown = {name: value if isinstance(value, str) else value.text for name, value in self.values}
        return TEMPLATES[self.code].format_map(shown)

    def to_json(self) -> dict[str, Any]:
        """``{"code", "values"}``; a value that is a sentence has the same form."""
        values = {name: value if isinstance(value, str) else value.to_json() for name, value in self.values}
        return {"code": self.code, "values": values}


def sentence(code: str, **values: str | int | Sentence) -> Sentence:
    """The sentence of a code of ``TEMPLATES``, with a value for each placeholder of its template. Counts may be int."""
    return Sentence(code, tuple((name, str(v) if isinstance(v, int) else v) for name, v in values.items()))


def reason_json(reason: Sentence | None) -> dict[str, Any]:
    """The members of a document that say why: `reason` in English, `why` as data; empty and None without a reason."""
    return {"reason": "", "why": None} if reason is None else {"reason": reason.text, "why": reason.to_json()}


TEMPLATES: Final[Mapping[str, str]] = {
    # who set a value
    "source_node": "the node's own widget",
    "source_options": "the connected options node",
    "source_graph": "the graph's options",
    "source_settings": "the user's ComfyUI settings",
    "source_selection": "the selection of components to stream",
    "source_policy": "the policy",
    "set_by": "set by {source}",
    "set_by_for": "set by {source} for {selector}",
    "set_by_for_all": "set by {source} for all",
    "asked_for": "{source} asked for {value}",
    "stronger": "{reason} ({weaker}, which is weaker)",
    "both": "{first}; {second}",
    "selected": "named in the selection of components to stream",
    "setting": "{component}.{setting} = {value} ({source})",
    # why a component is placed as it is
    "given_less": "its {size} are more than its budget of {budget}",
    "given_enough": "its budget of {budget} holds all of its {size}",
    "manual_mode": "manual mode: a component whose placement is auto is left to the app",
    "no_group": "{component} is in no group: streamed only when named; left to the app",
    "beyond_host": "its {size} do not fit into {memory} of memory: read from the file",
    "all_on_cpu": "everything runs on the CPU: there is no device to stream to",
    "memory_mode": "memory mode: components whose placement is auto are streamed",
    "memory_mode_not_selected": "not among the components selected for streaming; leaves the device after use",
    "free_unknown": "the device's free memory is not known: streaming needs the least",
    "free_unknown_not_selected": (
        "the device's free memory is not known; not among the components selected for streaming"
    ),
    "cannot_stream": "cannot be streamed ({why}); left to the app",
    "layers_cannot_stream": "its layers cannot be streamed",
    "memory_sum": "{needed} needed, {free} free less {headroom} of headroom",
    "resident_fits": "its {size} fit beside the rest: {sum}",
    "does_not_fit": "its {size} do not fit beside the rest: {sum}",
    "not_selected": "not among the components selected for streaming",
    "room_for_some": "{reason}; ComfyUI has room for {resident} of its {layers} layers, the others are streamed",
    "in_memory": (
        "computed on the CPU, with its weights in memory already: it runs the app's way; a Layerwise Offload loader in "
        "place of the app's streams them from their file"
    ),
    "no_patcher": "without a patcher: the node that uses it moves it itself; left to the app",
    "only_dynamic": "loaded for Dynamic VRAM, and ComfyUI has no way to load it without; left to the app",
    "moved_its_own_way": "under a patcher that moves weights its own way ({patcher}); left to the app",
    "seen_later": "its file is seen only when the workflow runs",
    "no_device_memory": "this device has no memory of its own: there is nothing to stream to",
    # why the other settings are what they are
    "budget_left": "what {free} free leave beside {residents} of residents and {headroom} of headroom",
    "budget_ring": "a ring, and free memory until the app needs it",
    "planner_decides_ring": "the planner decides: room for the largest layer, and for any three ordinary ones",
    "tier_by_layer": "decided for each layer: pinned, then pageable, then mapped",
    "pins_shared": "what the machine can spare, shared by all components",
    "free_on_other_device": "what is free on {device}",
    "no_other_device": "host_tier names no other device",
    "precision_of_app": "ComfyUI's own choice for this model and device",
    "lora_when_applied": "decided when a LoRA is applied",
    "no_workflow_budget": "no budget is set for the VRAM of the whole workflow",
    "no_workflow_host": "no budget is set for the system memory of the whole workflow",
    "nothing_to_decide": "nothing to decide: the component is {placement}",
    # where a budget that was not set comes from
    "offered": "no budget set: the {size} that the app offers on {device}",
    "part_of_workflow": "its part of the {number} that the weights of the workflow may take ({source})",
    "offered_all": "no budget set, and the app wants all of it on the device",
    "offered_less_room": "{reason}, less {room} that the next encoder or VAE will ask for",
    "memory_mode_ring": "memory mode: a ring and nothing more",
    "ran_out_with_more": "the device ran out of memory with more, during a pass",
    # notices of what was asked and decided
    "absent": "{component}: named by {source}, but not in this graph",
    "stronger_than_selection": (
        "{component}: the selection names it for streaming, but {source} set {placement}, which is stronger"
    ),
    "budget_beyond_device": "{setting} is more than the device has: clamped to its {size}",
    "resident_beyond_free": "{setting} needs {size}, {free} are free: the app will have to make room",
    "no_effect": "{setting} has no effect: the component is {placement}",
    "no_effect_on_cpu": (
        "{setting} has no effect on the CPU: its layers are read from their file, or used where they are"
    ),
    "no_effects_on_cpu": (
        "{first} and {second} have no effect on the CPU: its layers are read from their file, or used where they are"
    ),
    "no_effect_without_device": "{setting} has no effect: host_tier names no other device",
    "is_own_device": "{component}: runs on {device} itself, which host_tier names: its layers wait in system memory",
    "no_store_in_split": (
        "{component}: each step is split between devices: its layers wait in system memory, not on {device}"
    ),
    "free_memory_unknown": "the device's free memory is not known, so the policy keeps nothing resident",
    "cannot_be_streamed": "{component}: would be streamed ({reason}), but {why}; left to the app",
    "not_everything_fits": "even so not everything fits: {sum}; the app will have to make room",
    "speed_gives_way": "{component}: speed mode would keep it resident, but {reason}; {placement} instead",
    "ring_only": "{component}: only {left} are left for it: a ring and nothing more",
    "budget_too_small": "{budget} are less than the {needed} needed",
    "less_than_needed": "{reason}, which is less than it needs: it takes {needed}",
    # notices of what has happened
    "unheeded": (
        "ComfyUI {version} passes more to this pack than it knows, which was run in ComfyUI up to {newest}: {names}; "
        "layers are streamed as without it; look for a newer version of the pack"
    ),
    "found_in_memory": "{component}: asked to stream it; found it {reason}",
    "loaded_twice": "the model was loaded for Dynamic VRAM and had to be loaded a second time",
    "nothing_to_stream": (
        "asked to stream {model} layer by layer; found no repeated blocks of {least} or more: all of its {size} are "
        "resident"
    ),
    "written_under_patch": "{name} was written to while a patch (a LoRA, say) is on it: that has no effect",
    "table_has_no_room": (
        "{table} ({size}) is used as a whole, as for the tokens of generated text: it is copied each time, beside the "
        "budget, which has no room for it"
    ),
    "not_page_locked": "{size} could not be page-locked: copied through a staging buffer, which is slower",
    "less_than_planned": "{planned} could not be had on {device}: using {used}",
    "not_stored": "{size} of layers found no memory on {device}: they are copied from system memory or the file",
    "peer_has_limit": "{device} needed memory for other models: fewer layers of this one lie there than could",
    "beyond_workflow": (
        "{component} needs {own} beside what runs at the same time: {held} together, more than the {number} for the "
        "weights of the workflow"
    ),
    "own_beyond_workflow": (
        "the budget of {component}, {own}, is more than the {number} for the weights of the workflow: its own counts"
    ),
    "own_within_workflow": (
        "the budget of {component}, {own}, is more than the {number} for the weights of the workflow, which a stronger "
        "source sets: that counts"
    ),
    "full_in_graph": "{device} ran out of memory in the middle of a pass, in ComfyUI's compiler memory graph",
    "full_run_again": (
        "{device} ran out of memory in the middle of a pass: {given} were given up, and the layer was run again"
    ),
    "full_too_late": (
        "{device} ran out of memory in the middle of a pass: {given} were given up, and the layer could not be run "
        "twice"
    ),
    "patched_on_arrival_asked": (
        "as lora_mode asks: patches (a LoRA, say) of {layers} layers are applied on each arrival"
    ),
    "patched_on_arrival_short": (
        "system memory is short: patches (a LoRA, say) of {layers} layers are applied on each arrival"
    ),
    "outside_their_call": "weights of {layers} layers ({names}, ...) used outside their layer's call: copied each time",
    # what the user can do
    "do_set_budget_of_device": "set a budget that the device has, or 0 for auto",
    "do_name_device": "set host_tier to another device such as cuda:1, or this budget to 0",
    "do_load_once": "use a Layerwise Offload loader node in place of the app's, which loads it once",
    "do_without_dynamic": "start ComfyUI with --disable-dynamic-vram to stream it",
    "do_choose_whole": "choose the placement `whole` to let ComfyUI move it, or `auto`",
    "do_change_before": "change the weights before the patch, or save the patched model and change that",
    "do_set_budget": "set a budget of {budget} or more",
    "do_set_workflow_budget": "set workflow_budget_gb to {budget} or more, or budgets of single components to less",
    "do_lower_peer_budget": "set peer_budget_gb to less than what is free on {device}",
    "do_free_memory": "free system memory or raise the limit of locked memory for full speed",
    "do_run_again": "run the prompt again",
}
