"""Patches (LoRA and the like) and weight hooks as changes that the engine applies on arrival, by the app's arithmetic.

Each weight is patched once, on the device, by the app's `patch_weight_to_device`, as in the app's fully loaded model.
Patches are compared by content: the app makes new objects each time a LoRA is loaded or its strength changes.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch

from ...offload_core.errors import OffloadError, SettingsError
from ...offload_core.planning.host_budget import host_budget
from ...offload_core.runtime import Change, OffloadController, twin_of
from ...offload_core.runtime.files.weight_file import dtype_of, slice_of
from ...offload_core.runtime.patches.versions import Versions
from ...offload_core.sentences import Sentence, sentence
from ..app import compat
from ..app.device import takes_host_memory
from ..app.foreign import Foreign, is_quantised
from ..app.recording import count_progress
from ..memory.allowances import host_available_bytes
from .component import Component


def changes_of(patcher: Any, device: torch.device, shows_progress: bool = False) -> dict[str, Change]:
    """The patcher's patches as changes by key. Raises OffloadError if a weight cannot be patched.

    shows_progress: on the running node, while layers are patched as they arrive for the first time.
    """
    changes: dict[str, Change] = {}
    keys = [key for key in patcher.patches if app_patches(patcher.model, key)]
    count = count_progress(len(keys)) if shows_progress and patcher.foreign is None else None
    for key in keys:
        own = list(patcher.patches[key])  # the app adds to its list in place
        if patcher.foreign is not None:
            changes[key] = _by_its_pack(patcher, patcher.foreign, key, own, device)
            continue
        changes[key] = Change(
            key=identity(own),
            compute=functools.partial(patched, patcher.model, key, own, device, count),
            shape=_other_shape(patcher.model, key, own),
        )
    return changes


def _by_its_pack(patcher: Any, foreign: Foreign, key: str, own: list[Any], device: torch.device) -> Change:
    """A change by another pack's class: attributes of a quantised weight (`marks`), or a patched value."""
    model, homes = patcher.model, (patcher.load_device, patcher.offload_device)
    current = functools.partial(comfy.utils.get_attr, model, key)
    if is_quantised(current()):
        return Change(key=identity(own), compute=current, marks=foreign.carried(current(), key, own, homes))

    def compute() -> torch.Tensor:
        value = foreign.patched(current(), key, own, device, homes)
        return torch.Tensor.as_subclass(value, torch.Tensor)  # a result of the pack's type lacks its attributes

    return Change(key=identity(own), compute=compute, shape=_other_shape(model, key, own))


def patched(
    model: torch.nn.Module,
    key: str,
    patches: list[Any],
    device: torch.device,
    count: Callable[[], None] | None = None,
) -> torch.Tensor:
    """The current weight `key` of `model` under `patches`, on `device`. `count` is called when it has been computed.

    The app's method reads only the attributes of this stand-in, so that no patcher has to be kept alive.
    """
    own = untouched(patches)
    stand_in = types.SimpleNamespace(model=model, patches={key: own}, weight_inplace_update=False, backup={})
    value: torch.Tensor = comfy.model_patcher.ModelPatcher.patch_weight_to_device(
        stand_in, key, device_to=device, return_weight=True
    )
    if count is not None:
        count()
    return value


def untouched(patches: Any) -> Any:
    """The same patches with each tensor replaced by an ordinary one of its unpatched value. Raises FileReadError.

    Patches of a merge may contain masters, which lend their value on the device, patched. Tensors that lie in a file
    are read: access to a mapped page that no longer exists would end the process.
    """
    if isinstance(patches, torch.Tensor):
        part = slice_of(patches)
        return twin_of(patches) if part is None else part.in_memory(dtype_of(patches))
    if type(patches) in (list, tuple):
        return type(patches)(map(untouched, patches))
    return patches


def keep_patched(component: Component, lora_mode: object) -> None:
    """Set by `lora_mode` whether patched layers are kept on the host; `on_arrival` frees those that are kept."""
    versions = component.controller.versions
    if lora_mode == "host":
        versions.hold_if(lambda nbytes: nbytes <= host_available_bytes())
    elif lora_mode != "on_arrival":
        versions.hold_if(_keep_within_budgets(component))
    else:
        versions.hold_if(None)
        if versions.held_bytes:
            component.controller.unload()  # ends all copies in flight
            versions.forget()


def _keep_within_budgets(component: Component) -> Callable[[int], bool]:
    """A predicate: whether a patched layer of so many bytes fits the host budget now.

    On a device that uses host memory it must also fit the component's budget, beside ring and residents.
    """
    reference = weakref.ref(component)

    def may_keep(nbytes: int) -> bool:
        if nbytes > host_budget(host_available_bytes()).copies_bytes:
            return False
        owner = reference()
        if owner is None or not owner.attached or not takes_host_memory(owner.device) or owner.request is None:
            return True
        plan, budget = owner.controller.plan, owner.request.budget_bytes
        if plan is None or budget is None:
            return True
        return plan.device_bytes + owner.controller.versions.held_bytes + nbytes <= budget

    return may_keep


def check_room(controller: OffloadController, component: str, lora_mode: object) -> None:
    """Raise SettingsError if `lora_mode` is host and available host memory is too small for the patched layers."""
    if lora_mode != "host":
        return
    needed = sum(
        layer.nbytes
        for layer in controller.layers
        if layer.patch is not None and layer.patch.version is None and not layer.keep_resident
    )
    if needed > (available := host_available_bytes()):
        raise SettingsError(
            f"asked {component}.lora_mode = host; found that the patched layers need {needed / 1e9:.2f} GB of system "
            f"memory more, of which {available / 1e9:.2f} GB are available; choose on_arrival or auto"
        )


def not_kept(versions: Versions) -> list[Sentence]:
    """For the report: at most one line with the reason why patched layers are not kept on the host."""
    on_request, layers = versions.may_hold is None, len(versions.refused)
    what = sentence("patched_on_arrival_asked" if on_request else "patched_on_arrival_short", layers=layers)
    return [what] if layers else []


def app_patches(model: torch.nn.Module, key: str) -> bool:
    """Whether the app patches this weight when it loads the model.

    It skips weights of a module whose submodules have weights of their own (Wan's `modulation`): a merge may have
    patches for them, but the app's picture is made without these.
    """
    module = model.get_submodule(key.rpartition(".")[0])
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return all(name in own for name, _ in module.named_parameters())


def _other_shape(model: torch.nn.Module, key: str, patches: list[Any]) -> tuple[int, ...] | None:
    """The shape of a weight under patches (some control LoRAs widen an input); None if unchanged. OffloadError."""
    weight, _, _ = comfy.model_patcher.get_key_weight(model, key)
    if not isinstance(weight, torch.Tensor):
        raise OffloadError(
            f"asked to patch {key}; found no weight of that name in the {type(model).__name__}; use the patch with the "
            "model it was made for"
        )
    shape_of = compat.find(compat.PATCHED_SHAPE)
    shape = tuple(weight.shape) if shape_of is None else tuple(shape_of(patches, weight, key))
    return None if shape == tuple(weight.shape) else shape


def identity(value: Any) -> Hashable:
    """A key that is equal for patches of the same tensors and numbers. Valid while these are alive."""
    if value is None or isinstance(value, (str, bytes, bool, int, float, torch.dtype)):
        return (type(value).__name__, value)
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(identity, value))
    if isinstance(value, dict):
        return ("dict", *((identity(name), identity(item)) for name, item in value.items()))
    if hasattr(value, "weights") and hasattr(value, "calculate_weight"):  # a weight adapter: LoRA, LoHa, LoKr ...
        return (type(value), identity(value.weights))
    if isinstance(value, types.MethodType):
        return ("method", id(value.__self__), value.__func__)
    return (type(value).__name__, id(value))


# ---------------------------------------------------------------------- hooks

# In the app's fully loaded model the patches of a weight hook (a scheduled LoRA) are applied in float32 to the module's
# weight, LoRAs included, in place; a backup restores it. Here the masters keep the unpatched values and each layer is
# patched when it arrives, so that nothing is overwritten or restored. The app decides which hooks are active when.


def changes_with(patcher: Any, hooks: Any, device: torch.device) -> dict[str, Change]:
    """The patcher's changes by key, with the active patches of `hooks` on top. Raises OffloadError."""
    changes = changes_of(patcher, device)
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
            key=("hooked", base and base.key, identity(patches)),
            compute=functools.partial(_hooked, patcher.model, key, own, patches, device),
            shape=None if base is None else base.shape,
        )
    return changes


def _hooked(model: torch.nn.Module, key: str, own: list[Any], patches: list[Any], device: torch.device) -> torch.Tensor:
    """The module's current weight under its `own` patches and the hooks' `patches`, on `device`."""
    weight, set_weight, convert = comfy.model_patcher.get_key_weight(model, key)
    own, patches = untouched(own), untouched(patches)
    original = [(weight, convert or (lambda unchanged, **_: unchanged)), *own]
    base = patched(model, key, own, device) if own else mm.cast_to_device(weight, device, weight.dtype)
    value = mm.cast_to_device(base, device, torch.float32, copy=True)
    if convert is not None:
        value = convert(value, inplace=True)
    value = comfy.lora.calculate_weight(patches, value, key, original_weights={key: original})
    seed = comfy.utils.string_to_seed(key)
    if set_weight is None:
        rounded: torch.Tensor = comfy.float.stochastic_rounding(value, weight.dtype, seed=seed)
    else:
        rounded = set_weight(value, inplace_update=True, seed=seed, return_weight=True)
    return rounded
