"""What a streamed layer's parameter is while the layer is off the device: the host tensor itself, wrapped types too.

True shape, true values, on the CPU: code that saves, merges or measures weights works as if nothing was offloaded.
When a kernel asks for it together with a device tensor, which happens when a weight is used outside its layer's own
call, the value is brought over for that one operation: slow, never wrong. While the layer runs on the device its
modules hold plain device Parameters, so nothing here is on the hot path. Knows nothing about rings or plans.

The bytes of a parameter are not its value where its layer is changed on arrival (a LoRA), or where it lies in a file,
whose pages may be gone. Operations get the value then: computed, or read. `detach()` and `.data`, by which a state
dict is made, give a parameter of the reader's own that is the value as it was at that moment. Nothing is computed for
it until its bytes are asked for: the app takes state dicts for the names in them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .file_rows import look_up
from .parts import GGUF_MARKS, Parts, UnmovableTensor, parts_of, plain
from .weight_file import WeightFile, dtype_of, slice_of

_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as})
"""Operations that take tensors of two devices on purpose."""

_READING_DUNDERS = frozenset({"__index__", "__int__", "__invert__"})

_DATA: Any = torch.Tensor.data
_ALIASES = frozenset({torch.Tensor.detach, _DATA.__get__})
"""What a state dict, and code that reads weights, take a tensor of their own by."""

_SET_DATA = _DATA.__set__

_VALUE_PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag"})
"""Attributes of a tensor that are tensors with its elements; all others describe it."""

_PLACES = frozenset({"data_ptr", "untyped_storage", "storage", "_typed_storage"})
"""Operations that tell where the bytes are."""

_DESCRIPTIONS = _PLACES | frozenset(
    {
        *("size", "stride", "storage_offset", "dim", "ndimension", "dim_order", "numel", "nelement", "element_size"),
        *("is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "is_inference"),
        *("is_pinned", "is_shared", "is_set_to", "is_same_size", "get_device", "has_names", "register_hook"),
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "result_type"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "__len__", "__hash__"),
        *("requires_grad_", "retain_grad", "register_post_accumulate_grad_hook"),
    }
)
"""Operations that say or use something of a tensor but its elements, by name: methods and functions of torch."""


class OutsideTouches:
    """How a layer's weights were used outside the layer's own call. One per layer."""

    __slots__ = ("before_write", "changes", "copy_on_device", "count", "lost_writes")

    def __init__(self) -> None:
        self.count = 0
        self.changes: Mapping[int, Callable[[], torch.Tensor]] = {}
        """Of the parameters, by id, that have another value on the device: what computes it there."""
        self.copy_on_device: Callable[[torch.device], torch.Tensor | None] = no_copy
        """Asked before a parameter's value is copied to a device: what has the value there already, or has it now."""
        self.before_write: Callable[[], object] = nothing_to_do
        """Called before the bytes of one of the parameters change: they are in use, and may be others' as well."""
        self.lost_writes = False
        """A parameter was written to that has another value on the device: that is computed of the bytes of before."""


def nothing_to_do() -> None:
    """What comes before a write to a layer that is not loaded."""


def no_copy(device: torch.device) -> torch.Tensor | None:
    """There is no copy on the device but the one that is made for a use."""
    return None


class _ToCome(OutsideTouches):
    """What a reader's own parameter has in place of its layer's counter, until its bytes are asked for."""

    __slots__ = ("master", "of_layer", "value")

    def __init__(self, master: _Lender, value: Callable[[], torch.Tensor] | None) -> None:
        """`value()` makes the bytes that it is to have; None: the master's own serve, and it looks at them."""
        super().__init__()
        self.master = master
        self.of_layer = master.touches
        self.value = value

    @property
    def is_changed(self) -> bool:
        """Whether the value is another one than that of the master's bytes, wherever these lie."""
        return id(self.master) in self.of_layer.changes


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
            if func in _ALIASES:
                return _readers_own(args[0])
            if _changes_elements(func):
                args = _to_be_written(func, args)
            _make_readers_own(func, args, kwargs)
            args, kwargs = _with_values(func, args, kwargs)
        known = tuple(kind.kind if issubclass(kind, _Lender) else kind for kind in types)
        kind: Any = cls.kind
        return kind.__torch_function__(func, known, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            parts = _parts_with_value(self)
            build = parts.as_parameter if isinstance(self, nn.Parameter) else parts.rebuild
            copy: Any = build([plain(leaf).data.clone() for leaf in parts.leaves])
            if type(copy) is nn.Parameter:
                copy.requires_grad_(self.requires_grad)  # type: ignore[attr-defined]
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = _parts_with_value(self)
        twin: Any = _as_made(parts, parts.as_parameter if isinstance(self, nn.Parameter) else parts.rebuild)
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
    """Whether `parameter` is a host master of a layer at this moment."""
    return isinstance(parameter, _Lender) and not isinstance(parameter.touches, _ToCome)


def twin_of(tensor: torch.Tensor) -> torch.Tensor:
    """For a parameter that lends: an ordinary one over the same bytes, which shows the master's value wherever it goes.

    Any other tensor is its own twin.
    """
    become_value(tensor)
    if not isinstance(tensor, _Lender):
        return tensor
    return _as_made(tensor.parts, tensor.parts.as_parameter)


def _over_the_same(parts: Parts) -> torch.Tensor:
    """A tensor of its own over the bytes of `parts`, and no parameter."""
    return _as_made(parts, parts.rebuild)


def _as_made(parts: Parts, build: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> torch.Tensor:
    """What `build` makes of tensors over the bytes of `parts`, in inference mode if they were made there."""
    with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode(parts.leaves[0].is_inference()):
        return build([plain(leaf.data) for leaf in parts.leaves])


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


def adopt(parameter: torch.Tensor, touches: OutsideTouches, parts: Parts) -> None:
    """Make `parameter`, in place, one that lends. The caller has taken it apart and checked that it is on the CPU."""
    host: Any = parameter
    host.__class__ = _lending(type(parameter))
    host.touches = touches
    host.parts = parts


def release(parameter: torch.Tensor) -> None:
    """Undo `adopt`: the same object is what it was again."""
    if isinstance(parameter, _Lender):
        host: Any = parameter
        del host.touches, host.parts
        host.__class__ = host.kind


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """In-place operations get no loan: a write into a borrowed copy would be lost. Torch's own error is right there."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):  # x[i] = y and x += y write; x @ y and the like do not
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _READING_DUNDERS)
    return "out" in kwargs or name.endswith("_")


def _changes_elements(func: Callable[..., Any]) -> bool:
    """Whether `func` writes into the memory of the tensor that it is a method of."""
    return _writes(func, {}) and not _describes(func) and getattr(func, "__name__", "") != "detach_"


def _describes(func: Callable[..., Any]) -> bool:
    """Whether `func` says something of a tensor without looking at its elements."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return attribute not in _VALUE_PROPERTIES and not (name == "__set__" and attribute == "data")
    return name in _DESCRIPTIONS


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


def _moves_to(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that an operation moves a parameter to, if it is not the host: how the app brings a weight over."""
    for value in (*args[1:], *kwargs.values()) if func in _MOVES else args[:1]:
        named = value.device if isinstance(value, torch.Tensor) else value
        if isinstance(named, (str, int, torch.device)) and not isinstance(named, bool):
            device = torch.device(named)
            if device.type not in ("cpu", "meta"):
                return device
    return None


def _gives_itself(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation returns its tensor because there is nothing to do: the app casts weights to their own type.

    The elements are not looked at. A table of which a few rows are looked up afterwards must not be read for it.
    """
    name = getattr(func, "__name__", "")
    if name not in ("to", "cpu", "contiguous") or kwargs.get("copy") or kwargs.get("memory_format") is not None:
        return False
    tensor, wanted = args[0], (*args[1:], *kwargs.values())
    if isinstance(tensor, _Lender) and any(dtype_of(leaf) != leaf.dtype for leaf in tensor.parts.leaves):
        return False
    for value in wanted:
        if value is None or value is False or (value is True and kwargs.get("non_blocking")):
            continue
        if isinstance(value, torch.Tensor):
            same = value.device.type == "cpu" and value.dtype == tensor.dtype
        elif isinstance(value, torch.dtype):
            same = value == tensor.dtype
        else:
            same = isinstance(value, (str, torch.device)) and torch.device(value).type == "cpu"
        if not same:
            return False
    return name != "contiguous" or bool(tensor.is_contiguous())


def _with_values(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an operation with values in place of the parameters whose bytes it cannot use.

    What is written to is left as it is, and so is what the operation only describes.
    """
    if _describes(func) or _gives_itself(func, args, kwargs):
        return args, kwargs
    if func in _MOVES or func is torch.Tensor.copy_:
        device, moves = _moves_to(func, args, kwargs), True
    else:
        device, moves = (None if _writes(func, kwargs) else _foreign_device(args, kwargs)), False
    written = 1 if _writes(func, kwargs) and "out" not in kwargs else 0
    given = (*args[:written], *_lend(args[written:], device, moves))
    return given, {name: value if name == "out" else _lend(value, device, moves) for name, value in kwargs.items()}


def _lend(value: Any, device: torch.device | None, moves: bool) -> Any:
    """`value` with each parameter in it replaced by what it is, on `device` if that is given.

    A parameter whose bytes are its value stays where no device is given, and where the operation itself `moves` it.
    """
    if isinstance(value, _Lender):
        copied = None if device is None else value.touches.copy_on_device(device)
        if copied is not None:
            return copied
        own = _value_to_come(value)
        if own is not None:
            found = own()
            return found.to("cpu" if device is None else device)
        if device is None:
            return value
        value.touches.count += 1
        if moves:
            return value
        return value.parts.rebuild([plain(leaf).detach().to(device) for leaf in value.parts.leaves])
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_lend(item, device, moves) for item in value)
    if isinstance(value, dict):
        return {name: _lend(item, device, moves) for name, item in value.items()}
    return value


def _value_to_come(parameter: Any) -> Callable[[], torch.Tensor] | None:
    """What makes a parameter's value, on the device or on the host; None if its bytes are its value."""
    if not isinstance(parameter, _Lender):
        return None
    if isinstance(parameter.touches, _ToCome):
        return parameter.touches.value
    change = parameter.touches.changes.get(id(parameter))
    if change is not None:
        return functools.partial(_changed, parameter.touches, change)
    if any(slice_of(leaf) is not None for leaf in parameter.parts.leaves):
        return functools.partial(_read, parameter.touches, parameter.parts)
    return None


def _changed(touches: OutsideTouches, change: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What a changed parameter is on the device. While it is computed, all parameters of its layer are themselves."""
    touches.count += 1
    changes, touches.changes = touches.changes, {}
    try:
        return change()
    finally:
        touches.changes = changes


def _read(touches: OutsideTouches, parts: Parts) -> torch.Tensor:
    """What a parameter in a file is, read: looked at where it is mapped, the file may no longer be what it was."""
    touches.count += 1
    leaves = []
    for leaf in parts.leaves:
        part = slice_of(leaf)
        leaves.append(plain(leaf).detach() if part is None else part.in_memory(dtype_of(leaf)))
    return parts.rebuild(leaves)


# ---------------------------------------------------------------------- parameters of readers' own


def _readers_own(parameter: Any) -> torch.Tensor:
    """A parameter over the same bytes that becomes what `parameter` is now when its bytes are asked for."""
    touches = parameter.touches
    master = touches.master if isinstance(touches, _ToCome) else parameter
    twin = _over_the_same(parameter.parts)
    adopt(twin, _ToCome(master, _value_to_come(parameter)), parts_of(twin))
    if any(dtype_of(leaf) != leaf.dtype for leaf in parameter.parts.leaves):
        become_value(twin)  # what it is described by would be the file's
    return twin


def _parts_with_value(parameter: Any) -> Parts:
    """Parts whose bytes are the parameter's value: its own, or others."""
    if _value_to_come(parameter) is None:
        return parameter.parts  # type: ignore[no-any-return]
    reader = _readers_own(parameter)
    become_value(reader)
    return parts_of(reader)


def _make_readers_own(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Have those of the arguments that are readers' own become their values, if `func` asks for the bytes."""
    if _gives_itself(func, args, kwargs) or (_describes(func) and getattr(func, "__name__", "") not in _PLACES):
        return
    for value in itertools.chain(args, kwargs.values()):
        if isinstance(value, torch.Tensor):
            become_value(value)
        elif isinstance(value, (list, tuple)):
            _make_readers_own(func, tuple(value), {})


def become_value(tensor: torch.Tensor) -> None:
    """Give a parameter that a reader has taken the bytes that it is to have. Any other tensor is left alone."""
    if not isinstance(tensor, _Lender) or not isinstance(tensor.touches, _ToCome):
        return
    make, leaves = tensor.touches.value, tensor.parts.leaves
    release(tensor)
    if make is None:
        return
    with torch._C.DisableTorchFunctionSubclass():
        value = parts_of(make())
        for leaf, new in zip(leaves, value.leaves):
            # Parameters made in inference mode take no data made outside of it.
            with torch.inference_mode(leaf.is_inference()), torch.no_grad():
                plain(leaf).data = plain(new).detach().to("cpu", copy=True)


def _to_be_written(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an operation that writes into the first of them.

    A write into a master, or into what a reader has taken of one, changes the model as it would change the app's. Into
    a weight that is another on the device it does not: in the app it would be gone with the patches. That is noted.
    """
    if not args or not isinstance(args[0], _Lender):
        return args
    target: Any = args[0]
    touches = target.touches
    if not isinstance(touches, _ToCome):
        if id(target) not in touches.changes:
            touches.before_write()
            return args
        touches.lost_writes = True
        reader = _readers_own(target)
        become_value(reader)
        return (reader, *args[1:])
    if func == _SET_DATA:
        release(target)
    elif touches.is_changed:
        touches.of_layer.lost_writes = True
        become_value(target)
    else:
        touches.of_layer.before_write()
        release(target)
        for leaf, own in zip(parts_of(target).leaves, leaves_of_master(touches.master)):
            with torch.inference_mode(leaf.is_inference()), torch.no_grad():
                plain(leaf).data = plain(own).data
    return args


def leaves_of_master(master: Any) -> Sequence[torch.Tensor]:
    """The leaves of a master, which is an ordinary parameter again once its model is off the device."""
    return master.parts.leaves if isinstance(master, _Lender) else parts_of(master).leaves
