"""How many bytes a component may use: what the user said, else what the app says is left. Device and host."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from comfy.cli_args import args

from ..offload_core.settings import ComponentSettings, Unset
from . import compat
from .device import total_bytes

UNLIMITED_BYTES = 10**18
"""The app says "load it all" with 1e32; anything near that is no figure."""

_PINNED_SHARE_OF_AVAILABLE = 0.5
"""Of the host memory that is available now. The rest is for the app, its caches and everybody else."""


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


def may_pin(nbytes: int) -> bool:
    """Whether page-locking `nbytes` more of host memory is reasonable on this machine, now."""
    if args.disable_pinned_memory:
        return False
    allowed = psutil.virtual_memory().available * _PINNED_SHARE_OF_AVAILABLE
    apps_room = compat.app_pin_room_bytes()
    if apps_room is not None:
        allowed = min(allowed, apps_room)
    return nbytes <= allowed
