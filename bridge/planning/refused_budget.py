"""A budget that is too small, as data: its component, the source and widgets that set it, and the smallest that works.

The planner knows only the last; the rest comes from the component's settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.planning.decisions import widget_gb_at_least
from ...offload_core.settings.component_settings import EXPLICIT_SOURCES, ComponentSettings, Setting
from ..app.device import total_bytes

Widget = tuple[str, str]
"""Id of a node in the prompt, and the name of its widget."""


class RefusedBudget(BudgetError):
    """A BudgetError of one component, with the planner's text and the source and widgets of the budget."""

    def __init__(
        self, error: BudgetError, settings: ComponentSettings, device: torch.device, widgets: Iterable[Widget] = ()
    ) -> None:
        explicit = settings.source(Setting.BUDGET_BYTES) in EXPLICIT_SOURCES
        budget_bytes = settings.value(Setting.BUDGET_BYTES) if explicit else None
        asked_bytes = budget_bytes if isinstance(budget_bytes, int) else error.asked_bytes
        super().__init__(str(error), asked_bytes=asked_bytes, smallest_bytes=error.smallest_bytes)
        self.component = settings.component
        self.source = settings.source(Setting.BUDGET_BYTES) if explicit else None
        self.widgets = tuple(widgets)
        self.fits_device = self.smallest_bytes <= total_bytes(device)

    @property
    def smallest_gb(self) -> float | None:
        """The smallest widget value that works, in GB; None if no source set a budget or the device is too small."""
        return widget_gb_at_least(self.smallest_bytes) if self.source is not None and self.fits_device else None

    def to_json(self) -> dict[str, Any]:
        return {
            "component": self.component,
            "source": self.source,
            "widgets": [{"node": node, "widget": widget} for node, widget in self.widgets],
            "asked_bytes": self.asked_bytes,
            "smallest_bytes": self.smallest_bytes,
            "smallest_gb": self.smallest_gb,
        }


def error_members(error: OffloadError) -> dict[str, Any]:
    """The members of a document for a refusal: `error`, and `budget` for a RefusedBudget."""
    return {"error": str(error), **({"budget": error.to_json()} if isinstance(error, RefusedBudget) else {})}
