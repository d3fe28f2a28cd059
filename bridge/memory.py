"""How many bytes a component may use: what the user said, else what the app says is left. Device and host."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch
from comfy.cli_args import args

from ..offload_core import host_budget
from ..offload_core.host_budget import HostBudget
from ..offload_core.settings import ComponentSettings, Setting, Unset
from . import compat
from .device import total_bytes

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


def may_keep_version(nbytes: int) -> bool:
    """Whether `nbytes` more of host memory for a patched layer is reasonable now."""
    return nbytes <= host_budget.host_budget(host_available_bytes()).copies_bytes


def host_allowance(settings: ComponentSettings, held_bytes: int = 0, pinned_bytes: int = 0) -> HostBudget:
    """What a component may have of the host. `held_bytes`, `pinned_bytes`: what of it is already its own."""
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
