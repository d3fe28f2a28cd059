"""What a component may take of what was set for the whole workflow: the members of the workflow, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.planner import smallest_budget_for, usual_budget
from ...offload_core.planning.request import PlanRequest
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import SOURCE_SENTENCES, UNSET, ComponentSettings, Setting, Source
from ...offload_core.settings.division import HostSharer, Sharer, divide, divide_host
from ...offload_core.units import format_bytes
from ..app.device import streams_to, total_bytes
from ..memory.allowances import DeviceAllowance


@dataclass(frozen=True, slots=True)
class Member:
    """A component of the workflow that we stream: what was set for it, how large it is, and how many passes a use of it
    has."""

    settings: ComponentSettings
    inventory: Inventory
    passes: int

    @property
    def name(self) -> str:
        return self.settings.component

    def sharer(self) -> Sharer:
        """What the division of VRAM needs to know of it."""
        stays = self.settings.explicit(Setting.PLACEMENT, str) == "resident"
        ring_bytes = self.settings.explicit(Setting.RING_BYTES, int)
        smallest = smallest_budget_for(PlanRequest(self.inventory, "any", budget_bytes=None, ring_bytes=ring_bytes))
        return Sharer(
            self.name,
            bytes=self.inventory.total_bytes,
            smallest_bytes=smallest,
            usual_bytes=max(smallest, usual_budget(self.inventory)),
            budget_bytes=self.settings.explicit(Setting.BUDGET_BYTES, int),
            stays=stays,
        )

    def host_sharer(self, device_bytes: int) -> HostSharer:
        """What the division of host memory needs to know of it. `device_bytes`: what it may take of the device, where
        that is known, else 0: copies of what is resident then are not needed."""
        in_file = sum(layer.bytes for layer in self.inventory.layers if layer.in_file and layer.keep is None)
        resident = max(0, device_bytes - usual_budget(self.inventory))
        in_memory = sum(layer.bytes for layer in self.inventory.layers if not layer.in_file)
        return HostSharer(self.name, self.passes, max(0, in_file - resident), in_memory)


def number_of(settings: ComponentSettings, device: torch.device) -> int | None:
    """VRAM in bytes that the workflow may take while this component is used; None if that was not set, or if the device
    has no memory of its own."""
    return settings.explicit(Setting.WORKFLOW_BUDGET_BYTES, int) if streams_to(device) else None


def part_of_workflow(own: Member, device: torch.device, members: Sequence[Member]) -> DeviceAllowance | None:
    """What a component may take of the workflow's VRAM; None if nothing was set, or it asks for no more itself.
    `members`: the others.

    Raises BudgetError, with the smallest number that works, if the number is too small for the workflow.
    """
    number = number_of(own.settings, device)
    if number is None:
        return None
    part = min(_divided(number, own, members)[own.name], total_bytes(device))
    budget = own.settings.explicit(Setting.BUDGET_BYTES, int)
    if budget is not None and budget <= part:
        return None
    reason = sentence("part_of_workflow", number=format_bytes(number), source=_source(own.settings))
    return DeviceAllowance(part, reason)


def copies_of_workflow(own: Member, device: torch.device, members: Sequence[Member]) -> int | None:
    """Bytes that a component's copies of layers may take of the workflow's host memory, those of layers that lie in no
    file aside; None if nothing was set. Raises BudgetError, with the smallest number that works."""
    number = own.settings.explicit(Setting.WORKFLOW_HOST_BYTES, int)
    if number is None or not streams_to(device):
        return None
    device_number = number_of(own.settings, device)
    known = {} if device_number is None else _divided(device_number, own, members)
    sharers = [member.host_sharer(known.get(member.name, 0)) for member in _all(own, members)]
    return divide_host(number, sharers)[own.name]


def with_part(settings: ComponentSettings, part: DeviceAllowance | None) -> ComponentSettings:
    """The settings with the component's part as its budget, set by who set the number, in place of any other."""
    if part is None:
        return settings
    source = settings.source(Setting.WORKFLOW_BUDGET_BYTES) or Source.POLICY
    for entry in settings.entries(Setting.BUDGET_BYTES):
        settings = settings.with_value(Setting.BUDGET_BYTES, UNSET, entry.source)
    return settings.with_value(Setting.BUDGET_BYTES, part.budget_bytes, source, part.reason)


def _divided(number_bytes: int, own: Member, members: Sequence[Member]) -> dict[str, int]:
    return divide(number_bytes, [member.sharer() for member in _all(own, members)])


def _all(own: Member, members: Sequence[Member]) -> list[Member]:
    return [*(member for member in members if member.name != own.name), own]


def _source(settings: ComponentSettings) -> Sentence:
    return SOURCE_SENTENCES[settings.source(Setting.WORKFLOW_BUDGET_BYTES) or Source.POLICY]
