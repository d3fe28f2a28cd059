"""Feature detection of the running ComfyUI. No other module tests for features of the app.

Three kinds. `NEEDED` and `NEEDED_OF_A_PATCHER` are required names: they are looked up once, when the app loads the
pack; if one is missing, the log and every node that would load or take over a model say so. Parameters that a newer
app has added to methods that ours override are looked up then as well (`compare`): the pack works without them, and
the log and our nodes list them. The functions at the end are optional features, which some tested version lacks or a
later one may drop; each docstring says what is returned then. Properties of single objects (whether a ControlNet has
weights) are not features of the app and are tested where they are needed.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...offload_core.errors import OffloadError
from ...offload_core.sentences import Sentence, sentence

log = logging.getLogger(__name__)

TESTED = ("0.16.3", "0.18.2", "0.24.1", "0.27.0", "0.30.0")
"""The ComfyUI versions of `python3 dev.py versions`; the first is pyproject's `requires-comfyui`."""

NEWEST_RUN = "0.33.0"
"""The newest version that the pack was run in, by `--comfyui PATH`; the README's table lists the tests run."""

NODE_API = "comfy_api.v0_0_2"
"""The version of the app's node interface that our nodes are written for."""

NEEDED = (
    "comfy.cli_args.args.disable_pinned_memory",
    "comfy.clip_vision.ClipVisionModel",
    "comfy.clip_vision.load",
    "comfy.controlnet.ControlNet.copy",
    "comfy.controlnet.load_controlnet",
    "comfy.float.stochastic_rounding(seed)",
    "comfy.lora.calculate_weight(original_weights)",
    "comfy.model_base.BaseModel",
    "comfy.model_management.cast_to_device(copy)",
    "comfy.model_management.get_free_memory",
    "comfy.model_management.get_torch_device",
    "comfy.model_management.minimum_inference_memory",
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
    "comfy.model_patcher.ModelPatcher.get_key_patches(filter_prefix)",
    "comfy.model_patcher.ModelPatcher.is_dynamic",
    "comfy.model_patcher.ModelPatcher.load(full_load)",
    "comfy.model_patcher.ModelPatcher.loaded_size",
    "comfy.model_patcher.ModelPatcher.model_size",
    "comfy.model_patcher.ModelPatcher.model_state_dict(filter_prefix)",
    "comfy.model_patcher.ModelPatcher.partially_load(extra_memory)",
    "comfy.model_patcher.ModelPatcher.partially_unload(memory_to_free)",
    "comfy.model_patcher.ModelPatcher.patch_hooks",
    "comfy.model_patcher.ModelPatcher.patch_weight_to_device(return_weight)",
    "comfy.model_patcher.ModelPatcher.unpatch_hooks",
    "comfy.model_patcher.ModelPatcher.unpatch_model(unpatch_weights)",
    "comfy.model_patcher.ModelPatcher.use_ejected(skip_and_inject_on_exit_only)",
    "comfy.model_patcher.get_key_weight",
    "comfy.model_patcher.move_weight_functions",
    "comfy.model_patcher.wipe_lowvram_weight",
    "comfy.ops.CastWeightBiasOp.bias_function",
    "comfy.ops.CastWeightBiasOp.comfy_cast_weights",
    "comfy.ops.CastWeightBiasOp.weight_function",
    "comfy.sd.CLIP.clone",
    "comfy.sd.CLIPType",
    "comfy.sd.VAE(device)",
    "comfy.sd.VAE(dtype)",
    "comfy.sd.VAE(metadata)",
    "comfy.sd.VAE.throw_exception_if_invalid",
    "comfy.sd.load_checkpoint_guess_config(te_model_options)",
    "comfy.sd.load_clip(disable_dynamic)",
    "comfy.sd.load_diffusion_model(disable_dynamic)",
    "comfy.utils.ProgressBar.update_absolute",
    "comfy.utils.get_attr",
    "comfy.utils.load_torch_file(return_metadata)",
    "comfy.utils.string_to_seed",
    "folder_paths.get_filename_list",
    "folder_paths.get_full_path_or_raise",
)
"""Dotted names, with the required parameter of a function in parentheses. Every tested version has all of them."""

NEEDED_OF_A_PATCHER = (
    *("backup", "current_hooks", "force_cast_weights", "forced_hooks", "load_device", "model", "model.device"),
    *("model.current_weight_patches_uuid", "model.lowvram_patch_counter", "model.model_loaded_weight_memory"),
    *("model.model_lowvram", "object_patches_backup", "offload_device", "patches", "patches_uuid", "size"),
    *("weight_inplace_update", "weight_wrapper_patches"),
)
"""Attributes that the app's ModelPatcher constructor sets on patcher and model, and that ours reads or sets."""

_missing: tuple[str, ...] = ()
_unknown: tuple[str, ...] = ()


def app_version() -> str:
    """The app's version, or `unknown`."""
    try:
        return str(importlib.import_module("comfyui_version").__version__)
    except (ImportError, AttributeError):
        return "unknown"


_ABSENT = object()


def find(name: str) -> Any:
    """The object of a dotted name in the app; None if it is absent, or its function lacks the parameter."""
    value = _look_up(name)
    return None if value is _ABSENT else value


def has(name: str) -> bool:
    """Whether the app has the name, be its value None, and its function the parameter."""
    return _look_up(name) is not _ABSENT


def _look_up(name: str) -> Any:
    path, _, parameter = name.rstrip(")").partition("(")
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            value = getattr(value, part, _ABSENT)
        if value is not _ABSENT and parameter and parameter not in inspect.signature(value).parameters:
            return _ABSENT
        return value
    return _ABSENT


def look() -> tuple[str, ...]:
    """The required names that this app lacks, which are also logged. Called when the app loads the pack."""
    global _missing
    missing = [name for name in (NODE_API, *NEEDED) if not has(name)]
    _missing = tuple(missing or _missing_of_a_patcher())
    if _missing:
        log.error("Layerwise Offload: %s", _refusal())
    elif _number(app_version()) > _number(NEWEST_RUN):
        log.info("Layerwise Offload on ComfyUI %s: run up to %s, has all it needs", app_version(), NEWEST_RUN)
    else:
        log.info("Layerwise Offload on ComfyUI %s", app_version())
    return _missing


def _missing_of_a_patcher() -> list[str]:
    """The required attributes that a ModelPatcher over an empty module lacks."""
    kind = find("comfy.model_patcher.ModelPatcher")
    cpu = torch.device("cpu")
    try:
        patcher = kind(torch.nn.Module(), load_device=cpu, offload_device=cpu)
    except Exception as error:  # reported as missing: the app must start in any case
        return [f"comfy.model_patcher.ModelPatcher(model, load_device, offload_device): {error}"]
    return [f"ModelPatcher(...).{name}" for name in NEEDED_OF_A_PATCHER if not _has_attribute(patcher, name)]


def _has_attribute(value: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def compare(ours: type, replaced: Sequence[str]) -> tuple[str, ...]:
    """The parameters of the app's methods, as `load(name)`, that the overriding methods of `ours` ignore.

    `ours`: our subclass of the app's ModelPatcher. `replaced`: names of the overriding methods. Called once, after
    `look`. The result is logged; `unheeded` returns it as a sentence for reports and nodes.
    """
    global _unknown
    app = find("comfy.model_patcher.ModelPatcher")
    _unknown = tuple(
        f"{name}({parameter})"
        for name in replaced
        if hasattr(app, name)
        for parameter in _names(getattr(app, name))
        if parameter not in _names(getattr(ours, name))
    )
    for what in unheeded():
        log.warning("Layerwise Offload: %s", what.text)
    return _unknown


def _names(function: Any) -> tuple[str, ...]:
    """The names of a function's parameters, without `*args` and `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return tuple(name for name, parameter in parameters.items() if parameter.kind not in variadic)


def unheeded() -> list[Sentence]:
    """At most one sentence, for the user: parameters of this app that have no effect on streamed layers."""
    if not _unknown:
        return []
    return [sentence("unheeded", version=app_version(), newest=NEWEST_RUN, names=", ".join(_unknown))]


def newer_than_the_pack(requested: str, error: BaseException) -> OffloadError:
    """The error for a call by the app with arguments that the pack does not accept."""
    return OffloadError(
        f"asked {requested}; found that ComfyUI {app_version()} calls the pack in a way that it does not know "
        f"({error}): this ComfyUI is newer than the pack, which was run in ComfyUI up to {NEWEST_RUN}; update the "
        "pack, or use the app's own loader node"
    )


def require() -> None:
    """Raise OffloadError if the app lacks a required name."""
    if _missing:
        raise OffloadError(_refusal())


def _refusal() -> str:
    shown = ", ".join(_missing[:3]) + (f" and {len(_missing) - 3} more" if len(_missing) > 3 else "")
    return (
        f"asked to work in ComfyUI {app_version()}; found that it lacks {shown}; the pack works from ComfyUI "
        f"{TESTED[0]} on and was run up to {NEWEST_RUN}: use one of these versions, or the app's own nodes"
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---------------------------------------------------------------------- features that a version may lack


def server() -> Any | None:
    """The app's server; None in a process without one."""
    return getattr(find("server.PromptServer"), "instance", None)


def fill_in_weight() -> Callable[[Any, str], None] | None:
    """The app's initialisation of a weight missing from the file; None where layers are built with values (before
    0.24)."""
    zero_init: Callable[[Any, str], None] | None = find("comfy.ops.disable_weight_init._zero_init_parameter")
    return zero_init


def detect_text_encoder() -> Callable[[Any], Any] | None:
    """The app's detection of text encoders by names and shapes; None in versions without it."""
    detect: Callable[[Any], Any] | None = find("comfy.sd.detect_te_model")
    return detect


def patched_shape() -> Callable[[Any, Any, str], Any] | None:
    """The app's function for the shape of a weight under patches; None in versions without it."""
    calculate_shape: Callable[[Any, Any, str], Any] | None = find("comfy.lora.calculate_shape")
    return calculate_shape


def saves_lazily() -> bool:
    """Whether the app computes patched text encoder weights one by one while it saves (from 0.24 on)."""
    return find("comfy.model_patcher.ModelPatcher.model_state_dict_for_saving") is not None


def running_prompts() -> frozenset[object]:
    """The queue's entries of the prompts that are executing; empty between prompts."""
    queue = getattr(server(), "prompt_queue", None)
    return frozenset(getattr(queue, "currently_running", None) or ())


def app_ram_reserve_bytes() -> int:
    """Bytes of host memory that the app keeps free when it page-locks; 0 between prompts and in versions without such
    a reserve."""
    return int(find("comfy.memory_management.RAM_CACHE_HEADROOM") or 0) // 2


def count_pins(nbytes: int) -> None:
    """Add `nbytes`, negative after unlocking, to the app's count of page-locked bytes."""
    if nbytes and app_pin_room_bytes() is not None:
        management = find("comfy.model_management")
        management.TOTAL_PINNED_MEMORY = max(0, management.TOTAL_PINNED_MEMORY + nbytes)


def app_pin_room_bytes() -> int | None:
    """Bytes that may still be page-locked below the app's ceiling, negative above it; None where it has no ceiling."""
    ceiling = find("comfy.model_management.MAX_PINNED_MEMORY")
    if ceiling is None or ceiling <= 0:
        return None
    return int(ceiling - (find("comfy.model_management.TOTAL_PINNED_MEMORY") or 0))  # rebound by the app as it counts


def outside_the_apps_graph() -> Callable[[], AbstractContextManager[Any]]:
    """A factory of context managers in which device memory is allocated outside the app's memory graph (from 0.34 on).

    They raise if the graph has failed; `nullcontext` where the app has no such graph."""
    return find("comfy.model_prefetch.pause_malloc_graph") or nullcontext


def apps_graph_is_active() -> bool:
    """Whether the calling thread runs inside the app's memory graph, where a failed call cannot be repeated."""
    graphs = find("comfy.model_prefetch.MALLOC_GRAPHS")
    return bool(graphs) and getattr(graphs.get(threading.get_ident()), "_comfy_active", False) is True
