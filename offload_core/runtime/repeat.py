"""May a call that ran out of device memory half-way be made once more? Tried out on tensors without memory.

A forward may have written into its inputs, drawn random numbers, or noted something on its module before it failed:
repeating it would then be silently wrong. So the call is first made on fake tensors, which have shapes and a device and
no bytes, while every operation is looked at. Only a call that writes to nothing but what it made itself, draws nothing
and leaves no trace on its module or in the containers it was given may be repeated. What Python code of others does
besides (a counter of a patch, say) cannot be seen here: whoever allows repeating has to know that there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["can_repeat"]

log = logging.getLogger(__name__)


class _LeavesTraces(Exception):
    """Private: the call does something that must not be done twice."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises as soon as an operation draws random numbers or writes into memory that was there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own: dict[int, Any] = {}
        """Storages made by the call, by address. Held, so that no address is used twice."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, kwargs):
            raise _LeavesTraces(f"{func} draws random numbers")
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = _given(argument, position, args, kwargs)
                if any(key not in self._own for key in _storages(value)):
                    raise _LeavesTraces(f"{func} writes to what was there before")
        before = _storages((args, kwargs))
        result = func(*args, **kwargs)
        self._own.update((key, storage) for key, storage in _storages(result).items() if key not in before)
        return result


def _drops_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Attention counts as drawing random numbers: it does for its dropout, and only if there is some."""
    return any(
        argument.name == "dropout_p" and _given(argument, position, args, kwargs) == 0
        for position, argument in enumerate(func._schema.arguments)
    )


def _given(argument: Any, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)


def _faked(mode: Any, leaf: Any) -> Any:
    return mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf


def _storages(value: Any) -> dict[int, Any]:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def can_repeat(module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `call(*args, **kwargs)`, a method of `module`, leaves nothing behind. False where that cannot be told.

    The module's parameters are on the device, so that the call finds what it expects. Takes no device memory.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:  # a private part of torch: without it nothing is repeated
        return False
    notes = _Notes(module)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            given = tree_map(lambda leaf: _faked(fake, leaf), [args, kwargs])
            before, shape = tree_flatten(given)
            with _Watch():
                call(*given[0], **given[1])
            after, shape_after = tree_flatten(given)
        return shape == shape_after and all(a is b for a, b in zip(before, after)) and notes.unchanged()
    except Exception as error:  # it writes, it draws, or it cannot be told: data decides, a kernel has no fake
        log.info("Layerwise Offload: %s ran out of memory and is not repeated: %s", type(module).__name__, error)
        return False
    finally:
        notes.restore()


class _Notes:
    """What a module and those inside it remember, so that a try leaves no fake tensor behind."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[dict[Any, Any]] = []
        for inner in module.modules():
            own = vars(inner)
            self._places += [own, *(value for value in own.values() if isinstance(value, dict))]
        self._lists = [value for place in self._places for value in place.values() if isinstance(value, list)]
        self._dicts_were = [dict(place) for place in self._places]
        self._lists_were = [list(value) for value in self._lists]

    def unchanged(self) -> bool:
        return all(_same(now, was) for now, was in zip(self._places, self._dicts_were)) and all(
            len(now) == len(was) and all(a is b for a, b in zip(now, was))
            for now, was in zip(self._lists, self._lists_were)
        )

    def restore(self) -> None:
        for now, was in zip(self._places, self._dicts_were):
            if not _same(now, was):
                now.clear()
                now.update(was)
        for items, items_were in zip(self._lists, self._lists_were):
            items[:] = items_were


def _same(now: dict[Any, Any], was: dict[Any, Any]) -> bool:
    return now.keys() == was.keys() and all(now[key] is was[key] for key in was)
