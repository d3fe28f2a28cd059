"""The document of what is to come: what the panel shows before the first run. See `docs/formats.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...offload_core.errors import OffloadError
from ...offload_core.notices import notices_json
from ...offload_core.planning.plan_text import plan_to_text
from ...offload_core.sentences import Sentence, reason_json
from ...offload_core.settings.component_settings import Setting
from ..planning.refused_budget import error_members
from ..report.document import SCHEMA, devices, host, simulated, what_if
from ..report.telemetry import event_row
from .expect import KINDS, Ahead, Planned, plan_prompt


def ahead_document(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt would come to if it ran now; only what is in the way where it would be refused. Loads nothing.

    Raises SettingsError for what is no prompt.
    """
    try:
        planned, bystanders = plan_prompt(prompt)
    except OffloadError as error:
        return {"schema": SCHEMA, **error_members(error)}
    return {
        "schema": SCHEMA,
        "components": [_component(component) for component in planned],
        "bystanders": [_bystander(ahead, reason) for ahead, reason in bystanders],
        "devices": devices(),
        "host": host(),
    }


def _component(planned: Planned) -> dict[str, Any]:
    name, plan = planned.ahead.requested.component, planned.plan
    placement = planned.settings.value(Setting.PLACEMENT)
    return {
        "id": f"{name}-planned",
        "component": name,
        "model": planned.ahead.model,
        "kind": KINDS[planned.ahead.wanted.kind].name,
        "device": planned.request.device,
        "nodes": planned.ahead.nodes,
        "placement": placement,
        "plan": plan.to_json(),
        "plan_text": plan_to_text(plan),
        "budget_bytes": planned.request.budget_bytes,
        "device_bytes": plan.device_bytes,
        "what_if": what_if(planned.request, plan),
        "settings": planned.settings.to_json(),
        **notices_json(planned.notices),
        "events": [event_row(event) for event in simulated(plan, planned.request, f"{name}-planned")],
    }


def _bystander(ahead: Ahead, reason: Sentence) -> dict[str, Any]:
    return {"component": ahead.requested.component, "model": ahead.model, **reason_json(reason), "nodes": ahead.nodes}
