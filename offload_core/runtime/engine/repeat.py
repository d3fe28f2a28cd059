"""Decides whether a call that ran out of device memory may be repeated, by a trial on tensors without memory.

A forward may have written into its inputs, drawn random numbers, or changed attributes of its module before it failed:
repeating it would then be silently wrong. So the call is first made on fake tensors, which have shapes and a device but
no bytes, and every operation is inspected. It may be repeated only if, up to where it failed, it wrote only to tensors
it made itself, drew no random numbers, and changed neither its module nor the containers it was given. Side effects of
other Python code (a patch's counter, say) are not seen: the caller must know that there are none.
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

log = logging.getLogger(__name__)


_TORCH = str(Path(torch.__file__).parent)

Where = list[tuple[types.CodeType, int]]
"""A place in running code: the functions under way, outermost first, each with its current line."""


class _LeavesTraces(Exception):
    """The call has a side effect, so it must not be repeated."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the place of failure if an earlier operation drew random numbers or wrote into older memory."""

    def __init__(self, failed: Where) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._failed = failed
        self.reached = not failed
        """Whether the place of failure was reached."""
        self._trace = ""
        self._own: dict[int, Any] = {}
        """Storages made by the call, by address; kept, so that no address is reused."""

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
        """The operation's side effect in words; empty if it has none."""
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, kwargs):
            return f"{func} draws random numbers"
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = _storages(_given(argument, position, args, kwargs))
                if any(key not in self._own for key in written):
                    return f"{func} writes to what was there before"
        return ""

    def _is_where_it_failed(self) -> bool:
        """Whether the operation is at the place of failure, judged by the frames outside torch."""
        place: Where = []
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not can_repeat.__code__:
            if place or not frame.f_code.co_filename.startswith(_TORCH):
                place.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return place[::-1] == self._failed[: len(place)] or not self._failed


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
    """Whether the operation's dropout is 0. Attention is tagged as random because of its dropout."""
    return any(
        argument.name == "dropout_p" and _given(argument, position, args, kwargs) == 0
        for position, argument in enumerate(func._schema.arguments)
    )


def _given(argument: Any, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)


def _storages(value: Any) -> dict[int, Any]:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}


def can_repeat(
    module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], failed: Where
) -> bool:
    """Whether `call(*args, **kwargs)`, a method of `module`, had no side effect when it failed at `failed`.

    False if that cannot be decided; a place reached both before and after the first side effect counts as after. If
    `failed` is empty, the whole call is judged. The module's parameters are on the device, as the call expects. Takes
    no device memory.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:  # private to torch: without it nothing is repeated
        return False
    notes = _Notes(module)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            given = tree_map(
                lambda leaf: fake.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, [args, kwargs]
            )
            before, shape = tree_flatten(given)
            with _Watch(failed) as watch:
                call(*given[0], **given[1])
            after, shape_after = tree_flatten(given)
        same = shape == shape_after and all(a is b for a, b in zip(before, after)) and notes.unchanged()
        why = ("" if watch.reached else "it fails at another place each time") if same else "it takes notes"
    except Exception as error:  # a side effect, or undecidable: it depends on data, or a kernel has no fake
        why = str(error) or type(error).__name__
    finally:
        notes.restore()
    if why:
        log.info("Layerwise Offload: %s ran out of memory and is not repeated: %s", type(module).__name__, why)
    return not why


class _Notes:
    """The attributes of a module and its submodules, restored after a trial so that no fake tensor remains."""

    def __init__(self, module: nn.Module) -> None:
        places: list[Any] = []
        for inner in module.modules():
            own = vars(inner)
            places += [own, *(value for value in own.values() if isinstance(value, dict))]
        lists = [value for place in places for value in place.values() if isinstance(value, list)]
        self._were: list[tuple[Any, Any]] = [(place, dict(place)) for place in places]
        self._were += [(items, list(items)) for items in lists]

    def unchanged(self) -> bool:
        return all(_same(now, was) for now, was in self._were)

    def restore(self) -> None:
        for now, was in self._were:
            if isinstance(now, list):
                now[:] = was
            elif not _same(now, was):
                now.clear()
                now.update(was)


def _same(now: Any, was: Any) -> bool:
    """Whether two lists, or two dictionaries, hold the same objects."""
    if isinstance(now, list):
        return len(now) == len(was) and all(a is b for a, b in zip(now, was))
    return now.keys() == was.keys() and all(now[key] is was[key] for key in was)
