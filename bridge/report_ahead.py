"""The document of what is to come: what the panel shows before the first run. See `docs/formats.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..offload_core.errors import OffloadError
from ..offload_core.notices import notices_json
from ..offload_core.plan_text import plan_to_text
from ..offload_core.sentences import Sentence, reason_json
from ..offload_core.settings import Setting
from .expect import KINDS, Ahead, Planned, plan_prompt
from .refused_budget import error_members
from .report import SCHEMA, devices, host, simulated, what_if
from .telemetry import event_row


def ahead_document(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """What a prompt would come to if it ran now; only what is in the way where it would be refused. Loads nothing.

    Raises SettingsError for what is no prompt.
    """
    try:
        planned, left = plan_prompt(prompt)
    except OffloadError as error:
        return {"schema": SCHEMA, **error_members(error)}
    return {
        "schema": SCHEMA,
        "components": [_component(one) for one in planned],
        "bystanders": [_bystander(one, reason) for one, reason in left],
        "devices": devices(),
        "host": host(),
    }


def _component(one: Planned) -> dict[str, Any]:
    name, plan = one.ahead.asked.component, one.plan
    placement = one.settings.value(Setting.PLACEMENT)
    return {
        "id": f"{name}-planned",
        "component": name,
        "model": one.ahead.model,
        "kind": KINDS[one.ahead.wanted.kind].name,
        "device": one.request.device,
        "nodes": one.ahead.nodes,
        "placement": placement,
        "plan": plan.to_json(),
        "plan_text": plan_to_text(plan),
        "budget_bytes": one.request.budget_bytes,
        "device_bytes": plan.device_bytes,
        "what_if": what_if(one.request, plan),
        "settings": one.settings.to_json(),
        **notices_json(one.notices),
        "events": [event_row(event) for event in simulated(plan, one.request, f"{name}-planned")],
    }


def _bystander(one: Ahead, reason: Sentence) -> dict[str, Any]:
    return {"component": one.asked.component, "model": one.model, **reason_json(reason), "nodes": one.nodes}
