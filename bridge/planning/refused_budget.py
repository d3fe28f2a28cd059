"""A refusal as data, for a document: of a too small budget, who set it and where, and the smallest that works."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.settings.component_settings import OF_THE_WORKFLOW, ComponentSettings, Setting
from ...offload_core.settings.groups import ALL
from ...offload_core.settings.node_table import widget_name
from ...offload_core.units import widget_gb_at_least
from ..app.device import total_bytes


def refusal(
    error: OffloadError, settings: ComponentSettings, device: torch.device, widgets: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The members of a document for a refusal of one component: `error`, and `budget` for a BudgetError.

    `widgets`: (node id, widget) of each that set the budget. `component`: `all` for a budget of the whole workflow.
    `smallest_gb`: the smallest widget value that works; None if no source set a budget or the device is too small.
    """
    if not isinstance(error, BudgetError):
        return {"error": str(error)}
    asked_bytes = settings.explicit(error.setting, int)
    on_host = error.setting == Setting.WORKFLOW_HOST_BYTES
    works = asked_bytes is not None and (on_host or error.smallest_bytes <= total_bytes(device))
    budget = {
        "component": ALL if error.setting in OF_THE_WORKFLOW else settings.component,
        "setting": widget_name(error.setting),
        "source": None if asked_bytes is None else settings.source(error.setting),
        "widgets": [{"node": node, "widget": widget} for node, widget in widgets],
        "asked_bytes": error.asked_bytes if asked_bytes is None else asked_bytes,
        "smallest_bytes": error.smallest_bytes,
        "smallest_gb": widget_gb_at_least(error.smallest_bytes) if works else None,
    }
    return {"error": str(error), "budget": budget}
