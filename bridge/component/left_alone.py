"""What the Apply node was given and left to the app, because it cannot be streamed, for the report.

Remembered as long as what the node handed on exists: there is no patcher of ours over it, and so no component.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from ...offload_core.sentences import Sentence
from ..requests.requested import Requested


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """`model`: the name of its class; `why`: why it cannot be streamed; `do`: what the user can do about that."""

    requested: Requested
    model: str
    why: Sentence
    do: Sentence | None


_left: weakref.WeakKeyDictionary[Any, LeftAlone] = weakref.WeakKeyDictionary()


def leave_alone(handed_on: Any, left: LeftAlone) -> None:
    """Remember `left` as long as `handed_on` exists; not if its class takes no weak references, or has no hash."""
    try:
        _left[handed_on] = left
    except TypeError:
        return


def left_alone() -> list[LeftAlone]:
    """All that is remembered, the earliest first."""
    return list(_left.values())
