"""What a streamed layer's parameter is while the layer is off the device: the host tensor itself.

True shape, true values, on the CPU: code that saves, merges or measures weights works as if nothing was offloaded.
When a kernel asks for it together with a device tensor, which happens when somebody uses a weight outside its layer's
own call, the value is brought over for that one operation: slow, never wrong. While the layer runs on the device its
modules hold plain device Parameters, so nothing here is on the hot path. Knows nothing about rings or plans.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as})
"""Operations that take tensors of two devices on purpose."""

_READING_DUNDERS = frozenset({"__index__", "__int__", "__invert__"})


class OutsideTouches:
    """How often a layer's weights were used outside the layer's own call. One per layer; a count, not an error."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class HostParameter(nn.Parameter):
    """A Parameter on the host that lends its value to an operation on another device.

    Made from an ordinary Parameter by `adopt`, turned back by `release`: the object stays the same one throughout.
    """

    touches: OutsideTouches

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            device = None if func in _MOVES or _writes(func, kwargs) else _foreign_device(args, kwargs)
            if device is not None:
                args, kwargs = _lend(args, device), _lend(kwargs, device)
            return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copy = nn.Parameter(self.data.clone(), self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = nn.Parameter(self.data, self.requires_grad)
        return plain.__reduce_ex__(protocol)


def adopt(parameter: nn.Parameter, touches: OutsideTouches) -> None:
    """Make `parameter`, in place, a HostParameter. The caller has checked that it is a plain Parameter on the CPU."""
    host: Any = parameter
    host.__class__ = HostParameter
    host.touches = touches


def release(parameter: nn.Parameter) -> None:
    """Undo `adopt`: the same object is a plain Parameter again."""
    if type(parameter) is HostParameter:
        plain: Any = parameter
        del plain.touches
        plain.__class__ = nn.Parameter


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """In-place operations get no loan: a write into a borrowed copy would be lost. Torch's own error is right there."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):  # x[i] = y and x += y write; x @ y and the like do not
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _READING_DUNDERS)
    return "out" in kwargs or name.endswith("_")


def _foreign_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device of the first tensor argument that is not on the host, if any."""
    for value in itertools.chain(args, kwargs.values()):
        if isinstance(value, torch.Tensor):
            if value.device.type not in ("cpu", "meta"):
                return value.device
        elif isinstance(value, (list, tuple)):
            device = _foreign_device(tuple(value), {})
            if device is not None:
                return device
    return None


def _lend(value: Any, device: torch.device) -> Any:
    """`value` with every HostParameter in it replaced by a copy on `device`."""
    if type(value) is HostParameter:
        value.touches.count += 1
        return value.detach().to(device)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_lend(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _lend(item, device) for name, item in value.items()}
    return value
