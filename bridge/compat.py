"""What the running app has and what it lacks: the one place that asks ComfyUI for features instead of relying on them.

Two kinds. `NEEDED` are names without which nothing of ours can work: they are looked for once, when the app loads the
pack, and if one is missing the log says so, and so does every node that would load or take over a model. The functions
below the table are features that some tested version lacks, or that a later one may drop; each says what it answers
then. Shapes of single objects (has this ControlNet weights of its own?) are no features of the app and stay where they
are asked.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ..offload_core.errors import OffloadError

log = logging.getLogger(__name__)

TESTED = ("0.16.3", "0.18.2", "0.24.1", "0.27.0", "0.30.0")
"""The ComfyUI versions that `python3 dev.py versions` runs the pack in; the first is pyproject's `requires-comfyui`."""

NODE_API = "comfy_api.v0_0_2"
"""The version of the app's node interface that our nodes are written for."""

NEEDED = (
    "comfy.clip_vision.load",
    "comfy.controlnet.load_controlnet",
    "comfy.model_base.BaseModel",
    "comfy.model_management.get_free_memory",
    "comfy.model_management.throw_exception_if_processing_interrupted",
    "comfy.model_management.get_total_memory",
    "comfy.model_management.is_device_cpu",
    "comfy.model_patcher.CallbacksMP.ON_LOAD",
    "comfy.model_patcher.CoreModelPatcher",
    "comfy.model_patcher.ModelPatcher.apply_hooks",
    "comfy.model_patcher.ModelPatcher.clone(disable_dynamic)",
    "comfy.model_patcher.ModelPatcher.detach",
    "comfy.model_patcher.ModelPatcher.eject_model",
    "comfy.model_patcher.ModelPatcher.get_all_callbacks",
    "comfy.model_patcher.ModelPatcher.get_combined_hook_patches",
    "comfy.model_patcher.ModelPatcher.is_dynamic",
    "comfy.model_patcher.ModelPatcher.load(full_load)",
    "comfy.model_patcher.ModelPatcher.partially_load(extra_memory)",
    "comfy.model_patcher.ModelPatcher.partially_unload(memory_to_free)",
    "comfy.model_patcher.ModelPatcher.patch_hooks",
    "comfy.model_patcher.ModelPatcher.patch_weight_to_device(return_weight)",
    "comfy.model_patcher.ModelPatcher.unpatch_hooks",
    "comfy.model_patcher.ModelPatcher.unpatch_model(unpatch_weights)",
    "comfy.model_patcher.ModelPatcher.use_ejected(skip_and_inject_on_exit_only)",
    "comfy.model_patcher.move_weight_functions",
    "comfy.model_patcher.wipe_lowvram_weight",
    "comfy.sd.CLIPType",
    "comfy.sd.VAE",
    "comfy.sd.load_checkpoint_guess_config(te_model_options)",
    "comfy.sd.load_clip(disable_dynamic)",
    "comfy.sd.load_diffusion_model(disable_dynamic)",
    "comfy.utils.load_torch_file(return_metadata)",
)
"""Dotted names, with a parameter in parentheses where a function needs one. All are in every tested version."""

_missing: tuple[str, ...] = ()


def app_version() -> str:
    """The app's version, or `unknown`."""
    try:
        return str(importlib.import_module("comfyui_version").__version__)
    except (ImportError, AttributeError):
        return "unknown"


def find(name: str) -> Any:
    """What a dotted name stands for in the app; None if it is not there, or its function lacks the parameter."""
    path, _, parameter = name.rstrip(")").partition("(")
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None and parameter and parameter not in inspect.signature(found).parameters:
            return None
        return found
    return None


def look() -> tuple[str, ...]:
    """The needed names that this app lacks. Called when the app loads the pack; says in the log what it finds."""
    global _missing
    _missing = tuple(name for name in (NODE_API, *NEEDED) if find(name) is None)
    if _missing:
        log.error("Layerwise Offload: %s", _refusal())
    elif _number(app_version()) > _number(TESTED[-1]):
        log.info("Layerwise Offload on ComfyUI %s: tested up to %s, has all it needs", app_version(), TESTED[-1])
    else:
        log.info("Layerwise Offload on ComfyUI %s", app_version())
    return _missing


def require() -> None:
    """Raise OffloadError if the app lacks something without which nothing of ours can work."""
    if _missing:
        raise OffloadError(_refusal())


def _refusal() -> str:
    shown = ", ".join(_missing[:3]) + (f" and {len(_missing) - 3} more" if len(_missing) > 3 else "")
    return (
        f"asked to work in ComfyUI {app_version()}; found that it lacks {shown}; the pack works from ComfyUI "
        f"{TESTED[0]} on and was tested up to {TESTED[-1]}: use one of these versions, or the app's own nodes"
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---------------------------------------------------------------------- features that a version may lack


def server() -> Any | None:
    """The running server; None in a process that has none."""
    return getattr(find("server.PromptServer"), "instance", None)


def fill_in_weight() -> Callable[[Any, str], None] | None:
    """The app's way to give a weight its value that no file brought; None where the app builds weights with values
    (before 0.24)."""
    return find("comfy.ops.disable_weight_init._zero_init_parameter")


def detect_text_encoder() -> Callable[[Any], Any] | None:
    """The app's detection of text encoders by names and shapes; None where it is not to be had: others judge then."""
    return find("comfy.sd.detect_te_model")


def patched_shape() -> Callable[[Any, Any, str], Any] | None:
    """The app's word on the shape that patches give a weight; None where it has none: the patching tells then."""
    return find("comfy.lora.calculate_shape")


def saves_lazily() -> bool:
    """Whether the app computes the patched values of text encoders weight by weight while it saves (from 0.24 on)."""
    return find("comfy.model_patcher.ModelPatcher.model_state_dict_for_saving") is not None


def running_prompts() -> frozenset[object]:
    """What the app is executing at this moment, as far as it can be told apart; empty between prompts."""
    queue = getattr(server(), "prompt_queue", None)
    return frozenset(getattr(queue, "currently_running", None) or ())


def app_ram_reserve_bytes() -> int:
    """The host memory that the app leaves free when it page-locks, by its own rule; 0 where it has none and
    between prompts."""
    return int(find("comfy.memory_management.RAM_CACHE_HEADROOM") or 0) // 2


def count_pins(nbytes: int) -> None:
    """Add to the app's account of page-locked memory what we have locked, or take off what we have let go."""
    if nbytes and app_pin_room_bytes() is not None:
        management = find("comfy.model_management")
        management.TOTAL_PINNED_MEMORY = max(0, management.TOTAL_PINNED_MEMORY + nbytes)


def app_pin_room_bytes() -> int | None:
    """How many more bytes may be page-locked by the app's own account; None where it keeps none.

    Looked up at each call: the app's total is rebound as it counts.
    """
    ceiling = find("comfy.model_management.MAX_PINNED_MEMORY")
    if ceiling is None or ceiling <= 0:
        return None
    return int(ceiling - (find("comfy.model_management.TOTAL_PINNED_MEMORY") or 0))
