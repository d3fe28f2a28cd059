"""Another device's memory as a store of streamed layers: which device was named, and how much a plan may take there."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch

from ...offload_core.errors import SettingsError
from ...offload_core.runtime import OffloadController
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import SOURCE_WORDS, ComponentSettings, Setting, Source, peer_of
from ...offload_core.settings.feasibility import require_device
from ..app.device import can_reach, device_names, streams_to


def peer_limits(
    settings: ComponentSettings, device: torch.device, held_bytes: int = 0, most_bytes: int | None = None
) -> dict[str, Any]:
    """What a plan may take of another device's memory now, as members of a plan request; empty if none was named, or
    the one on which the component runs.

    `held_bytes`: what the component has there. `most_bytes`: what it may have there at most, because other models on
    that device need the rest; None: none does. Raises SettingsError if copies cannot come from there.
    """
    peer = require_peer(settings, device)
    if peer is None:
        return {}
    room = max(0, int(mm.get_free_memory(peer)) + held_bytes - int(mm.minimum_inference_memory()))
    limits = (room, settings.explicit(Setting.PEER_BUDGET_BYTES, int), most_bytes)
    return {"peer_device": str(peer), "peer_budget_bytes": min(limit for limit in limits if limit is not None)}


def not_stored(controller: OffloadController) -> Sentence | None:
    """That layers of the plan in effect found no memory on the other device, and their size; None if all did."""
    plan = controller.plan
    missing = 0 if plan is None else plan.peer_bytes - controller.peer_bytes()
    if plan is None or missing <= 0:
        return None
    return sentence("not_stored", size=f"{missing / 1e9:.2f} GB", device=str(plan.peer_device))


def require_peer(settings: ComponentSettings, device: torch.device) -> torch.device | None:
    """The other device that was named for layers of a component that runs on `device`; None if none was named, or
    `device` itself, or if nothing is streamed to it. Raises SettingsError unless the machine has it and `device` can
    copy from it."""
    name = peer_of(settings)
    if name is None or name == str(device) or not streams_to(device):
        return None
    require_device(settings, device_names())
    peer = torch.device(name)
    if not can_reach(device, peer):
        source_words = SOURCE_WORDS[settings.source(Setting.HOST_TIER) or Source.POLICY]
        raise SettingsError(
            f"asked {settings.component}.host_tier = {peer} ({source_words}); found that {device} cannot copy from "
            "there without going through system memory, which would be slower than from system memory alone; do choose "
            "pinned or auto"
        )
    return peer
