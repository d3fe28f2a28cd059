"""Weight hooks (a scheduled LoRA), which change weights between passes, as changes that the engine applies on arrival.

In the app's fully loaded model a hook's patches are applied in float32 to the module's weight, LoRAs included, in
place; a backup restores it. Here the masters keep the unpatched values and each layer is patched when it arrives, so
that nothing is overwritten or restored. The app decides which hooks are active at which step.
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
    """The patcher's changes by key, with the active patches of `hooks` on top. Raises OffloadError."""
    changes = weights.changes_of(patcher, device)
    hooked = patcher.get_combined_hook_patches(hooks)
    if hooked and patcher.foreign is not None:
        raise OffloadError(
            f"asked to schedule a LoRA on {len(hooked)} weights of a model whose loader has a patcher of its own "
            f"({patcher.foreign.kind.__name__}); found no way to change its weights between steps; use the LoRA "
            "unscheduled, or a loader that is not of a GGUF pack"
        )
    for key, patches in hooked.items():
        base = changes.get(key)
        own = list(patcher.patches.get(key, ()))
        changes[key] = Change(
            key=("hooked", base and base.key, weights.identity(patches)),
            compute=functools.partial(_hooked, patcher.model, key, own, patches, device),
            shape=None if base is None else base.shape,
        )
    return changes


def _hooked(model: torch.nn.Module, key: str, own: list[Any], patches: list[Any], device: torch.device) -> torch.Tensor:
    """The module's current weight under its `own` patches and the hooks' `patches`, on `device`."""
    weight, set_weight, convert = comfy.model_patcher.get_key_weight(model, key)
    own, patches = weights.untouched(own), weights.untouched(patches)
    original = [(weight, convert or _unchanged), *own]
    base = weights.patched(model, key, own, device) if own else mm.cast_to_device(weight, device, weight.dtype)
    value = mm.cast_to_device(base, device, torch.float32, copy=True)
    if convert is not None:
        value = convert(value, inplace=True)
    value = comfy.lora.calculate_weight(patches, value, key, original_weights={key: original})
    seed = comfy.utils.string_to_seed(key)
    if set_weight is None:
        rounded: torch.Tensor = comfy.float.stochastic_rounding(value, weight.dtype, seed=seed)
        return rounded
    written: torch.Tensor = set_weight(value, inplace_update=True, seed=seed, return_weight=True)
    return written


def _unchanged(weight: torch.Tensor, **options: Any) -> torch.Tensor:
    return weight
