"""Handles a device that is out of memory in a layer: asks for a smaller plan, and has the layer run once more.

A layer is run again if our own work failed before it began, or if its call had no side effect when it failed
(`repeat.py`) and the `may_repeat` callback rules out hidden side effects in its arguments. Other errors are passed on.
Knows nothing about how the component gets by with less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...errors import OffloadError
from ...planning.plan import Plan

if TYPE_CHECKING:
    from .controller import MayRepeat, OffloadController

AskForRoom = Callable[[Plan, str, bool], Plan | None]
"""(plan in effect, name of the layer that failed, whether it is too late to run it again) -> a plan of fewer device
bytes, the same plan if others have made room, or None. What it raises replaces the original error."""


def when_full(controller: OffloadController, ask: AskForRoom | None, may_repeat: MayRepeat | None = None) -> None:
    """Set the callback for a device that is full in the middle of a pass; None: the error passes on."""
    controller.make_room_by(None if ask is None else partial(_make_room, ask), may_repeat)


def _make_room(ask: AskForRoom, controller: OffloadController, layer: str, too_late: bool) -> bool:
    """Change to a smaller plan during a pass, while no layer is in use. Returns whether there is more room."""
    before = controller.plan
    plan = None if before is None else ask(before, layer, too_late)
    if plan is None:
        return False
    try:
        if plan is not before:
            controller.change_to(plan)
    except (torch.OutOfMemoryError, OffloadError):  # no room even for less: the first error passes on
        return False
    return True
