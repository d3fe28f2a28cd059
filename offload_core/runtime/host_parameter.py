"""What a streamed layer's parameter is while the layer is off the device: the host tensor itself, wrapped types too.

True shape, true values, on the CPU: code that saves, merges or measures weights works as if nothing was offloaded.
When a kernel asks for it together with a device tensor, which happens when somebody uses a weight outside its layer's
own call, the value is brought over for that one operation: slow, never wrong. While the layer runs on the device its
modules hold plain device Parameters, so nothing here is on the hot path. Knows nothing about rings or plans.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .file_rows import look_up
from .parts import GGUF_MARKS, Parts, UnmovableTensor, parts_of, plain
from .weight_file import WeightFile, dtype_of, slice_of

_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as})
"""Operations that take tensors of two devices on purpose."""

_READING_DUNDERS = frozenset({"__index__", "__int__", "__invert__"})


class OutsideTouches:
    """How often a layer's weights were used outside the layer's own call. One per layer; a count, not an error."""

    __slots__ = ("changes", "count")

    def __init__(self) -> None:
        self.count = 0
        self.changes: Mapping[int, Callable[[], torch.Tensor]] = {}
        """Of the parameters, by id, that have another value on the device: what computes it there."""


class _Lender:
    """What HostParameter and its like for wrapped types have in common."""

    touches: OutsideTouches
    kind: type[torch.Tensor]
    """What the object was before `adopt`."""
    parts: Parts

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
            rows = look_up(func, args, kwargs)
            if rows is not None:
                return rows
            device = None if func in _MOVES or _writes(func, kwargs) else _foreign_device(args, kwargs)
            if device is not None:
                args, kwargs = _lend(args, device), _lend(kwargs, device)
            elif func in _MOVES or func is torch.Tensor.copy_:
                args = _changed_on_the_way(func, args, kwargs)
        known = tuple(kind.kind if issubclass(kind, _Lender) else kind for kind in types)
        kind: Any = cls.kind
        return kind.__torch_function__(func, known, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        with torch._C.DisableTorchFunctionSubclass():
            copy = self.parts.as_parameter([plain(leaf).data.clone() for leaf in self.parts.leaves])
            if type(copy) is nn.Parameter:
                copy.requires_grad_(self.requires_grad)  # type: ignore[attr-defined]
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        twin: Any = twin_of(self)  # type: ignore[arg-type]
        with torch._C.DisableTorchFunctionSubclass():
            if type(twin) is nn.Parameter:
                twin.requires_grad_(self.requires_grad)  # type: ignore[attr-defined]
        return twin.__reduce_ex__(protocol)


class HostParameter(_Lender, nn.Parameter):
    """A Parameter on the host that lends its value to an operation on another device.

    Made from an ordinary Parameter by `adopt`, turned back by `release`: the object stays the same one throughout.
    """

    kind = nn.Parameter


@functools.cache
def _lending(kind: type[torch.Tensor]) -> type[torch.Tensor]:
    """The class of a wrapped type's tensors while they lend: a subclass, so that whoever asks takes it for one."""
    if kind is nn.Parameter:
        return HostParameter
    return type(f"Host{kind.__name__}", (_Lender, kind), {"kind": kind})


def is_adopted(parameter: torch.Tensor) -> bool:
    """Whether `parameter` belongs to somebody's host masters at this moment."""
    return isinstance(parameter, _Lender)


def twin_of(tensor: torch.Tensor) -> torch.Tensor:
    """For a parameter that lends: an ordinary one over the same bytes, which shows the master's value wherever it goes.

    Any other tensor is its own twin.
    """
    if not isinstance(tensor, _Lender):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.parts.as_parameter([plain(leaf).data for leaf in tensor.parts.leaves])


def check_files(tensors: Iterable[torch.Tensor]) -> None:
    """Raise FileReadError if a file in which any of `tensors` lies is no longer what was loaded.

    For who is about to read them where they are mapped: a touch of pages that are gone ends the process.
    """
    files: dict[int, WeightFile] = {}
    for tensor in tensors:
        with contextlib.suppress(UnmovableTensor):
            leaves = tensor.parts.leaves if isinstance(tensor, _Lender) else parts_of(tensor).leaves
            files |= {id(part.file): part.file for leaf in leaves if (part := slice_of(leaf))}
    for file in files.values():
        file.check()


def blank_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same marked type, with the same attributes and no bytes."""
    kind = tensor.kind if isinstance(tensor, _Lender) else type(tensor)
    blank = torch.Tensor.as_subclass(torch.empty(0, dtype=torch.uint8), kind)
    vars(blank).update({name: getattr(tensor, name) for name in GGUF_MARKS})
    return blank


def adopt(parameter: nn.Parameter, touches: OutsideTouches, parts: Parts) -> None:
    """Make `parameter`, in place, one that lends. The caller has taken it apart and checked that it is on the CPU."""
    host: Any = parameter
    host.__class__ = _lending(type(parameter))
    host.touches = touches
    host.parts = parts


def release(parameter: nn.Parameter) -> None:
    """Undo `adopt`: the same object is what it was again."""
    if is_adopted(parameter):
        host: Any = parameter
        del host.touches, host.parts
        host.__class__ = host.kind


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


def _changed_on_the_way(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a move to another device, with the value there of a parameter that is changed there.

    This is how the app brings a weight over that is used outside its layer's call.
    """
    moved = args[1] if func is torch.Tensor.copy_ and len(args) > 1 else args[0]
    if not isinstance(moved, _Lender) or (change := moved.touches.changes.get(id(moved))) is None:
        return args
    others = [value for value in (*args, *kwargs.values()) if value is not moved]
    devices = [v.device if isinstance(v, torch.Tensor) else v for v in others if not isinstance(v, bool)]
    if all(torch.device(d).type == "cpu" for d in devices if isinstance(d, (str, int, torch.device))):
        return args
    return tuple(_value_of(moved, change) if value is moved else value for value in args)


def _value_of(parameter: _Lender, change: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a changed parameter is on the device. While it is computed the parameter is itself."""
    touches = parameter.touches
    touches.count += 1
    changes, touches.changes = touches.changes, {}
    try:
        return change()
    finally:
        touches.changes = changes


def _read(leaf: torch.Tensor) -> torch.Tensor:
    """What a leaf holds. One that lies in a file is read, and as it is to be: the file may no longer be what it was."""
    part = slice_of(leaf)
    return plain(leaf).detach() if part is None else part.in_memory(dtype_of(leaf))


def _lend(value: Any, device: torch.device) -> Any:
    """`value` with every HostParameter in it replaced by a copy on `device`."""
    if isinstance(value, _Lender):
        if (change := value.touches.changes.get(id(value))) is not None:
            return _value_of(value, change).to(device)
        value.touches.count += 1
        moved = [_read(leaf).to(device) for leaf in value.parts.leaves]
        return value.parts.rebuild(moved)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_lend(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _lend(item, device) for name, item in value.items()}
    return value
