"""How many bytes a component may use: what the user said, else what the app says is left. Device and host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from comfy.cli_args import args

from ...offload_core.errors import SettingsError
from ...offload_core.planning import host_budget
from ...offload_core.planning.host_budget import HostBudget
from ...offload_core.planning.host_tiers import out_of_tier
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.request import PlanRequest
from ...offload_core.runtime import OffloadController
from ...offload_core.runtime.engine.tier_moves import already_in_memory_bytes
from ...offload_core.runtime.layers.layer import Layer
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import SOURCE_WORDS, ComponentSettings, Setting, Source, peer_of
from ...offload_core.units import format_bytes
from ..app import compat
from ..app.device import streams_to, takes_host_memory, total_bytes

UNLIMITED_BYTES = 10**18
"""The app says "load it all" with 1e32; anything near that is no figure."""


@dataclass(frozen=True, slots=True)
class DeviceAllowance:
    """A budget in bytes (None: no limit known) and, for people, where it comes from."""

    budget_bytes: int | None
    reason: Sentence

    def at_most(self, other: DeviceAllowance | None) -> DeviceAllowance:
        """The smaller of two."""
        if other is None or other.budget_bytes is None:
            return self
        return other if self.budget_bytes is None or other.budget_bytes < self.budget_bytes else self


def device_allowance(settings: ComponentSettings, device: torch.device, offered_bytes: float) -> DeviceAllowance:
    """The budget of a component. `offered_bytes` is what the app would let its weights have on `device`."""
    values = settings.entries(Setting.BUDGET_BYTES)
    if values and isinstance(values[0].value, int):
        return DeviceAllowance(min(values[0].value, total_bytes(device)), values[0].reason)
    if offered_bytes >= UNLIMITED_BYTES:
        return DeviceAllowance(None, sentence("offered_all"))
    offered = max(0, int(offered_bytes))
    return DeviceAllowance(offered, sentence("offered", size=f"{offered / 1e9:.2f} GB", device=str(device)))


def host_available_bytes() -> int:
    """Host memory that this process may still take: the machine's, or what its container leaves of it."""
    available = host_budget.available_bytes()
    return int(psutil.virtual_memory().available) if available is None else available


def host_limits(
    settings: ComponentSettings,
    device: torch.device,
    layers: Iterable[Layer] = (),
    most_copies_bytes: int | None = None,
) -> dict[str, Any]:
    """What a plan may take of host memory now, as members of a plan request.

    `layers` are those of the component, as far as they exist: what they have of the host already is theirs. A tier that
    was asked for may take what the reserve would leave to others; whether it can be had shows in the plan, by
    `require_tier`. On the CPU there is no tier to choose. Where another device takes host memory, its budget is all
    there is to take, and is used: to read takes from compute. `most_copies_bytes`: what copies of layers in a file may
    take of what was set for the whole workflow; None: nothing was set.
    """
    if not streams_to(device):
        return {"pin_budget_bytes": 0, "copies_budget_bytes": 0, "in_place": True, "hold_spare": True}
    copies_bytes, pinned_bytes = already_in_memory_bytes(layers)
    asked_bytes = settings.explicit(Setting.PIN_BUDGET_BYTES, int)
    room = compat.app_pin_room_bytes()
    host = host_budget.host_budget(
        host_available_bytes() + copies_bytes,
        asked_pins_bytes=asked_bytes,
        apps_pin_room_bytes=None if room is None else room + pinned_bytes,
        cautious=host_budget.is_windows() or host_budget.is_wsl() or torch.version.hip is not None,
    )
    if args.disable_pinned_memory:
        host = replace(host, pins_bytes=0, reason="the app was started with --disable-pinned-memory")
    if takes_host_memory(device):
        host = HostBudget(0, 0, f"{device} computes in system memory, where a copy would be a second one")
    limits: dict[str, Any] = {"pin_budget_bytes": host.pins_bytes, "copies_budget_bytes": host.copies_bytes}
    tier = settings.value(Setting.HOST_TIER)
    if isinstance(tier, str) and peer_of(settings) is None:
        limits |= {"host_tier": tier, "copies_budget_bytes": host_available_bytes() + copies_bytes}
        if tier == "pinned":  # what is page-locked already takes nothing more
            kept_bytes = pinned_bytes if asked_bytes is None else min(pinned_bytes, asked_bytes)
            limits["pin_budget_bytes"] = max(host.pins_bytes, kept_bytes)
    if most_copies_bytes is None or most_copies_bytes >= limits["copies_budget_bytes"]:
        return {**limits, "host_source": host.reason}
    source = f"{host.reason}; its part of what the workflow may take of system memory"
    return {**limits, "copies_budget_bytes": most_copies_bytes, "host_source": source}


def require_tier(plan: Plan, request: PlanRequest, settings: ComponentSettings, source: str) -> None:
    """Raise SettingsError if a layer of `source`, the model, is streamed from another host tier than was asked for."""
    missed = out_of_tier(plan, request)
    if not missed:
        return
    source_words = SOURCE_WORDS[settings.source(Setting.HOST_TIER) or Source.POLICY]
    wish = f"asked {settings.component}.host_tier = {request.host_tier} ({source_words})"
    if request.host_tier == "mapped":
        names = f"{plan.layers[missed[0]].name}{', ...' if len(missed) > 1 else ''}"
        raise SettingsError(
            f"{wish}; found {len(missed)} layers of {source} that lie in no file ({names}); do load it from a "
            "safetensors file by a Layerwise Offload loader, or choose pageable, pinned or auto"
        )
    streamed = format_bytes(sum(plan.layers[index].bytes for index in plan.streamed))
    if any(plan.layers[index].host_tier == "mapped" for index in missed):
        raise SettingsError(
            f"{wish}; found {format_bytes(request.copies_budget_bytes or 0)} of system memory for {streamed} of "
            f"streamed layers of {source}; do choose mapped or auto, or a larger VRAM budget, so that less is streamed"
        )
    larger = ", or a larger pin_budget_gb" if settings.is_explicitly_set(Setting.PIN_BUDGET_BYTES) else ""
    raise SettingsError(
        f"{wish}; found that {format_bytes(request.pin_budget_bytes or 0)} may be page-locked ({request.host_source}) "
        f"and {streamed} of {source} are streamed; do choose pageable or auto{larger}"
    )


def host_remark(settings: ComponentSettings, device: torch.device) -> Sentence | None:
    """What to say where a node or an options node asks for something of host memory and the CPU runs the component,
    which reads streamed layers from their file; else None."""
    names = [
        f"{settings.component}.{name}"
        for name in (Setting.HOST_TIER, Setting.PIN_BUDGET_BYTES, Setting.PEER_BUDGET_BYTES)
        if settings.source(name) in (Source.NODE, Source.OPTIONS)
    ]
    if streams_to(device) or not names:
        return None
    if len(names) > 1:
        return sentence("no_effects_on_cpu", first=", ".join(names[:-1]), second=names[-1])
    return sentence("no_effect_on_cpu", setting=names[0])


def not_locked(controller: OffloadController) -> Sentence | None:
    """That some of the plan in effect could not be page-locked, and how much; None if all is."""
    if controller.plan is None:
        return None
    planned = [layer for layer in controller.plan.layers if layer.host_tier == "pinned"]
    missing = sum(layer.bytes for layer in planned) - controller.pinned_bytes()
    return sentence("not_page_locked", size=f"{missing / 1e9:.2f} GB") if missing > 0 else None
