"""Patchers of other packs that we can take over: those that only change how a weight is patched, not how it moves.

The GGUF packs' is of that kind: its quantised weights are tensors that carry their patches as an attribute, and the
pack's own operations apply them whenever they make a weight out of the stored bytes. We move the bytes, and leave to
the pack's own method what becomes of patches: it is called on a stand-in, and we look at what it has done. Known by the
methods a class replaces and by the attributes of the tensors, so that no such pack is needed, nor known by name.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import torch

from ..offload_core.errors import OffloadError
from ..offload_core.runtime import blank_like

_PLAIN = comfy.model_patcher.ModelPatcher
_PATCHES = "patch_weight_to_device"
_UNDERSTOOD = frozenset({_PATCHES, "unpatch_model", "pin_weight_to_device", "load", "clone"})
"""What such a class may replace. Its `load` and `unpatch_model` serve the moving of weights, which is then ours."""

Homes = tuple[torch.device, torch.device]

CARRIER = "patches"
"""The attribute in which a quantised tensor carries its patches."""


@dataclass(frozen=True)
class Foreign:
    """How a patcher that we have taken over patches weights. Carried by our patcher and its clones."""

    kind: type
    own: Mapping[str, Any] = field(default_factory=dict)
    """Its attributes that the app's patchers do not have (whether patches lie on the device, say)."""
    quantised: bool = True
    """Whether there are weights of the pack's own type. Its loaders give ordinary files the same patcher."""

    def patched(
        self, weight: torch.Tensor, key: str, patches: list[Any], device: torch.device, homes: Homes
    ) -> torch.Tensor:
        """What its class makes of a weight under `patches`. `homes`: the patcher's load and offload device."""
        owner = holder = types.SimpleNamespace()
        *path, name = key.split(".")
        for part in path:
            setattr(holder, part, types.SimpleNamespace())
            holder = getattr(holder, part)
        setattr(holder, name, weight)
        self.kind.patch_weight_to_device(_StandIn(self, owner, {key: patches}, homes), key, device)  # type: ignore[attr-defined]
        made: torch.Tensor = getattr(holder, name)
        return made

    def carried(self, weight: torch.Tensor, key: str, patches: list[Any], homes: Homes) -> dict[str, Any]:
        """The attributes by which a quantised weight carries `patches`. Moves no byte of the weight."""
        found = self.patched(blank_like(weight), key, patches, torch.device("cpu"), homes)
        return {CARRIER: list(getattr(found, CARRIER))}

    def undo(self, model: torch.nn.Module) -> None:
        """Take off the patches that quantised weights carry, while the module is an ordinary one on the host."""
        for parameter in model.parameters():
            if is_quantised(parameter) and getattr(parameter, CARRIER):
                setattr(parameter, CARRIER, [])


class _StandIn:
    """As much of a patcher as its `patch_weight_to_device` reads. A backup of the weight is there already."""

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
    """Whether a weight carries its patches beside its bytes."""
    return getattr(weight, "tensor_type", None) is not None and hasattr(weight, CARRIER) and _is_packed(weight)


def _is_packed(weight: torch.Tensor) -> bool:
    """Whether the stored tensor is another one than the weight that it stands for."""
    return tuple(weight.size()) != tuple(weight.tensor_shape) or not weight.is_floating_point()  # type: ignore[attr-defined]


def foreign_of(patcher: comfy.model_patcher.ModelPatcher) -> Foreign | None:
    """How to patch the weights of a patcher that is to become ours; None: as the app does.

    Raises OffloadError for one that moves weights its own way.
    """
    kind = type(patcher)
    if kind is _PLAIN:
        return None
    ours = {name for base in kind.__mro__ if base is not _PLAIN and issubclass(base, _PLAIN) for name in vars(base)}
    replaced = {name for name in ours if callable(getattr(_PLAIN, name, None)) and not name.startswith("__")}
    quantised = _has_quantised(patcher.model)
    only_patches = "__init__" not in ours and replaced <= _UNDERSTOOD
    if not only_patches or not (quantised or _PATCHES in replaced):
        raise OffloadError(
            f"asked to apply layerwise offload to a {kind.__name__}; found that this patcher moves weights "
            "its own way; use it without layerwise offload, or load the model by another loader"
        )
    own = {
        name: getattr(patcher, name) for name in ours if not (name.startswith("__") or callable(getattr(kind, name)))
    }
    return Foreign(kind, own, quantised)


def _has_quantised(model: torch.nn.Module) -> bool:
    return any(getattr(parameter, "tensor_type", None) is not None for parameter in model.parameters())
