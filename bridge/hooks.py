"""Weight hooks (a scheduled LoRA): weights that change between passes, as changes that the engine applies on arrival.

In the app's fully loaded model a hook's patches are computed from the weight that hangs in the module, LoRAs included,
in float32, and written over it; a copy of the weight puts it back. Here the masters keep the untouched values, and a
layer is in one state or another when it arrives: nothing is written over and nothing has to be put back. Which hooks
are in effect when is the app's business.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch

from ..offload_core.errors import OffloadError
from ..offload_core.runtime import Change
from . import weights


def changes_with(patcher: Any, hooks: Any, device: torch.device) -> dict[str, Change]:
    """The patcher's changes, and on top of them those of the hooks that are in effect in `hooks`."""
    changes = weights.changes_of(patcher, device)
    hooked = patcher.get_combined_hook_patches(hooks)
    if hooked and patcher.foreign is not None:
        raise OffloadError(
            f"asked to schedule a LoRA on {len(hooked)} weights of a model whose loader has a patcher of its own "
            f"({patcher.foreign.kind.__name__}); found no way to change its weights between steps; use the LoRA "
            "unscheduled, or a loader that is not of a GGUF pack"
        )
    for key, patches in hooked.items():
        under = changes.get(key)
        own = list(patcher.patches.get(key, ()))
        changes[key] = Change(
            key=("hooked", under and under.key, weights.identity(patches)),
            compute=functools.partial(_hooked, patcher.model, key, own, patches, device),
            shape=None if under is None else under.shape,
        )
    return changes


def _hooked(model: torch.nn.Module, key: str, own: list[Any], patches: list[Any], device: torch.device) -> torch.Tensor:
    """The value of a weight under `own` patches and the hooks' `patches`, from what hangs in the module now."""
    weight, set_weight, convert = comfy.model_patcher.get_key_weight(model, key)
    own, patches = weights.untouched(own), weights.untouched(patches)
    original = [(weight, convert or _as_it_is), *own]
    under = weights.patched(model, key, own, device) if own else mm.cast_to_device(weight, device, weight.dtype)
    value = mm.cast_to_device(under, device, torch.float32, copy=True)
    if convert is not None:
        value = convert(value, inplace=True)
    value = comfy.lora.calculate_weight(patches, value, key, original_weights={key: original})
    seed = comfy.utils.string_to_seed(key)
    if set_weight is None:
        rounded: torch.Tensor = comfy.float.stochastic_rounding(value, weight.dtype, seed=seed)
        return rounded
    written: torch.Tensor = set_weight(value, inplace_update=True, seed=seed, return_weight=True)
    return written


def _as_it_is(weight: torch.Tensor, **options: Any) -> torch.Tensor:
    return weight
