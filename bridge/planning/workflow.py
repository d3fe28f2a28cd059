"""What a component may take of what was set for the whole workflow: the members of the workflow, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...offload_core.errors import BudgetError
from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.planner import smallest_budget_for, usual_budget
from ...offload_core.planning.request import PlanRequest
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import (
    SOURCE_SENTENCES,
    SOURCES,
    UNSET,
    ComponentSettings,
    Setting,
    Source,
)
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
        that is known, else 0: copies of what is resident then are not needed. It may come to hold less there."""
        in_file = sum(layer.bytes for layer in self.inventory.layers if layer.in_file and layer.keep is None)
        resident = min(in_file, max(0, device_bytes - usual_budget(self.inventory)))
        in_memory = sum(layer.bytes for layer in self.inventory.layers if not layer.in_file)
        return HostSharer(self.name, self.passes, in_file - resident, in_memory, resident)


def number_of(settings: ComponentSettings, device: torch.device) -> int | None:
    """VRAM in bytes that the workflow may take while this component is used, which is its own budget at least, where
    that wins; None if nothing was set for the workflow, or if the device has no memory of its own."""
    number = settings.explicit(Setting.WORKFLOW_BUDGET_BYTES, int)
    if number is None or not streams_to(device):
        return None
    own = settings.explicit(Setting.BUDGET_BYTES, int)
    return max(number, own) if own is not None and _own_wins(settings) else number


def beyond_workflow(settings: ComponentSettings) -> Sentence | None:
    """That the component's own budget is more than the number for the whole workflow, and which of them counts; None
    if it is not."""
    number = settings.explicit(Setting.WORKFLOW_BUDGET_BYTES, int)
    own = settings.explicit(Setting.BUDGET_BYTES, int)
    if number is None or own is None or own <= number:
        return None
    name, own_size, size = settings.component, format_bytes(own), format_bytes(number)
    if _own_wins(settings):
        return sentence("own_beyond_workflow", component=name, own=own_size, number=size)
    return sentence("own_within_workflow", component=name, own=own_size, number=size)


def _own_wins(settings: ComponentSettings) -> bool:
    """Whether the component's own budget comes from no weaker a source than the number for the workflow."""
    own, number = settings.source(Setting.BUDGET_BYTES), settings.source(Setting.WORKFLOW_BUDGET_BYTES)
    return own is not None and (number is None or SOURCES.index(own) <= SOURCES.index(number))


def part_of_workflow(own: Member, device: torch.device, members: Sequence[Member]) -> DeviceAllowance | None:
    """What a component may take of the workflow's VRAM; None if nothing was set, it asks for no more itself, or its own
    budget wins. `members`: the others.

    Raises BudgetError, with the smallest number that works, if the number is too small for the workflow.
    """
    number = number_of(own.settings, device)
    if number is None:
        return None
    part = min(_divided(number, own, members)[own.name], total_bytes(device))
    budget = own.settings.explicit(Setting.BUDGET_BYTES, int)
    if budget is not None and (budget <= part or _own_wins(own.settings)):
        return None
    reason = sentence("part_of_workflow", number=format_bytes(number), source=_source(own.settings))
    return DeviceAllowance(part, reason)


def within_part(wanted_bytes: int, own: Member, device: torch.device, members: Sequence[Member]) -> int:
    """`wanted_bytes` of the device, or its part of the workflow's number, if that is less. A number that is too small
    is refused when the component is loaded, not here."""
    try:
        part = part_of_workflow(own, device, members)
    except BudgetError:
        return wanted_bytes
    return wanted_bytes if part is None or part.budget_bytes is None else min(wanted_bytes, part.budget_bytes)


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
