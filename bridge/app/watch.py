"""Interposes two methods of an app model while its component is attached or loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...offload_core.runtime.engine.interpose import Interposed


class ForeignMove(Interposed):
    """Calls `unload`, which releases device memory and restores the ordinary module, before `module.to` moves it.

    The app's own patchers move a module that is also ours (a MODEL that went into our Apply node and also elsewhere).
    """

    __slots__ = ("unload",)

    def __init__(self, model: torch.nn.Module, unload: Callable[[], None]) -> None:
        super().__init__(model, "to")
        self.unload = unload

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.call
        self.unload()
        return call(*args, **kwargs)


class ShapeWatch(Interposed):
    """Calls `seen` with the input shape for which the app estimates memory, right before it loads the model."""

    __slots__ = ("seen",)

    def __init__(self, model: torch.nn.Module, seen: Callable[[tuple[int, ...]], None]) -> None:
        super().__init__(model, "memory_required")
        self.seen = seen

    def __call__(self, input_shape: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen(tuple(input_shape))
        return self.call(input_shape, *args, **kwargs)
