"""Gives savers, merges and LoRA extraction the weights that the app's own loaded model would give, or an error.

A streamed layer's module holds unpatched masters, which may lie in a file, in the file's type; the file may have
changed. Masters of a loaded model lend their values on the device (`host_parameter.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...offload_core.runtime import twin_of
from ...offload_core.runtime.files.weight_file import dtype_of, lies_in_file, slice_of
from ...offload_core.runtime.host.host_parameter import check_files, is_adopted
from ..app import compat
from ..app.kinds import DIT, TEXT_ENCODER
from .component import Component
from .patches import app_patches

_TRUE_IN_STATE_DICTS = "layerwise_offload_true_in_state_dicts"


@contextlib.contextmanager
def in_their_types(model: nn.Module) -> Iterator[None]:
    """In the block, weights of another type than their file's are converted copies in memory, as the app's are.

    Tensors taken from the module in the block stay valid afterwards.
    """
    with contextlib.ExitStack() as restored:
        for parameter in model.parameters():
            part = slice_of(parameter)
            if part is not None and dtype_of(parameter) != part.dtype:
                value = part.in_memory(dtype_of(parameter))
                restored.callback(_set_data, parameter, part.mapped)
                _set_data(parameter, value)
        yield


def _set_data(parameter: nn.Parameter, value: torch.Tensor) -> None:
    # A parameter made in inference mode accepts only data made in it.
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.data = value


@contextlib.contextmanager
def read_from_file(model: nn.Module, key: str) -> Iterator[None]:
    """In the block, the weight `key` is a copy read from its file, in the model's type. Raises FileReadError."""
    owner, _, name = key.rpartition(".")
    parameters = model.get_submodule(owner)._parameters
    weight = parameters.get(name)
    with contextlib.ExitStack() as restored:
        if weight is not None and (part := slice_of(weight)) is not None:
            parameters[name] = nn.Parameter(part.in_memory(dtype_of(weight)), requires_grad=False)
            restored.callback(parameters.update, {name: weight})
        yield


def deferred_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight as an input of a merge: a tensor of its unpatched value, which never lends the value on the device.

    If it lies in a file it is marked as such, and read when it is used (`patches.untouched`); if its type cannot
    represent the file's values, it is read and converted now.
    """
    part = slice_of(weight)
    if part is None:
        return twin_of(weight)
    dtype = dtype_of(weight)
    if not _represents(dtype, part.dtype):
        return part.in_memory(dtype)
    twin = twin_of(weight)
    lies_in_file(twin, part, dtype)
    return twin


def _represents(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether `dtype` represents every value of `other` exactly."""
    if dtype == other or not (dtype.is_floating_point and other.is_floating_point):
        return dtype == other
    wide, narrow = torch.finfo(dtype), torch.finfo(other)
    return wide.eps <= narrow.eps and wide.max >= narrow.max and wide.smallest_normal <= narrow.smallest_normal


def show_true_state_dicts(model: nn.Module) -> None:
    """Install hooks on the module's state dict: it raises FileReadError if a file of its weights has changed.

    For models that the app saves by the state dict alone it also gives the values that the app's model would give; for
    the others the app uses mostly its names.
    """
    if not vars(model).get(_TRUE_IN_STATE_DICTS):
        vars(model)[_TRUE_IN_STATE_DICTS] = True
        model.register_state_dict_pre_hook(_check_files)
        model.register_state_dict_post_hook(_fill_in_true_values)


def _check_files(model: nn.Module, _prefix: str, _keep_vars: bool) -> None:
    check_files(model.parameters())


def _fill_in_true_values(model: nn.Module, state: dict[str, Any], _prefix: str, _metadata: object) -> None:
    component = Component.of(model)
    if component.kind is DIT or (component.kind is TEXT_ENCODER and compat.saves_lazily()):
        return
    for name, parameter in model.named_parameters():
        if is_adopted(parameter):  # of a loaded model: lends its value on the device to the reader
            continue
        part = slice_of(parameter) if name in state else None
        if part is not None and dtype_of(parameter) != part.dtype:
            state[name] = part.in_memory(dtype_of(parameter))


def fill_in_patched(patcher: Any, state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Replace in a state dict the patched weights that the app's saver takes for patched already. Returns it.

    The saver patches weights of the app's casting layers itself, one by one. It expects all others to be patched in
    place, which under layerwise offload they are not.
    """
    model = patcher.model
    for name in state:
        key = prefix + name
        if key not in patcher.patches or not app_patches(model, key):
            continue
        owner, _, kind = key.rpartition(".")
        if kind not in ("weight", "bias") or not hasattr(model.get_submodule(owner), "comfy_cast_weights"):
            weight = patcher.patch_weight_to_device(key, device_to=patcher.load_device, return_weight=True)
            state[name] = weight.to("cpu")
    return state
