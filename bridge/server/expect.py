"""What a prompt would come to if it ran now, before anything has been loaded: what the panel shows before a first run.

Of the files that the app lists the headers are read and no weights. The rest is what happens when one is loaded,
but sizes are seen through names (`model_shape`), and what the app will offer is guessed from what is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as mm
import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.notices import notices_json
from ...offload_core.planning.cost_model import assumed_times
from ...offload_core.planning.plan_text import plan_to_text
from ...offload_core.sentences import Sentence, reason_json, sentence
from ...offload_core.settings.component_settings import Setting
from ..app import compat
from ..app.kinds import KIND_BY_NAME
from ..component.component import live_components
from ..files.ahead import Ahead, components_ahead
from ..planning.decide import decide, plan_decision
from ..planning.placing import Neighbour, Situation, left_to_the_app, may_stream_on, wanted_bytes
from ..planning.refused_budget import refusal
from ..planning.workflow import Member, within_part
from ..report.document import SCHEMA, devices, host, simulated, what_if
from ..report.telemetry import event_row
from ..requests.graph import what_runs

SEEN_LATER = sentence("seen_later")
NO_MEMORY = sentence("no_device_memory")


def ahead_document(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A plan for each component that would be streamed, a reason for each other; or the first thing that a run would
    refuse: a file that is not there, say, or a budget. What no output of the prompt depends on does not run."""
    device = mm.get_torch_device()
    planned: list[dict[str, Any]] = []
    bystanders = []
    try:
        components = components_ahead(prompt, device)
        run = what_runs(prompt, compat.outputs_of(prompt) or prompt)
        components = [ahead for ahead in components if run.intersection(ahead.wanted.nodes)]
        for ahead in components:
            name, nodes = ahead.requested.component, sorted(ahead.wanted.nodes)
            if reason := _left(ahead, device):
                bystanders.append({"component": name, "model": ahead.model, **reason_json(reason), "nodes": nodes})
                continue
            try:
                planned.append(_planned(ahead, device, components))
            except BudgetError as error:
                settings = ahead.requested.settings
                widgets = ahead.wanted.budget_widgets(name, settings.source(error.setting), error.setting)
                return {"schema": SCHEMA, **refusal(error, settings, device, widgets)}
    except OffloadError as error:
        return {"schema": SCHEMA, "error": str(error)}
    memory = {"devices": devices(planned), "host": host()}
    return {"schema": SCHEMA, "components": planned, "bystanders": bystanders, **memory}


def _left(ahead: Ahead, device: torch.device) -> Sentence | None:
    """Why the component is not streamed, or cannot be planned yet; None if neither."""
    if reason := left_to_the_app(ahead.requested):
        return reason
    if ahead.inventory is None:
        return SEEN_LATER
    return None if may_stream_on(device, ahead.requested, ahead.inventory.total_bytes) else NO_MEMORY


def _planned(ahead: Ahead, device: torch.device, components: list[Ahead]) -> dict[str, Any]:
    assert ahead.inventory is not None
    members = _members(ahead, device, components)
    others = [other for other in components if other is not ahead]
    neighbours = [row for other in others if (row := _as_neighbour(other, device, components)) is not None]
    held_bytes = sum(component.device_bytes() for component in live_components() if component.loaded)
    attached = [component for component in live_components() if component.attached]
    own = [component for component in attached if component.model_name == ahead.model]
    layers = [layer for component in own for layer in component.controller.layers]
    situation = Situation.guessed(device, held_bytes, neighbours, layers, members)
    decision = decide(ahead.requested, KIND_BY_NAME[ahead.wanted.kind], ahead.inventory, situation)
    plan, request = plan_decision(decision, ahead.requested.settings, situation, ahead.model)
    decision = decision.as_planned(plan)
    component_id = f"{ahead.requested.component}-planned"
    return {
        "id": component_id,
        "component": ahead.requested.component,
        "model": ahead.model,
        "kind": ahead.wanted.kind,
        "device": request.device,
        "nodes": sorted(ahead.wanted.nodes),
        "placement": decision.settings.value(Setting.PLACEMENT),
        "plan": plan.to_json(),
        "plan_text": plan_to_text(plan),
        "budget_bytes": request.budget_bytes,
        "device_bytes": plan.device_bytes,
        "what_if": what_if(request, plan),
        "assumed_times": assumed_times(request.inventory),
        "settings": decision.settings.to_json(),
        **notices_json(decision.notices),
        "events": [event_row(event) for event in simulated(plan, request, component_id)],
    }


def _member(ahead: Ahead) -> Member:
    assert ahead.inventory is not None
    return Member(ahead.requested.settings, ahead.inventory, KIND_BY_NAME[ahead.wanted.kind].passes)


def _members(ahead: Ahead, device: torch.device, components: list[Ahead]) -> list[Member]:
    """The other components of the workflow that are streamed."""
    others = [other for other in components if other is not ahead and other.inventory is not None]
    return [_member(other) for other in others if _left(other, device) is None]


def _as_neighbour(other: Ahead, device: torch.device, components: list[Ahead]) -> Neighbour | None:
    if other.inventory is None:
        return None
    kind = KIND_BY_NAME[other.wanted.kind]
    wanted = 0
    if kind.asks_for_ring and not left_to_the_app(other.requested):
        wanted = wanted_bytes(kind, other.requested, other.inventory)
        wanted = within_part(wanted, _member(other), device, _members(other, device, components))
    return Neighbour(other.requested, other.inventory.total_bytes, 0, wanted)
