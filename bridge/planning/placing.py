"""Fills in, at the moment a component is loaded, what was not set: the policy at work on real sizes and free bytes.

A component that is loaded late gets its settings then, by its name (the graph is never known in full). All other
components that are alive in the process count with their real sizes. Explicit settings are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as mm
import torch

from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.planner import smallest_budget, usual_budget
from ...offload_core.runtime.layers.layer import Layer
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings import policy
from ...offload_core.settings.component_settings import ComponentSettings, Setting, Source
from ...offload_core.settings.groups import match, numbered_base
from ...offload_core.settings.resolver import Request, Resolution, resolve
from ..app.device import streams_to, total_bytes
from ..app.kinds import Kind
from ..memory.allowances import DeviceAllowance, host_available_bytes
from ..requests.requested import AUTO, Requested
from .workflow import Member

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
    wanted_bytes: int = 0
    """What it will ask the app for when it is loaded next; 0 if it is loaded, or of a kind that asks for no ring."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a component finds where it is to be loaded.

    offered_bytes  device bytes that the app would let its weights have; 1e18 and more: as many as they want
    held_bytes     device bytes that it holds already
    neighbours     the other components that are alive
    layers         its layers, as far as they exist: what they have of host memory is its own
    crowded_bytes  what it can have on this shape, where the device ran out of memory with more; None: it did not
    members        the other components of the workflow, whether they have been loaded or not
    on_peer        what it may take of another device's memory, of one that is to be loaded; None: what is free there
    """

    device: torch.device
    offered_bytes: float
    held_bytes: int = 0
    neighbours: Sequence[Neighbour] = ()
    layers: Sequence[Layer] = ()
    crowded_bytes: int | None = None
    members: Sequence[Member] = ()
    on_peer: Mapping[str, Any] | None = None

    @classmethod
    def guessed(
        cls,
        device: torch.device,
        held_bytes: int,
        neighbours: Sequence[Neighbour],
        layers: Sequence[Layer] = (),
        members: Sequence[Member] = (),
    ) -> Situation:
        """What a load would find now: of what is free, or held by components of ours, the app keeps some to compute."""
        now = cls(device, 0, held_bytes, neighbours, layers, members=members)
        return replace(now, offered_bytes=max(0, now.free_bytes() - int(mm.minimum_inference_memory())))

    def free_bytes(self) -> int:
        """Bytes of the device that are free now, or held by components of ours."""
        held_bytes = self.held_bytes + sum(neighbour.held_bytes for neighbour in self.neighbours)
        return int(mm.get_free_memory(self.device)) + held_bytes


def left_to_the_app(requested: Requested, by_number: bool = True) -> Sentence | None:
    """The reason why a component goes the app's own way whatever its size and the device's; None if it does not.

    by_number: a number for the whole workflow alone makes us stream it, since only we can keep that.
    """
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
    if by_number and requested.has_budget and requested.mode != "manual":
        return None
    placed = policy.Placed(policy.Component(requested.component, 1))
    decision = policy.decide(requested.mode or AUTO, policy.Device("unknown"), None, [placed])
    choice = decision.choices[requested.component]
    return choice.reason if choice.placement in APPS_WAY else None


def may_stream_on(device: torch.device, requested: Requested, nbytes: int) -> bool:
    """Whether to stream weights of so many bytes there; on the CPU, from their file, only if asked, or if they must."""
    explicit = requested.value("placement") == "layerwise" or requested.settings.is_explicitly_set("budget_bytes")
    return streams_to(device) or explicit or nbytes > host_available_bytes()


def wanted_bytes(kind: Kind, requested: Requested, inventory: Inventory, shared_bytes: int = 0) -> int:
    """Device bytes to ask the app for: the budget if one is set; else all, or a usual ring, of which other components
    have leased `shared_bytes` already."""
    budget = requested.value(Setting.BUDGET_BYTES)
    if isinstance(budget, int):
        return min(budget, inventory.total_bytes)
    rings = kind.asks_for_ring or requested.mode == "memory"
    if requested.value(Setting.PLACEMENT) == "resident" or not rings:
        return inventory.total_bytes
    return usual_budget(inventory) - shared_bytes


def resolve_now(requested: Requested, inventory: Inventory, situation: Situation) -> Resolution:
    """The resolution for one component beside all others that are alive, on what there is at this moment.

    What it holds on the device, and what its copies take of the host, counts as available to it.
    Raises SettingsError or BudgetError for an explicit wish of this component that cannot be honoured.
    """
    name, device = requested.component, situation.device
    total = total_bytes(device)
    layers_bytes = sum(layer.bytes for layer in inventory.layers)
    components = [policy.Component(name, inventory.total_bytes, layers_bytes=layers_bytes)]
    settings = {name: requested.settings}
    for number, other in enumerate(situation.neighbours, _FIRST_NUMBER):
        other_name = f"{numbered_base(other.requested.component)[0]}_{number}"
        components.append(policy.Component(other_name, other.bytes))
        settings[other_name] = _as_it_stands(other_name, other, total)
    names = [component.name for component in components]
    selection = [selector for selector in requested.selection or () if match(selector, names)] or None
    copies_bytes = sum(layer.nbytes for layer in situation.layers if layer.host.master is not None)
    return resolve(
        Request(
            tuple(components),
            mode=requested.mode or AUTO,
            selection=selection,
            settings=settings,
            device=policy.Device(device.type, total, situation.free_bytes()),
            host_available_bytes=host_available_bytes() + copies_bytes,
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
    room_bytes: int,
    crowded_bytes: int | None,
) -> DeviceAllowance:
    """What the app offers, cut to what the policy leaves to the component and to what others will ask for.

    `room_bytes`: what the app will free for the next encoder or VAE; `crowded_bytes`: see `Situation`.
    """
    explicit = requested.settings.is_explicitly_set("placement")
    if requested.mode == "memory" and not explicit:
        ring = max(smallest_budget(inventory), usual_budget(inventory))
        return DeviceAllowance(ring, sentence("memory_mode_ring"))
    if requested.value("placement") == "resident":
        return allowance
    offered, reason = allowance.budget_bytes, allowance.reason
    if crowded_bytes is not None and (offered is None or crowded_bytes < offered):
        return DeviceAllowance(crowded_bytes, sentence("ran_out_with_more"))
    if offered is None:
        return allowance
    if room_bytes and inventory.total_bytes > offered - room_bytes:
        reason = sentence("offered_less_room", reason=reason, room=f"{room_bytes / 1e9:.2f} GB")
        offered = max(offered - room_bytes, smallest_budget(inventory))
    budget = resolved.value("budget_bytes")
    if not explicit and isinstance(budget, int) and budget < offered:
        return DeviceAllowance(budget, resolved.reason("budget_bytes") or reason)
    return DeviceAllowance(offered, reason)
