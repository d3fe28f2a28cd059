"""Stands in front of a module's forward, and takes itself away again.

The forward is replaced on the instance, not hooked: torch's hooks do not run for callers that use `.forward`, nor on
the way out of an exception that is not an `Exception`, which is what the app's interrupt is. A deep copy of the module
gets its own class's forward, not ours: it is another model, and ours would feed it this one's weights.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .layer import Layer
from .prefetcher import Prefetcher
from .repeat import can_repeat, where_it_failed

_set_eval_frame: Callable[[Any], Any]
try:
    from torch._C._dynamo.eval_frame import set_eval_frame as _set_eval_frame  # type: ignore[no-redef]
except ImportError:  # a private part of torch: without it, what we do may become part of a compiled graph
    _set_eval_frame = bool


def _outside_graphs() -> Any:
    """From here on nothing is compiled, until `_set_eval_frame` gets back what this returns. Costs nothing otherwise.

    A call that torch.compile may not follow, in a `try`: it leaves the whole function alone that makes it.
    """
    return _set_eval_frame(None)


_outside_graphs._torchdynamo_disable = True  # type: ignore[attr-defined]


class Interposed:
    """A callable that was put in place of `module.<method>`. Subclasses say what happens around the call."""

    __slots__ = ("_had", "_installed", "call", "method", "module")

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        self.module = module
        self.method = method
        self._had: Any = None
        self._installed = False
        self.call: Callable[..., Any] = getattr(module, method)

    def install(self) -> None:
        """Stand in front of whatever is there now. Idempotent."""
        if not self._installed:
            self._had = vars(self.module).get(self.method)
            self.call = getattr(self.module, self.method)
            vars(self.module)[self.method] = self
            self._installed = True

    def remove(self) -> None:
        """Put back what was there, unless somebody has since put something in front of us: then stay, harmlessly."""
        attributes = vars(self.module)
        if attributes.get(self.method) is self:
            if self._had is None:
                del attributes[self.method]
            else:
                attributes[self.method] = self._had
            self._installed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._had is not None:
            return copy.deepcopy(self._had, memo)
        twin = memo.get(id(self.module))
        if twin is None:  # not reached through its module: there is no copy to bind to
            return self
        return types.MethodType(getattr(type(twin), self.method), twin)

    def __reduce__(self) -> Any:
        """A pickled module has its own class's method again, bound to itself."""
        return getattr, (self.module, self.method) if self._had is None else (_Holder(self._had), "held")


class _Holder:
    """Lets `__reduce__` name an object that is to be pickled in place of another."""

    def __init__(self, held: Any) -> None:
        self.held = held


class LayerForward(Interposed):
    """A layer's forward: the layer is on the device for as long as it runs."""

    __slots__ = ("layer", "prefetcher")

    def __init__(self, layer: Layer, prefetcher: Prefetcher) -> None:
        super().__init__(layer.found.module)
        self.layer = layer
        self.prefetcher = prefetcher

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prefetcher = self.prefetcher
        layer = self.layer
        entered = again = False
        compiling = None
        try:
            compiling = _outside_graphs()
            prefetcher.enter(layer)
            entered = True
            _set_eval_frame(compiling)
            result = self.call(*args, **kwargs)
            _set_eval_frame(None)
        except BaseException as error:
            _set_eval_frame(None)
            try:
                if isinstance(error, torch.OutOfMemoryError) and prefetcher.may_retry(layer):
                    again = prefetcher.retry(layer, entered and not self._may_repeat(error, args, kwargs))
            finally:
                if not again:
                    prefetcher.fail(layer)
            if not again:
                raise
        else:
            prefetcher.leave(layer)
            return result
        finally:
            _set_eval_frame(compiling)
        # Out here the error is gone, and with its frames the device memory that they held.
        return self._once_more(args, kwargs)

    def _once_more(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefetcher, layer = self.prefetcher, self.layer
        compiling = None
        try:
            compiling = _outside_graphs()
            prefetcher.enter(layer)
            _set_eval_frame(compiling)
            result = self.call(*args, **kwargs)
            _set_eval_frame(None)
        except BaseException:
            _set_eval_frame(None)
            prefetcher.fail(layer)
            raise
        else:
            prefetcher.leave(layer)
            return result
        finally:
            _set_eval_frame(compiling)

    def _may_repeat(self, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the layer's call, which failed, can soundly be made once more."""
        prefetcher, module = self.prefetcher, self.module
        if prefetcher.may_repeat is None or not prefetcher.may_repeat(args, kwargs):
            return False
        if any(
            isinstance(vars(inner).get("forward"), LayerForward) for inner in module.modules() if inner is not module
        ):
            return False  # trying it out would run the layers inside it
        return can_repeat(module, self.call, args, kwargs, where_it_failed(error, LayerForward.__call__.__code__))


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
        compiling = None
        try:
            compiling = _outside_graphs()
            prefetcher.begin_pass()
            _set_eval_frame(compiling)
            result = self.call(*args, **kwargs)
            completed = True
            return result
        finally:
            _set_eval_frame(None)
            try:
                prefetcher.end_pass(completed)
            finally:
                _set_eval_frame(compiling)


class HostGather(Interposed):
    """A large embedding table that stays on the host: rows are looked up there, and only they move. Exact."""

    __slots__ = ()

    def __call__(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        device = indices.device
        return self.call(indices.to("cpu"), *args, **kwargs).to(device)


for _call in (LayerForward.__call__, PassBoundary.__call__, HostGather.__call__):
    # torch.compile ends its graph here and goes on with the module's own forward: what swaps and waits is never in one.
    vars(_call)["_torchdynamo_disable"] = True
