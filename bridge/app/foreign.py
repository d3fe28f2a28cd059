"""Takes over patchers of other packs that override how a weight is patched, but not how it is moved.

GGUF packs have such patchers: their quantised weights are tensors that carry their patches in an attribute, and the
pack's operations apply them when they dequantise. We move the bytes; the pack's `patch_weight_to_device` is called on a
stand-in, and its result is used. Such patchers are recognised by the methods that the class overrides and by the
attributes of the tensors, not by the pack's name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import torch

from ...offload_core.errors import OffloadError
from ...offload_core.runtime import blank_like

_PLAIN = comfy.model_patcher.ModelPatcher
_PATCHES = "patch_weight_to_device"
_UNDERSTOOD = frozenset({_PATCHES, "unpatch_model", "pin_weight_to_device", "load", "clone"})
"""Methods that such a class may override. Its `load` and `unpatch_model`, which move weights, are not called."""

Homes = tuple[torch.device, torch.device]

CARRIER = "patches"
"""The attribute in which a quantised tensor carries its patches."""


@dataclass(frozen=True)
class Foreign:
    """The patching of another pack's patcher that was taken over. Carried by our patcher and its clones."""

    kind: type
    own: Mapping[str, Any] = field(default_factory=dict)
    """Class attributes that the app's patcher does not have, and their values (`patch_on_device`, say)."""
    quantised: bool = True
    """Whether the model has weights of the pack's tensor type. The pack's loaders use the patcher for any file."""

    def patched(
        self, weight: torch.Tensor, key: str, patches: list[Any], device: torch.device, homes: Homes
    ) -> torch.Tensor:
        """A weight as the class patches it, on `device`. `homes`: the patcher's load and offload device."""
        owner = holder = types.SimpleNamespace()
        *path, name = key.split(".")
        for part in path:
            setattr(holder, part, types.SimpleNamespace())
            holder = getattr(holder, part)
        setattr(holder, name, weight)
        self.kind.patch_weight_to_device(_StandIn(self, owner, {key: patches}, homes), key, device)  # type: ignore[attr-defined]
        patched_weight: torch.Tensor = getattr(holder, name)
        return patched_weight

    def carried(self, weight: torch.Tensor, key: str, patches: list[Any], homes: Homes) -> dict[str, Any]:
        """The attributes by which a quantised weight carries `patches`; the weight's bytes are not moved."""
        carrier = self.patched(blank_like(weight), key, patches, torch.device("cpu"), homes)
        return {CARRIER: list(getattr(carrier, CARRIER))}

    def undo(self, model: torch.nn.Module) -> None:
        """Remove the patches that quantised weights carry. The module must be unloaded."""
        for parameter in model.parameters():
            if is_quantised(parameter) and getattr(parameter, CARRIER):
                setattr(parameter, CARRIER, [])


class _StandIn:
    """The attributes of a patcher that `patch_weight_to_device` reads; `backup` already has an entry for each key."""

    def __init__(self, foreign: Foreign, model: Any, patches: dict[str, Any], homes: Homes) -> None:
        self.__dict__.update(foreign.own)
        self._kind = foreign.kind
        self.model, self.patches = model, patches
        self.load_device, self.offload_device = homes
        self.weight_inplace_update = False
        self.backup = dict.fromkeys(patches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_kind"], name)


def is_quantised(weight: Any) -> bool:
    """Whether a weight carries its patches in an attribute and is packed: stored in another shape than that of the
    weight that it encodes, or not of floating point."""
    if getattr(weight, "tensor_type", None) is None or not hasattr(weight, CARRIER):
        return False
    return tuple(weight.size()) != tuple(weight.tensor_shape) or not weight.is_floating_point()


def foreign_of(patcher: comfy.model_patcher.ModelPatcher) -> Foreign | None:
    """The patching of a patcher that is to become ours; None if it is the app's own.

    Raises OffloadError for a patcher that moves weights itself.
    """
    kind = type(patcher)
    if kind is _PLAIN:
        return None
    names = {name for base in kind.__mro__ if base is not _PLAIN and issubclass(base, _PLAIN) for name in vars(base)}
    replaced = {name for name in names if callable(getattr(_PLAIN, name, None)) and not name.startswith("__")}
    quantised = any(getattr(weight, "tensor_type", None) is not None for weight in patcher.model.parameters())
    only_patches = "__init__" not in names and replaced <= _UNDERSTOOD
    if not only_patches or not (quantised or _PATCHES in replaced):
        raise OffloadError(
            f"asked to apply layerwise offload to a {kind.__name__}; found that this patcher moves weights "
            "its own way; use it without layerwise offload, or load the model by another loader"
        )
    own = {
        name: getattr(patcher, name) for name in names if not (name.startswith("__") or callable(getattr(kind, name)))
    }
    return Foreign(kind, own, quantised)
