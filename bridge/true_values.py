"""What code that reads a streamed model's weights is shown: what the app's own loaded model would show, or an error.

A streamed layer's module holds unpatched masters. They may lie in a file, in the file's type, and the file may have
come to harm. Of a loaded model the masters themselves show what they are on the device (`host_parameter.py`). Here is
what is to be untouched instead: savers, merges and extraction take it by the patcher's methods.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..offload_core.runtime import twin_of
from ..offload_core.runtime.host_parameter import check_files, is_adopted
from ..offload_core.runtime.weight_file import dtype_of, lies_in_file, slice_of
from . import compat
from .component import Component
from .kinds import DIT, TEXT_ENCODER
from .weights import app_patches

_TRUE_IN_STATE_DICTS = "layerwise_offload_true_in_state_dicts"


@contextlib.contextmanager
def in_their_types(model: nn.Module) -> Iterator[None]:
    """In the block, weights whose file has another type than they are to have lie in memory, as the app's do.

    What is taken from the module in the block stays there.
    """
    changed = []
    try:
        for parameter in model.parameters():
            part = slice_of(parameter)
            if part is not None and dtype_of(parameter) != part.dtype:
                value = part.in_memory(dtype_of(parameter))
                changed.append((parameter, part.mapped))
                _show(parameter, value)
        yield
    finally:
        for parameter, mapped in changed:
            _show(parameter, mapped)


def _show(parameter: nn.Parameter, value: torch.Tensor) -> None:
    # Parameters made in inference mode take no data made outside of it.
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.data = value


@contextlib.contextmanager
def read_from_file(model: nn.Module, key: str) -> Iterator[None]:
    """In the block, one weight is what its file has at this moment, in the type that it is to have."""
    owner, _, name = key.rpartition(".")
    parameters = model.get_submodule(owner)._parameters
    weight = parameters.get(name)
    part = None if weight is None else slice_of(weight)
    if weight is None or part is None:
        yield
        return
    parameters[name] = nn.Parameter(part.in_memory(dtype_of(weight)), requires_grad=False)
    try:
        yield
    finally:
        parameters[name] = weight


def to_be_used_later(weight: torch.Tensor) -> torch.Tensor:
    """A weight as it goes into a merge: it does not lend what it is on the device, and has the values of its type.

    Where it lies in a file it is marked so: ours read it when it is used (`weights.untouched`).
    """
    part = slice_of(weight)
    if part is None:
        return twin_of(weight)
    dtype = dtype_of(weight)
    if not _holds_all_of(dtype, part.dtype):
        return part.in_memory(dtype)
    twin = twin_of(weight)
    lies_in_file(twin, part, dtype)
    return twin


def _holds_all_of(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether each value of `other` is one of `dtype` as well."""
    if dtype == other or not (dtype.is_floating_point and other.is_floating_point):
        return dtype == other
    wide, narrow = torch.finfo(dtype), torch.finfo(other)
    return wide.eps <= narrow.eps and wide.max >= narrow.max and wide.smallest_normal <= narrow.smallest_normal


def be_true_in_state_dicts(model: nn.Module) -> None:
    """Have the module's state dict, which savers take for the loaded weights, refuse files that came to harm.

    And show what the app's would show of models that it saves by nothing else. Of the others it takes mostly the names.
    """
    if not vars(model).get(_TRUE_IN_STATE_DICTS):
        vars(model)[_TRUE_IN_STATE_DICTS] = True
        model.register_state_dict_pre_hook(_check_files)
        model.register_state_dict_post_hook(_show_true_values)


def _check_files(model: nn.Module, _prefix: str, _keep_vars: bool) -> None:
    check_files(model.parameters())


def _show_true_values(model: nn.Module, state: dict[str, Any], _prefix: str, _metadata: object) -> None:
    component = Component.of(model)
    if component.kind is DIT or (component.kind is TEXT_ENCODER and compat.saves_lazily()):
        return
    for name, parameter in model.named_parameters():
        if is_adopted(parameter):  # of a loaded model: a reader's own, which becomes what it is on the device
            continue
        part = slice_of(parameter) if name in state else None
        if part is not None and dtype_of(parameter) != part.dtype:
            state[name] = part.in_memory(dtype_of(parameter))


def fill_in_patched(patcher: Any, state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A state dict with the patched value of each patched weight for which the app does not ask by itself.

    Who saves asks for the patched values of the app's own casting layers, one by one. Anything else it takes for
    patched already, which under layerwise offload it is not.
    """
    for name in state:
        key = prefix + name
        if key not in patcher.patches or not app_patches(patcher.model, key):
            continue
        if _is_cast_by_the_app(patcher.model, key):
            continue
        weight = patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
        state[name] = weight.to("cpu")
    return state


def _is_cast_by_the_app(model: nn.Module, key: str) -> bool:
    owner, _, name = key.rpartition(".")
    return name in ("weight", "bias") and hasattr(model.get_submodule(owner), "comfy_cast_weights")
