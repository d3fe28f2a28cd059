"""What to do when the device runs out of memory in a layer: ask for a plan of less, and try the layer once more.

Tried again is what failed in our own work, before the layer began; and a layer whose call had left nothing behind when
it failed (`repeat.py`), if somebody says of its arguments that no code of others hides in them. Everything else is
passed on as it is. Knows nothing about what the component can do with less of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..errors import OffloadError
from ..plan import Plan

if TYPE_CHECKING:
    from .controller import MayRepeat, OffloadController

AskForRoom = Callable[[Plan, str, bool], Plan | None]
"""The plan in effect in, the name of the layer that failed, and whether it is too late for it; a plan of fewer device
bytes out, the same one if others have made room, or None if there is none to be had. What it raises takes the place of
the error."""


def when_full(controller: OffloadController, ask: AskForRoom | None, may_repeat: MayRepeat | None = None) -> None:
    """From now on `ask` is asked when the device is full in the middle of a pass; None: errors pass on."""
    controller.make_room_by(None if ask is None else partial(_make_room, ask), may_repeat)


def _make_room(ask: AskForRoom, controller: OffloadController, layer: str, too_late: bool) -> bool:
    """In the middle of a pass, with none of the component's layers in use. Whether there is more room now."""
    before = controller.plan
    plan = None if before is None else ask(before, layer, too_late)
    if plan is None:
        return False
    try:
        if plan is not before:
            controller.change_to(plan)
    except (
        torch.OutOfMemoryError,
        OffloadError,
    ):  # not even for less: the first error passes on
        return False
    return True
