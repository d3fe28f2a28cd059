"""How many bytes a component may use: what the user said, else what the app says is left. Device and host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from comfy.cli_args import args

from ..offload_core import host_budget
from ..offload_core.errors import SettingsError
from ..offload_core.host_budget import HostBudget
from ..offload_core.inventory import Inventory
from ..offload_core.runtime import OffloadController
from ..offload_core.settings import ComponentSettings, Setting, Unset
from . import compat
from .device import streams_to, takes_host_memory, total_bytes

UNLIMITED_BYTES = 10**18
"""The app says "load it all" with 1e32; anything near that is no figure."""


@dataclass(frozen=True, slots=True)
class DeviceAllowance:
    """A budget in bytes (None: no limit known) and, for people, where it comes from."""

    budget_bytes: int | None
    reason: str


def device_allowance(settings: ComponentSettings, device: torch.device, offered_bytes: float) -> DeviceAllowance:
    """The budget of a component. `offered_bytes` is what the app would let its weights have on `device`."""
    total = total_bytes(device)
    asked = settings.value("budget_bytes")
    if isinstance(asked, int) and not isinstance(asked, Unset):
        if asked > total:
            return DeviceAllowance(
                total, f"budget {asked / 1e9:.2f} GB is more than {device} has: clamped to its {total / 1e9:.2f} GB"
            )
        return DeviceAllowance(asked, f"budget {asked / 1e9:.2f} GB, {settings.reason('budget_bytes')}")
    if offered_bytes >= UNLIMITED_BYTES:
        return DeviceAllowance(None, "no budget set, and the app wants all of it on the device")
    offered = max(0, int(offered_bytes))
    return DeviceAllowance(offered, f"no budget set: the {offered / 1e9:.2f} GB that the app offers on {device}")


def host_available_bytes() -> int:
    """Host memory that this process may still take: the machine's, or what its container leaves of it."""
    available = host_budget.available_bytes()
    return int(psutil.virtual_memory().available) if available is None else available


def host_allowance(settings: ComponentSettings, held_bytes: int = 0, pinned_bytes: int = 0) -> HostBudget:
    """What a component may have of the host. `held_bytes`, `pinned_bytes`: what of it is there already."""
    asked = settings.value(Setting.PIN_BUDGET_BYTES)
    apps_room = compat.app_pin_room_bytes()
    found = host_budget.host_budget(
        host_available_bytes() + held_bytes,
        asked_pins_bytes=asked if isinstance(asked, int) else None,
        apps_pin_room_bytes=None if apps_room is None else apps_room + pinned_bytes,
        cautious=host_budget.is_windows() or host_budget.is_wsl() or torch.version.hip is not None,
    )
    if args.disable_pinned_memory:
        return replace(found, pins_bytes=0, reason="the app was started with --disable-pinned-memory")
    return found


def host_limits(
    settings: ComponentSettings, inventory: Inventory, device: torch.device, file: str, held: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """What a plan may take of host memory now, as members of a plan request.

    file  the model's, for the error
    held  bytes of copies and page-locked bytes that are there already, and cost nothing to have

    Where the device takes host memory, its budget is all there is to take, and is used: to read takes from compute.
    Raises SettingsError for a tier that cannot be had.
    """
    if not streams_to(device):
        return {"pin_budget_bytes": 0, "copies_budget_bytes": 0, "in_place": True, "hold_spare": True}
    host = host_allowance(settings, *held)
    if takes_host_memory(device):
        host = HostBudget(0, 0, f"{device} computes in host memory, where a copy would be a second one")
    limits: dict[str, Any] = {"pin_budget_bytes": host.pins_bytes, "copies_budget_bytes": host.copies_bytes}
    tier = settings.value(Setting.HOST_TIER)
    if isinstance(tier, str):
        in_no_file = [layer.name for layer in inventory.layers if not layer.in_file]
        if tier == "mapped" and in_no_file:
            raise SettingsError(
                f"asked {settings.component}.host_tier = mapped; found {len(in_no_file)} layers of {file} that lie "
                f"in no file as they are needed ({in_no_file[0]}, ...); load it by a Layerwise Offload loader and "
                "without LoRA, or choose pageable, pinned or auto"
            )
        limits |= {"host_tier": tier, "copies_budget_bytes": None}
    return {**limits, "host_source": host.reason}


def not_locked(controller: OffloadController) -> str:
    """What of the plan in effect could not be page-locked, in a line; nothing if all is."""
    if controller.plan is None:
        return ""
    planned = [layer for layer in controller.plan.layers if layer.host_tier == "pinned"]
    missing = sum(layer.bytes for layer in planned) - controller.pinned_bytes()
    if missing <= 0:
        return ""
    return f"{missing / 1e9:.2f} GB could not be page-locked: copied through a staging buffer, which is slower"
