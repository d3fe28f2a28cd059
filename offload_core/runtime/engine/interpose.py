"""Interposes calls of a module's methods, and removes itself again.

The method is replaced on the instance, not hooked: torch's hooks do not run for callers of `.forward`, nor on an
exception that is not an `Exception`, such as the app's interrupt. A deep copy of the module gets its own class's
method: it is another model, and ours would feed it this one's weights.

The original method is looked up at each call: other packs replace methods of a class, or the class of a module, and
restore them, while ours is in place.
"""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..layers.layer import Layer
from ..layers.tables import HostTable
from .prefetcher import Prefetcher
from .repeat import can_repeat, where_it_failed

_set_eval_frame: Callable[[Any], Any]
try:
    from torch._C._dynamo.eval_frame import set_eval_frame as _set_eval_frame  # type: ignore[no-redef]
except ImportError:  # private to torch: without it, our code may become part of a compiled graph
    _set_eval_frame = bool


def _outside_graphs() -> Any:
    """Turn torch.compile off until `_set_eval_frame` gets back the value returned here. Costs nothing if it is off.
    torch.compile may not follow this call: made inside a `try`, it leaves the whole calling function uncompiled."""
    return _set_eval_frame(None)


_outside_graphs._torchdynamo_disable = True  # type: ignore[attr-defined]


class Interposed:
    """A callable put in place of `module.<method>`. Subclasses define what happens around the call."""

    __slots__ = ("_bound", "_had", "_installed", "_kind", "_unbound", "method", "module")

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        self.module = module
        self.method = method
        self._had: Any = None
        self._installed = False
        self._kind: type[nn.Module] | None = None
        self._unbound: Any = None
        self._bound: Any = None
        """The class's method at the last call, bound; `_unbound` is what the class had under its name."""

    @property
    def call(self) -> Callable[..., Any]:
        """The original callable: the attribute of the instance before `install`, else the class's method. It is looked
        up on the module's present class. Raises AttributeError if the class no longer has it."""
        if self._had is not None:
            return self._had  # type: ignore[no-any-return]
        kind = type(self.module)
        unbound = getattr(kind, self.method)
        if unbound is not self._unbound or kind is not self._kind:
            self._bound = _method_of_class(self.module, self.method)
            self._kind, self._unbound = kind, unbound
        return self._bound  # type: ignore[no-any-return]

    def install(self) -> None:
        """Replace the current callable. Idempotent.

        If another callable has replaced ours since, it may call ours, so it stays the outer one. The module's own
        method does not: it is left over where a method of the instance was replaced before `install` and restored
        later.
        """
        current = vars(self.module).get(self.method)
        if current is self or (self._installed and current is not None and not self._is_own_method(current)):
            return
        self._had = current
        vars(self.module)[self.method] = self
        self._installed = True

    def _is_own_method(self, current: Any) -> bool:
        """Whether the instance's attribute is a bound method of its own class."""
        kinds = type(self.module).__mro__
        return getattr(current, "__self__", None) is self.module and any(
            vars(kind).get(self.method) is getattr(current, "__func__", None) for kind in kinds
        )

    def remove(self) -> None:
        """Restore the original, unless other code has replaced ours: then it stays, and passes calls on."""
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
        if twin is None:  # not copied through its module: there is no copy to bind to
            return self
        return types.MethodType(getattr(type(twin), self.method), twin)

    def __reduce__(self) -> Any:
        """Pickled as the class's own method, bound to the pickled module."""
        if self._had is None:
            return getattr, (self.module, self.method)
        return operator.getitem, ([self._had], 0)


def _method_of_class(module: nn.Module, name: str) -> Callable[..., Any]:
    """The method of `module`'s class, bound as Python binds it, whatever the instance has under that name."""
    for kind in type(module).__mro__:
        attribute = kind.__dict__.get(name)
        if attribute is not None:
            bind = getattr(type(attribute), "__get__", None)
            return attribute if bind is None else bind(attribute, module, type(module))  # type: ignore[no-any-return]
    raise AttributeError(f"asked for {type(module).__name__}.{name}; found no such method on the class any more")


class LayerForward(Interposed):
    """A layer's forward, or a method of another module that uses the layer's weights by itself: the layer is on the
    device while it runs."""

    __slots__ = ("layer", "prefetcher")

    def __init__(
        self, layer: Layer, prefetcher: Prefetcher, module: nn.Module | None = None, method: str = "forward"
    ) -> None:
        super().__init__(layer.discovered.module if module is None else module, method)
        self.layer = layer
        self.prefetcher = prefetcher

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prefetcher = self.prefetcher
        layer = self.layer
        first = True
        while True:
            entered = again = False
            compiling = None
            try:
                compiling = _outside_graphs()
                call = self.call
                prefetcher.enter(layer)
                entered = True
                _set_eval_frame(compiling)
                result = call(*args, **kwargs)
                _set_eval_frame(None)
            except BaseException as error:
                _set_eval_frame(None)
                try:
                    if first and isinstance(error, torch.OutOfMemoryError) and prefetcher.may_retry(layer):
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
            # Once more: the error has been freed, with its frames and the device memory that they held.
            first = False

    def _may_repeat(self, error: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the layer's failed call may safely be made once more."""
        prefetcher, module = self.prefetcher, self.module
        if not prefetcher.owner.may_repeat(args, kwargs):
            return False
        if any(
            isinstance(vars(inner).get("forward"), LayerForward) for inner in module.modules() if inner is not module
        ):
            return False  # the trial would run the layers inside it
        return can_repeat(module, self.call, args, kwargs, where_it_failed(error, LayerForward.__call__.__code__))


class PassBoundary(Interposed):
    """An entry of the component: an outermost call is one pass over its layers."""

    __slots__ = ("key", "prefetcher")

    def __init__(self, module: nn.Module, method: str, prefetcher: Prefetcher) -> None:
        super().__init__(module, method)
        self.prefetcher = prefetcher
        self.key = (id(module), method)
        """Identifies the entry, without a reference to its module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prefetcher = self.prefetcher
        nested = prefetcher.in_pass  # called by another entry
        completed = False
        compiling = None
        try:
            compiling = _outside_graphs()
            call = self.call
            if not nested:
                prefetcher.begin_pass(self.key)
            _set_eval_frame(compiling)
            result = call(*args, **kwargs)
            completed = True
            return result
        finally:
            _set_eval_frame(None)
            try:
                if not nested:
                    prefetcher.end_pass(completed)
            finally:
                _set_eval_frame(compiling)


class HostGather(Interposed):
    """A large embedding table on the host: rows are looked up there, and only they are moved. Exact."""

    __slots__ = ("table",)

    def __init__(self, module: nn.Module, table: HostTable) -> None:
        super().__init__(module)
        self.table = table

    def __call__(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        if self.table.on_device is not None:
            return self.call(indices, *args, **kwargs)
        device = indices.device
        return self.call(indices.to("cpu"), *args, **kwargs).to(device)


for _call in (LayerForward.__call__, PassBoundary.__call__, HostGather.__call__):
    # torch.compile ends its graph here and goes on with the module's own forward: no swap or wait is ever in a graph.
    vars(_call)["_torchdynamo_disable"] = True
