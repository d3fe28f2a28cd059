"""Stands in front of a module's forward, and takes itself away again.

The forward is replaced on the instance, not hooked: torch's hooks do not run for callers that use `.forward`, nor on
the way out of an exception that is not an `Exception`, which is what the app's interrupt is. A deep copy of the module
gets its own class's forward, not ours: it is another model, and ours would feed it this one's weights.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

from .layer import Layer
from .prefetcher import Prefetcher


class Interposed:
    """A callable that was put in place of `module.<method>`. Subclasses say what happens around the call."""

    __slots__ = ("_had", "call", "method", "module")

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        self.module = module
        self.method = method
        self._had: Any = None
        self.call: Callable[..., Any] = getattr(module, method)

    def install(self) -> None:
        """Stand in front of whatever is there now. Idempotent."""
        if vars(self.module).get(self.method) is not self:
            self._had = vars(self.module).get(self.method)
            self.call = getattr(self.module, self.method)
            vars(self.module)[self.method] = self

    def remove(self) -> None:
        """Put back what was there, unless somebody has since put something in front of us: then stay, harmlessly."""
        attributes = vars(self.module)
        if attributes.get(self.method) is self:
            if self._had is None:
                del attributes[self.method]
            else:
                attributes[self.method] = self._had

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo.get(id(self.module))
        if twin is None:  # not reached through its module: there is no copy to bind to
            return self
        return types.MethodType(getattr(type(twin), self.method), twin)


class LayerForward(Interposed):
    """A layer's forward: the layer is on the device for as long as it runs."""

    __slots__ = ("enter", "layer", "leave")

    def __init__(self, layer: Layer, prefetcher: Prefetcher) -> None:
        super().__init__(layer.found.module)
        self.layer = layer
        self.enter = prefetcher.enter
        self.leave = prefetcher.leave

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.enter(self.layer)
        try:
            return self.call(*args, **kwargs)
        finally:
            self.leave(self.layer)


class PassBoundary(Interposed):
    """An entry of the component: one outermost call is one pass over its layers."""

    __slots__ = ("prefetcher",)

    def __init__(self, module: nn.Module, method: str, prefetcher: Prefetcher) -> None:
        super().__init__(module, method)
        self.prefetcher = prefetcher

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prefetcher = self.prefetcher
        if prefetcher.in_pass:  # an entry that calls another one
            return self.call(*args, **kwargs)
        completed = False
        try:
            prefetcher.begin_pass()
            result = self.call(*args, **kwargs)
            completed = True
            return result
        finally:
            prefetcher.end_pass(completed)


class HostGather(Interposed):
    """A large embedding table that stays on the host: rows are looked up there, and only they move. Exact."""

    __slots__ = ()

    def __call__(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        device = indices.device
        return self.call(indices.to("cpu"), *args, **kwargs).to(device)
