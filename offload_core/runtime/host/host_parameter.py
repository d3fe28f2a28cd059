"""The parameters of a streamed layer while it is off the device: the host tensors themselves, wrapped types too.

Code that saves, merges or measures weights works as without offload. When an operation uses one together with a device
tensor, outside its layer's own call, the value is copied to the device for that operation: slow, never wrong. While the
layer runs its modules hold plain device Parameters, so nothing here is on the hot path.

The bytes of a parameter are not its value if its layer is patched on arrival, or if it lies in a file, whose pages may
be gone. Operations then get the value: computed, or read. `detach()` and `.data` return a *snapshot*: a parameter with
the value of that moment, computed when its bytes are first used: the app takes state dicts for their names alone, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..files.weight_file import dtype_of, slice_of
from ..tensors.file_rows import look_up
from ..tensors.parts import GGUF_MARKS, Parts, leaves_of, parts_of, plain

_Build = Callable[[Sequence[torch.Tensor]], torch.Tensor]

_MOVES = frozenset({torch.Tensor.to, torch.Tensor.type_as})
"""Operations whose arguments may be on two devices."""

_READING_DUNDERS = frozenset({"__index__", "__int__", "__invert__"})

_DATA: Any = torch.Tensor.data
_ALIASES = frozenset({torch.Tensor.detach, _DATA.__get__})
"""Operations by which a state dict, and code that reads weights, get a tensor of their own."""

_SET_DATA = _DATA.__set__

_VALUE_PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag"})
"""Attributes that are tensors with the same elements; all other attributes describe the tensor."""

_PLACES = frozenset({"data_ptr", "untyped_storage", "storage", "_typed_storage"})
"""Operations that return the address of the bytes."""

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
"""Names of methods and functions of torch that use a tensor but not its elements."""


class OutsideTouches:
    """Uses of weights outside their layer's own call. One for all weights of a layer, one for each weight that is in no
    layer."""

    __slots__ = ("before_write", "changes", "count", "lost_writes")

    def __init__(self) -> None:
        self.count = 0
        self.changes: Mapping[int, Callable[[], torch.Tensor]] = {}
        """By id of a parameter that is patched on the device: the function that computes its value there."""
        self.before_write: Callable[[], object] = nothing_to_do
        """Called before the bytes of a parameter change: they may be in use, or shared with other layers."""
        self.lost_writes = False
        """A patched parameter was written to: the device's value is computed from its old bytes."""

    def use(self) -> None:
        """Count a use."""
        self.count += 1

    def ask_before_writes(self, ask: Callable[[], object] | None) -> None:
        """Set `before_write`; None: there is nothing to ask."""
        self.before_write = ask or nothing_to_do

    def lose_write(self, lost: bool = True) -> None:
        """Set `lost_writes`."""
        self.lost_writes = lost

    def show(self, changes: Mapping[int, Callable[[], torch.Tensor]]) -> None:
        """Set `changes`."""
        self.changes = changes

    def copy_on_device(self, device: torch.device) -> torch.Tensor | None:
        """The copy of the one parameter served that lies on `device`, for a use there; None: its value is copied."""
        return None

    def changed(self, change: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The value of a patched parameter. While it is computed, all parameters of the layer show the masters'."""
        self.use()
        changes, self.changes = self.changes, {}
        try:
            return change()
        finally:
            self.changes = changes

    def read(self, parts: Parts) -> torch.Tensor:
        """The value of a parameter in a file, read: the mapping may no longer show what was loaded."""
        self.use()
        leaves = []
        for leaf in parts.leaves:
            part = slice_of(leaf)
            leaves.append(plain(leaf).detach() if part is None else part.in_memory(dtype_of(leaf)))
        return parts.rebuild(leaves)


def nothing_to_do() -> None:
    """The default of `before_write`: the layer is not loaded."""


class _Snapshot(OutsideTouches):
    """`touches` of a snapshot whose bytes have not been used yet."""

    __slots__ = ("master", "of_layer", "value")

    def __init__(self, master: _Lending, value: Callable[[], torch.Tensor] | None) -> None:
        """`value()` returns the tensor whose bytes it gets; None: the master's bytes, into which it looks already."""
        super().__init__()
        self.master = master
        self.of_layer = master.touches
        self.value = value


class _Lending:
    """Base of HostParameter and of the corresponding classes of wrapped types."""

    touches: OutsideTouches
    kind: type[torch.Tensor]
    """The object's class before `adopt`."""
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
                return _snapshot(args[0])
            if _changes_elements(func):
                args = _to_be_written(func, args)
            if not _gives_itself(func, args, kwargs):
                describes = _describes(func)
                if not describes or getattr(func, "__name__", "") in _PLACES:
                    for tensor in _tensors_in((*args, *kwargs.values())):
                        become_value(tensor)
                if not describes:
                    args, kwargs = _with_values(func, args, kwargs)
        plain_types = tuple(kind.kind if issubclass(kind, _Lending) else kind for kind in types)
        kind: Any = cls.kind
        return kind.__torch_function__(func, plain_types, args, kwargs)

    def _built(self, build_from: Callable[[Parts, _Build], Any]) -> Any:
        """An ordinary tensor of the kind and value of this one; `build_from(parts, build)` makes it."""
        with torch._C.DisableTorchFunctionSubclass():
            parts = _parts_with_value(self)
            built = build_from(parts, parts.as_parameter if isinstance(self, nn.Parameter) else parts.rebuild)
            if type(built) is nn.Parameter:
                built.requires_grad_(self.requires_grad)  # type: ignore[attr-defined]
        return built

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = self._built(lambda parts, build: build([plain(leaf).data.clone() for leaf in parts.leaves]))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._built(_as_made).__reduce_ex__(protocol)


class HostParameter(_Lending, nn.Parameter):
    """A Parameter on the host whose value is copied for an operation on another device ("lends"). `adopt` makes it from
    an ordinary Parameter, `release` turns it back; it is the same object throughout."""

    kind = nn.Parameter


@functools.cache
def _lending_class(kind: type[torch.Tensor]) -> type[torch.Tensor]:
    """The lending class of a tensor type: a subclass of it, so that `isinstance` still holds."""
    if kind is nn.Parameter:
        return HostParameter
    return type(f"Host{kind.__name__}", (_Lending, kind), {"kind": kind})


def is_adopted(parameter: torch.Tensor) -> bool:
    """Whether `parameter` is at present a host master of a layer."""
    return isinstance(parameter, _Lending) and not isinstance(parameter.touches, _Snapshot)


def twin_of(tensor: torch.Tensor) -> torch.Tensor:
    """For a lending parameter, an ordinary one over the same bytes, with the master's value; else `tensor`."""
    become_value(tensor)
    if not isinstance(tensor, _Lending):
        return tensor
    return _as_made(tensor.parts, tensor.parts.as_parameter)


def _as_made(parts: Parts, build: _Build) -> torch.Tensor:
    """`build` called with tensors over the bytes of `parts`; in inference mode if these were made in it."""
    with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode(parts.leaves[0].is_inference()):
        return build([plain(leaf.data) for leaf in parts.leaves])


def check_files(tensors: Iterable[torch.Tensor]) -> None:
    """Raise FileReadError if a file in which any of `tensors` lies has changed since it was loaded. For code about to
    read mapped tensors: touching pages that are gone ends the process."""
    leaves = (leaf for tensor in tensors for leaf in _leaves_of(tensor))
    for file in {id(part.file): part.file for leaf in leaves if (part := slice_of(leaf))}.values():
        file.check()


def blank_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same marked type (GGUF), with the same attributes and no bytes."""
    kind = tensor.kind if isinstance(tensor, _Lending) else type(tensor)
    blank = torch.Tensor.as_subclass(torch.empty(0, dtype=torch.uint8), kind)
    vars(blank).update({name: getattr(tensor, name) for name in GGUF_MARKS})
    return blank


def adopt(parameter: torch.Tensor, touches: OutsideTouches, parts: Parts) -> None:
    """Make `parameter` lend, in place. It is on the CPU; `parts` are its parts."""
    host: Any = parameter
    host.__class__ = _lending_class(type(parameter))
    host.touches = touches
    host.parts = parts


def release(parameter: torch.Tensor) -> None:
    """Undo `adopt`, in place. Any other tensor is left alone."""
    if isinstance(parameter, _Lending):
        host: Any = parameter
        del host.touches, host.parts
        host.__class__ = host.kind


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether `func` writes into an argument. A copy would lose the write, so torch is left to raise its error."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):  # x[i] = y and x += y write; x @ y and the like do not
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _READING_DUNDERS)
    return "out" in kwargs or name.endswith("_")


def _changes_elements(func: Callable[..., Any]) -> bool:
    """Whether `func` is a method that writes elements of its tensor."""
    return _writes(func, {}) and not _describes(func) and getattr(func, "__name__", "") != "detach_"


def _describes(func: Callable[..., Any]) -> bool:
    """Whether `func` uses a tensor without its elements."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        return attribute not in _VALUE_PROPERTIES and not (name == "__set__" and attribute == "data")
    return name in _DESCRIPTIONS


def _foreign_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device of the first tensor argument that is not on the host; None if there is none."""
    devices = (tensor.device for tensor in _tensors_in((*args, *kwargs.values())))
    return next((device for device in devices if device.type not in ("cpu", "meta")), None)


def _tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among the values and in lists among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)


def _moves_to(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that an operation moves its tensor to, if not the host: how the app moves a weight."""
    for value in (*args[1:], *kwargs.values()) if func in _MOVES else args[:1]:
        named = value.device if isinstance(value, torch.Tensor) else value
        if isinstance(named, (str, int, torch.device)) and not isinstance(named, bool):
            device = torch.device(named)
            if device.type not in ("cpu", "meta"):
                return device
    return None


def _gives_itself(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation returns its own argument unchanged: the app casts weights to the type they have. It does not
    use the elements: a table of which few rows are looked up later must not be read for it."""
    name = getattr(func, "__name__", "")
    if name not in ("to", "cpu", "contiguous") or kwargs.get("copy") or kwargs.get("memory_format") is not None:
        return False
    tensor, wanted = args[0], (*args[1:], *kwargs.values())
    if isinstance(tensor, _Lending) and any(dtype_of(leaf) != leaf.dtype for leaf in tensor.parts.leaves):
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
    """The arguments of an operation, with values in place of parameters whose bytes it cannot use. What is written to
    is left as it is."""
    writes, moves = _writes(func, kwargs), func in _MOVES or func is torch.Tensor.copy_
    if moves:
        device = _moves_to(func, args, kwargs)
    else:
        device = None if writes else _foreign_device(args, kwargs)
    written = 1 if writes and "out" not in kwargs else 0
    lent = (*args[:written], *_lend(args[written:], device, moves))
    return lent, {name: value if name == "out" else _lend(value, device, moves) for name, value in kwargs.items()}


def _lend(value: Any, device: torch.device | None, moves: bool) -> Any:
    """`value` with each parameter in it replaced by its value, on `device` unless that is None. A parameter whose bytes
    are its value is kept if `device` is None, or if the operation itself `moves` it."""
    if isinstance(value, _Lending):
        if device is not None and (copied := value.touches.copy_on_device(device)) is not None:
            return copied
        compute = _value_to_come(value)
        if compute is not None:
            return compute().to("cpu" if device is None else device)
        if device is None:
            return value
        value.touches.use()
        if moves:
            return value
        return value.parts.rebuild([plain(leaf).detach().to(device) for leaf in value.parts.leaves])
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_lend(item, device, moves) for item in value)
    if isinstance(value, dict):
        return {name: _lend(item, device, moves) for name, item in value.items()}
    return value


def _value_to_come(parameter: Any) -> Callable[[], torch.Tensor] | None:
    """The function that computes or reads a parameter's value; None if its bytes are its value."""
    if not isinstance(parameter, _Lending):
        return None
    if isinstance(parameter.touches, _Snapshot):
        return parameter.touches.value
    change = parameter.touches.changes.get(id(parameter))
    if change is not None:
        return functools.partial(parameter.touches.changed, change)
    if any(slice_of(leaf) is not None for leaf in parameter.parts.leaves):
        return functools.partial(parameter.touches.read, parameter.parts)
    return None


# ---------------------------------------------------------------------- snapshots


def _snapshot(parameter: Any) -> torch.Tensor:
    """A snapshot: a parameter over the same bytes, whose value is computed or read when they are first used."""
    touches = parameter.touches
    master = touches.master if isinstance(touches, _Snapshot) else parameter
    twin = _as_made(parameter.parts, parameter.parts.rebuild)
    adopt(twin, _Snapshot(master, _value_to_come(parameter)), parts_of(twin))
    if any(dtype_of(leaf) != leaf.dtype for leaf in parameter.parts.leaves):
        become_value(twin)  # it would be described by the file's type
    return twin


def _parts_with_value(parameter: Any) -> Parts:
    """Parts whose bytes are the parameter's value: its own, or those of a snapshot."""
    if _value_to_come(parameter) is None:
        return parameter.parts  # type: ignore[no-any-return]
    snapshot = _snapshot(parameter)
    become_value(snapshot)
    return parts_of(snapshot)


def become_value(tensor: torch.Tensor) -> None:
    """Give a snapshot its value. Any other tensor is left alone."""
    if not isinstance(tensor, _Lending) or not isinstance(tensor.touches, _Snapshot):
        return
    compute, leaves = tensor.touches.value, tensor.parts.leaves
    release(tensor)
    if compute is None:
        return
    with torch._C.DisableTorchFunctionSubclass():
        value = parts_of(compute())
        for leaf, new in zip(leaves, value.leaves):
            # Parameters made in inference mode take no data made outside of it.
            with torch.inference_mode(leaf.is_inference()), torch.no_grad():
                plain(leaf).data = plain(new).detach().to("cpu", copy=True)


def _to_be_written(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments for an operation that writes into the first of them.

    A write into a master, or a snapshot of one, changes the model, as in the app. A write into a patched weight does
    not, as the app would lose it with the patches: it is noted in `lost_writes`.
    """
    if not args or not isinstance(args[0], _Lending):
        return args
    target: Any = args[0]
    touches = target.touches
    if not isinstance(touches, _Snapshot):
        if id(target) not in touches.changes:
            touches.before_write()
            return args
        touches.lose_write()
        snapshot = _snapshot(target)
        become_value(snapshot)
        return (snapshot, *args[1:])
    if func == _SET_DATA:
        release(target)
    elif id(touches.master) in touches.of_layer.changes:
        touches.of_layer.lose_write()
        become_value(target)
    else:
        touches.of_layer.before_write()
        release(target)
        for leaf, own in zip(parts_of(target).leaves, _leaves_of(touches.master)):
            with torch.inference_mode(leaf.is_inference()), torch.no_grad():
                plain(leaf).data = plain(own).data
    return args


def _leaves_of(tensor: Any) -> Sequence[torch.Tensor]:
    """The leaves of a tensor, whether it lends or is an ordinary one; none if it cannot be moved as bytes."""
    return tensor.parts.leaves if isinstance(tensor, _Lending) else leaves_of(tensor)
