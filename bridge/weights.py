"""Patch sets (LoRA and the like) written into the host masters, by the app's own arithmetic.

The app's fully loaded model is the reference: each weight is patched once, on the device, with the app's
`patch_weight_to_device`, its intermediate type and its stochastic rounding, and the result becomes the master. So the
streamed picture equals the loaded one to the bit, and a step costs the same with a LoRA as without.
The untouched values are kept in the patcher's `backup`, where the app and other packs look for them.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import torch

if TYPE_CHECKING:
    from ..offload_core.runtime import OffloadController

_Backup = collections.namedtuple("_Backup", ["weight", "inplace_update"])
"""The app's own shape of a backup entry. `inplace_update`: put back by copying, not by replacing the Parameter."""

Applied = dict[str, list[Any]]
"""The patches that the masters hold, by key, as the app lists them. Holding on to them keeps identities meaningful."""


def _alike(one: list[Any], other: list[Any]) -> bool:
    """Whether two patch lists are the same patches at the same strengths. Clones share the patch values."""
    return len(one) == len(other) and all(
        a[0] == b[0] and a[1] is b[1] and a[2] == b[2] and a[3] == b[3] and a[4] is b[4] for a, b in zip(one, other)
    )


def apply_patches(
    patcher: comfy.model_patcher.ModelPatcher, controller: OffloadController, applied: Applied, device: torch.device
) -> Applied:
    """Bring the masters from the patch set `applied` to the patcher's own. Returns what they hold then.

    Only weights that the two sets treat differently are touched. The component must not be loaded on the device.
    """
    held = {key: patches for key, patches in applied.items() if key in patcher.backup}
    for key in list(held):
        if key not in patcher.patches or not _alike(held[key], patcher.patches[key]):
            restore_weight(patcher, controller, key)
            del held[key]
    for key, patches in patcher.patches.items():
        if key not in held:
            parameter = _own_parameter(patcher.model, key)
            patcher.backup[key] = _Backup(parameter.detach().clone(), True)
            patched = patcher.patch_weight_to_device(key, device_to=device, return_weight=True)
            controller.write_master(parameter, patched)
            held[key] = list(patches)
    return held


def restore_all(patcher: comfy.model_patcher.ModelPatcher, controller: OffloadController) -> None:
    """Put every untouched value back into its master."""
    for key in list(patcher.backup):
        restore_weight(patcher, controller, key)


def restore_weight(patcher: comfy.model_patcher.ModelPatcher, controller: OffloadController, key: str) -> None:
    backup = patcher.backup.pop(key)
    controller.write_master(_own_parameter(patcher.model, key), backup.weight)


def _own_parameter(model: torch.nn.Module, key: str) -> torch.nn.Parameter:
    """The Parameter object behind a key; `get_key_weight` may answer with a converted value instead."""
    owner, _, name = key.rpartition(".")
    return model.get_submodule(owner)._parameters[name]
