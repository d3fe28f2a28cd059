"""Fills in, at the moment a component is loaded, what was not set: the policy at work on real sizes and free bytes.

A component that is loaded late gets its settings then, by its name (the graph is never known in full). All other
components that are alive in the process count with their real sizes. Explicit settings are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import comfy.model_management as mm
import torch

from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.planner import smallest_budget, usual_budget
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings import policy
from ...offload_core.settings.component_settings import ComponentSettings, Setting, Source
from ...offload_core.settings.groups import match, numbered_base
from ...offload_core.settings.resolver import Request, Resolution, resolve
from ..app.device import total_bytes
from ..memory.allowances import DeviceAllowance, host_available_bytes
from ..requests.requested import AUTO, Requested

_FIRST_NUMBER = 500
"""Others may have any name, or the component's own: here they are told apart by numbers that no graph has."""

APPS_WAY = ("whole", "cpu")
"""Placements that the app carries out by itself, without us."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another component that is alive: what it asked for, how large it is, what it holds on the device now."""

    requested: Requested
    bytes: int
    held_bytes: int
    room_bytes: int = 0
    """What the app will ask for when it is loaded next, of what it does not hold."""


def left_to_the_app(requested: Requested) -> Sentence | None:
    """The reason why a component goes the app's own way whatever its size and the device's; None if it does not."""
    placement = requested.value(Setting.PLACEMENT)
    if placement in APPS_WAY:
        return requested.settings.reason(Setting.PLACEMENT)
    if isinstance(placement, str):
        return None
    if requested.settings.is_explicitly_set(Setting.BUDGET_BYTES):
        return None  # a budget is something only we can keep
    # A selection that names it is the selection's word for layerwise; one that does not leaves it alone.
    if requested.selected is not None:
        return None if requested.selected else sentence("not_selected")
    placed = policy.Placed(policy.Component(requested.component, 1))
    decision = policy.decide(requested.mode or AUTO, policy.Device("unknown"), None, [placed])
    choice = decision.choices[requested.component]
    return choice.reason if choice.placement in APPS_WAY else None


def resolve_now(
    requested: Requested,
    inventory: Inventory,
    device: torch.device,
    held_bytes: int,
    others: Iterable[Neighbour],
    in_memory_bytes: int = 0,
) -> Resolution:
    """The resolution for one component beside all others that are alive, on what `device` has at this moment.

    `held_bytes` it holds on the device, `in_memory_bytes` its copies take of the host: both count as available to it.
    Raises SettingsError or BudgetError for an explicit wish of this component that cannot be honoured.
    """
    others = list(others)
    name, total = requested.component, total_bytes(device)
    layers_bytes = sum(layer.bytes for layer in inventory.layers)
    components = [policy.Component(name, inventory.total_bytes, layers_bytes=layers_bytes)]
    settings = {name: requested.settings}
    for number, other in enumerate(others, _FIRST_NUMBER):
        other_name = f"{numbered_base(other.requested.component)[0]}_{number}"
        components.append(policy.Component(other_name, other.bytes))
        settings[other_name] = _as_it_stands(other_name, other, total)
    names = [component.name for component in components]
    free = int(mm.get_free_memory(device)) + held_bytes + sum(other.held_bytes for other in others)
    selection = [selector for selector in requested.selection or () if match(selector, names)] or None
    return resolve(
        Request(
            tuple(components),
            mode=requested.mode or AUTO,
            selection=selection,
            settings=settings,
            device=policy.Device(device.type, total, free),
            host_available_bytes=host_available_bytes() + in_memory_bytes,
        )
    )


def _as_it_stands(name: str, other: Neighbour, total: int) -> ComponentSettings:
    """A neighbour's placement, as far as it was set or the app carries it out.

    Whether its own wishes can be honoured is not checked here: loading it does that.
    """
    placement = other.requested.settings.explicit(Setting.PLACEMENT, str)
    if placement is None and left_to_the_app(other.requested):
        placement = "whole"
    if placement == "resident" and other.bytes > total:
        placement = None
    return ComponentSettings(name).with_value(Setting.PLACEMENT, placement or AUTO, Source.GRAPH)


def within_policy(
    requested: Requested,
    resolved: ComponentSettings,
    inventory: Inventory,
    allowance: DeviceAllowance,
    room_bytes: int = 0,
    crowded_bytes: int | None = None,
) -> DeviceAllowance:
    """What the app offers, cut to what the policy leaves to the component and to what others will ask for.

    `room_bytes`: what the next encoder or VAE will ask for, of what it does not hold; `crowded_bytes`: see `Situation`.
    """
    explicit = requested.settings.is_explicitly_set("placement")
    if requested.mode == "memory" and not explicit:
        ring = max(smallest_budget(inventory), usual_budget(inventory))
        return DeviceAllowance(ring, sentence("memory_mode_ring"))
    if requested.value("placement") == "resident":
        return allowance
    if crowded_bytes is not None and (allowance.budget_bytes is None or crowded_bytes < allowance.budget_bytes):
        return DeviceAllowance(crowded_bytes, sentence("ran_out_with_more"))
    if allowance.budget_bytes is None:
        return allowance
    if room_bytes and inventory.total_bytes > allowance.budget_bytes - room_bytes:
        reason = sentence("offered_less_room", reason=allowance.reason, room=f"{room_bytes / 1e9:.2f} GB")
        left_bytes = max(allowance.budget_bytes - room_bytes, smallest_budget(inventory))
        allowance = DeviceAllowance(left_bytes, reason)
    budget = resolved.value("budget_bytes")
    if explicit or not isinstance(budget, int) or allowance.budget_bytes is None or allowance.budget_bytes <= budget:
        return allowance
    return DeviceAllowance(budget, resolved.reason("budget_bytes") or allowance.reason)
