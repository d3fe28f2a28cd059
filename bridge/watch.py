"""Two methods of an app model that a component has to know the calls of, while it is attached or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..offload_core.runtime.interpose import Interposed

if TYPE_CHECKING:
    from .component import Component


class ForeignMove(Interposed):
    """Before anybody else moves the whole module, the device is given back and the module made an ordinary one.

    The app's own patchers over the same module (a MODEL that went into our Apply node and also elsewhere) do that.
    """

    __slots__ = ("component",)

    def __init__(self, model: torch.nn.Module, component: Component) -> None:
        super().__init__(model, "to")
        self.component = component

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.call
        self.component.unload()
        return call(*args, **kwargs)


class ShapeWatch(Interposed):
    """Remembers the shape for which the app estimates memory, right before it loads the model for a run."""

    __slots__ = ("component",)

    def __init__(self, model: torch.nn.Module, component: Component) -> None:
        super().__init__(model, "memory_required")
        self.component = component

    def __call__(self, input_shape: Any, *args: Any, **kwargs: Any) -> Any:
        self.component.shape = tuple(input_shape)
        return self.call(input_shape, *args, **kwargs)
