"""May a call that ran out of device memory half-way be made once more? Tried out on tensors without memory.

A forward may have written into its inputs, drawn random numbers, or noted something on its module before it failed:
repeating it would then be silently wrong. So the call is first made on fake tensors, which have shapes and a device and
no bytes, while every operation is looked at. Only a call that had, up to where it failed, written to nothing but what
it made itself and drawn nothing, and that takes no notes on its module or in the containers it was given, may be
repeated. What Python code of others does besides (a counter of a patch, say) cannot be seen here: whoever allows
repeating has to know that there is none.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["can_repeat", "where_it_failed"]

log = logging.getLogger(__name__)


_TORCH = str(Path(torch.__file__).parent)

Where = list[tuple[types.CodeType, int]]
"""A place in running code: the functions under way, outermost first, and the line each is at."""


class _LeavesTraces(Exception):
    """Private: the call does something that must not be done twice."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where the call fails after an operation that draws random numbers or writes into memory of before."""

    def __init__(self, failed: Where) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._failed = failed
        self.reached = not failed
        """Whether an operation was made where the call failed."""
        self._trace = ""
        self._own: dict[int, Any] = {}
        """Storages made by the call, by address. Held, so that no address is used twice."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._trace = self._trace or self._traces_of(func, args, kwargs)
        if self._is_where_it_failed():
            if self._trace:
                raise _LeavesTraces(self._trace)
            self.reached = True
        before = _storages((args, kwargs))
        result = func(*args, **kwargs)
        self._own.update((key, storage) for key, storage in _storages(result).items() if key not in before)
        return result

    def _traces_of(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What the operation does that must not be done twice; empty if nothing."""
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, kwargs):
            return f"{func} draws random numbers"
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = _storages(_given(argument, position, args, kwargs))
                if any(key not in self._own for key in written):
                    return f"{func} writes to what was there before"
        return ""

    def _is_where_it_failed(self) -> bool:
        """Whether the operation is made at the place where the call failed, as far as that is outside of torch."""
        here: Where = []
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not can_repeat.__code__:
            if here or not frame.f_code.co_filename.startswith(_TORCH):
                here.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return here[::-1] == self._failed[: len(here)] or not self._failed


def where_it_failed(error: BaseException, caller: types.CodeType) -> Where:
    """The place where `error` was raised, below the function `caller`."""
    frames: Where = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    start = max((index for index, (code, _) in enumerate(frames) if code is caller), default=-1)
    return frames[start + 1 :]


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


def can_repeat(
    module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], failed: Where
) -> bool:
    """Whether `call(*args, **kwargs)`, a method of `module`, had left nothing behind when it failed at `failed`.

    False where that cannot be told; a place that comes before and after the first trace counts as after. With an empty
    `failed`, whether the whole call leaves nothing behind. The module's parameters are on the device, so that the call
    finds what it expects. Takes no device memory.
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
            with _Watch(failed) as watch:
                call(*given[0], **given[1])
            after, shape_after = tree_flatten(given)
        same = shape == shape_after and all(a is b for a, b in zip(before, after)) and notes.unchanged()
        why = ("" if watch.reached else "it fails at another place each time") if same else "it takes notes"
    except Exception as error:  # it writes, it draws, or it cannot be told: data decides, a kernel has no fake
        why = str(error) or type(error).__name__
    finally:
        notes.restore()
    if why:
        log.info("Layerwise Offload: %s ran out of memory and is not repeated: %s", type(module).__name__, why)
    return not why


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
