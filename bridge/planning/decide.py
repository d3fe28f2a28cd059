"""One road from what was asked of a component to the request that its plan is made of.

A load, the plan before a run and the report before a load all go this way. They differ in the situation: a component
that is loaded has measured it, for one that is not it is guessed. So what is shown is what would be planned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ...offload_core.notices import Notice, concerning
from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.planner import check_budget, make_plan, smallest_budget_for
from ...offload_core.planning.request import PlanRequest
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import ComponentSettings, Setting, Source, peer_of
from ...offload_core.settings.feasibility import NO_EFFECT
from ...offload_core.settings.policy import Choice
from ...offload_core.settings.resolver import filled
from ..app.device import streams_to
from ..app.kinds import Kind
from ..memory.allowances import device_allowance, host_limits, host_remark, require_tier
from ..memory.peers import peer_limits
from ..requests.requested import Requested
from .placing import Situation, resolve_now, within_policy
from .workflow import Member, beyond_workflow, copies_of_workflow, part_of_workflow, with_part

_APPS_MARGIN = 1.1
"""The app frees this many times the bytes that a model says it wants."""

MEASURED_FROM_PASSES = 2
"""Components of more passes a use are planned again by measured times. One that runs once or twice a prompt keeps what
free memory it has: its next use is another prompt."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes of it: every setting with its source and reason, what to plan, and what there is to say.

    `request` lacks the limits of host memory, which `plan_decision` adds: they hold for the moment of planning.
    """

    settings: ComponentSettings
    request: PlanRequest
    notices: tuple[Notice, ...]

    def as_planned(self, plan: Plan | None) -> Decision:
        """The same, with the placement that `plan` has: the policy's `resident` is a wish; the app's room decides."""
        chosen = self.settings.entries(Setting.PLACEMENT)[0]
        if plan is None or not plan.streamed or (chosen.source, chosen.value) != (Source.POLICY, "resident"):
            return self
        resident, layers = len(plan.residents), len(plan.layers)
        reason = sentence("room_for_some", reason=chosen.reason, resident=resident, layers=layers)
        streamed = filled(self.settings.without(Source.POLICY), Choice("layerwise", reason))
        notices = tuple(notice for notice in self.notices if notice.code != NO_EFFECT)
        return replace(self, settings=streamed, notices=notices)


def decide(requested: Requested, kind: Kind, inventory: Inventory, situation: Situation) -> Decision:
    """What `requested` comes to for a component of this kind and size, in this situation.

    Raises SettingsError or BudgetError for an explicit wish that cannot be honoured.
    """
    device = situation.device
    explicit = requested.settings.is_explicitly_set(Setting.BUDGET_BYTES)
    allowance = device_allowance(requested.settings, device, situation.offered_bytes)
    own_settings = requested.settings
    part = part_of_workflow(Member(own_settings, inventory, kind.passes), device, situation.members)
    requested = replace(requested, settings=with_part(requested.settings, part))
    request = PlanRequest(
        inventory=inventory,
        device=str(device),
        budget_bytes=allowance.at_most(part).budget_bytes,
        ring_bytes=requested.settings.explicit(Setting.RING_BYTES, int),
        passes=kind.passes,
        placement="resident" if requested.value(Setting.PLACEMENT) == "resident" else "layerwise",
        hold_spare=kind.passes <= MEASURED_FROM_PASSES,  # not measured, and may be many
    )
    if explicit:
        check_budget(request)  # before the resolution: this error names the smallest budget that works
    resolution = resolve_now(requested, inventory, situation)
    settings = resolution.components[requested.component]
    notices = concerning(resolution.notices, requested.component)
    for remark in (host_remark(requested.settings, device), _peer_remark(requested, settings, device)):
        if remark is not None:
            notices = (*notices, Notice(requested.component, remark))
    if streams_to(device) and (beyond := beyond_workflow(own_settings)):
        notices = (*notices, Notice(requested.component, beyond))
    if explicit:
        return Decision(settings, request, notices)
    wanted = 0 if kind.asks_for_ring else max((other.wanted_bytes for other in situation.neighbours), default=0)
    room = math.ceil(_APPS_MARGIN * wanted)
    allowance = within_policy(requested, settings, inventory, allowance, room, situation.crowded_bytes).at_most(part)
    budget, needed = allowance.budget_bytes, smallest_budget_for(request)
    budget = inventory.total_bytes if budget is None else budget
    if budget < needed:
        what = sentence("less_than_needed", reason=allowance.reason, needed=f"{needed / 1e9:.2f} GB")
        notices = (*notices, Notice(requested.component, what))
    return Decision(settings, replace(request, budget_bytes=max(budget, needed)), notices)


def _peer_remark(requested: Requested, settings: ComponentSettings, device: torch.device) -> Sentence | None:
    """Why no layer of a component that is streamed, by `settings`, lies on the other device that was named; None if
    some may."""
    name, component = peer_of(requested.settings), requested.component
    if name is None or not streams_to(device) or settings.value(Setting.PLACEMENT) != "layerwise":
        return None
    if requested.in_split:
        return sentence("no_store_in_split", component=component, device=name)
    return sentence("is_own_device", component=component, device=name) if name == str(device) else None


def plan_decision(
    decision: Decision, settings: ComponentSettings, situation: Situation, file: str
) -> tuple[Plan, PlanRequest]:
    """The plan of a decision within what the host has now, and the request that it was made of.

    Raises BudgetError, or SettingsError where the host tier that was asked for cannot be had; that names `file`, the
    model's.
    """
    own = Member(settings, decision.request.inventory, decision.request.passes)
    copies_bytes = copies_of_workflow(own, situation.device, situation.members)
    limits = host_limits(settings, situation.device, situation.layers, copies_bytes)
    on_peer = peer_limits(settings, situation.device) if situation.on_peer is None else situation.on_peer
    request = replace(decision.request, **limits, **on_peer)
    plan = make_plan(request)
    require_tier(plan, request, settings, file)
    return plan, request
