"""Two methods of an app model that a component has to know the calls of, while it is attached or loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..offload_core.runtime.interpose import Interposed


class ForeignMove(Interposed):
    """Before anybody else moves the whole module, the device is given back and the module made an ordinary one.

    The app's own patchers over the same module (a MODEL that went into our Apply node and also elsewhere) do that.
    `unload` takes the module off the device.
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
    """Tells `seen` the shape for which the app estimates memory, right before it loads the model for a run."""

    __slots__ = ("seen",)

    def __init__(self, model: torch.nn.Module, seen: Callable[[tuple[int, ...]], None]) -> None:
        super().__init__(model, "memory_required")
        self.seen = seen

    def __call__(self, input_shape: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen(tuple(input_shape))
        return self.call(input_shape, *args, **kwargs)
