"""Feature detection of the running ComfyUI. No other module tests for features of the app.

What is needed is looked up when the app loads the pack; optional features, which some tested version lacks or a later
one may drop, are at the end. Properties of single objects (whether a ControlNet has weights) are tested where they are
needed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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

_NEEDED_BY_OWNER = (
    ("comfy.cli_args.args", "disable_pinned_memory"),
    ("comfy.clip_vision", "ClipVisionModel load"),
    ("comfy.controlnet", "ControlNet.copy load_controlnet"),
    ("comfy.float", "stochastic_rounding(seed)"),
    ("comfy.lora", "calculate_weight(original_weights)"),
    ("comfy.model_base", "BaseModel"),
    (
        "comfy.model_management",
        "cast_to_device(copy) get_free_memory get_torch_device minimum_inference_memory "
        "get_torch_device_name loaded_models(only_currently_used) throw_exception_if_processing_interrupted "
        "get_total_memory is_device_cpu LoadedModel.model_load current_loaded_models",
    ),
    ("comfy.model_patcher", "CallbacksMP.ON_LOAD CoreModelPatcher"),
    (
        "comfy.model_patcher.ModelPatcher",
        "apply_hooks clone(disable_dynamic) detach eject_model get_all_callbacks get_combined_hook_patches "
        "get_key_patches(filter_prefix) is_dynamic load(full_load) loaded_size model_size "
        "model_state_dict(filter_prefix) partially_load(extra_memory) partially_unload(memory_to_free) patch_hooks "
        "patch_weight_to_device(return_weight) unpatch_hooks unpatch_model(unpatch_weights) "
        "use_ejected(skip_and_inject_on_exit_only)",
    ),
    ("comfy.model_patcher", "get_key_weight move_weight_functions wipe_lowvram_weight"),
    ("comfy.ops.CastWeightBiasOp", "bias_function comfy_cast_weights weight_function"),
    (
        "comfy.sd",
        "CLIP.clone CLIPType VAE(device) VAE(dtype) VAE(metadata) VAE.throw_exception_if_invalid "
        "load_checkpoint_guess_config(te_model_options) load_clip(disable_dynamic) "
        "load_diffusion_model(disable_dynamic)",
    ),
    ("comfy.utils", "ProgressBar.update_absolute get_attr load_torch_file(return_metadata) string_to_seed"),
    ("folder_paths", "get_filename_list get_full_path_or_raise get_system_user_directory"),
)
NEEDED = tuple(f"{owner}.{name}" for owner, names in _NEEDED_BY_OWNER for name in names.split())
"""Dotted names, with the required parameter of a function in parentheses. Every tested version has all of them."""

NEEDED_OF_A_PATCHER = (
    *(
        "additional_models",
        "backup",
        "current_hooks",
        "force_cast_weights",
        "forced_hooks",
        "load_device",
        "model",
        "model.device",
    ),
    *("model.current_weight_patches_uuid", "model.lowvram_patch_counter", "model.model_loaded_weight_memory"),
    *("model.model_lowvram", "object_patches_backup", "offload_device", "patches", "patches_uuid", "size"),
    *("weight_inplace_update", "weight_wrapper_patches"),
)
"""Attributes that the app's ModelPatcher constructor sets on patcher and model, and that ours reads or sets."""

_missing: tuple[str, ...] = ()
_unknown: tuple[str, ...] = ()
_ABSENT = object()


def find(name: str, absent: Any = None) -> Any:
    """The object of a dotted name in the app; `absent` if the app lacks it, or its function the parameter."""
    path, _, parameter = name.rstrip(")").partition("(")
    try:
        value = pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return absent
    return absent if parameter and parameter not in inspect.signature(value).parameters else value


def app_version() -> str:
    return str(find("comfyui_version.__version__", "unknown"))


def look() -> None:
    """Look up the required names, and log those that this app lacks; `checked` then refuses to work."""
    global _missing
    missing = [name for name in (NODE_API, *NEEDED) if find(name, _ABSENT) is _ABSENT]
    _missing = tuple(missing or _missing_of_a_patcher())
    if _missing:
        log.error("Layerwise Offload: %s", _refusal())
    elif _number(app_version()) > _number(NEWEST_RUN):
        log.info("Layerwise Offload on ComfyUI %s: run up to %s, has all it needs", app_version(), NEWEST_RUN)
    else:
        log.info("Layerwise Offload on ComfyUI %s", app_version())


def _missing_of_a_patcher() -> list[str]:
    """The required attributes that a ModelPatcher over an empty module lacks."""
    kind = find("comfy.model_patcher.ModelPatcher")
    cpu = torch.device("cpu")
    try:
        patcher = kind(torch.nn.Module(), load_device=cpu, offload_device=cpu)
    except Exception as error:  # reported as missing: the app must start in any case
        return [f"comfy.model_patcher.ModelPatcher(model, load_device, offload_device): {error}"]
    return [f"ModelPatcher(...).{name}" for name in NEEDED_OF_A_PATCHER if _reach(patcher, name) is _ABSENT]


def _reach(value: Any, name: str) -> Any:
    return functools.reduce(lambda owner, part: getattr(owner, part, _ABSENT), name.split("."), value)


def compare(ours: type, replaced: Sequence[str]) -> None:
    """Log the parameters of the app's methods, as `load(name)`, that the overriding methods of `ours` ignore.

    `ours`: our subclass of the app's ModelPatcher. `replaced`: names of the overriding methods. Called once, after
    `look`; `unheeded` then returns them as a sentence for reports and nodes.
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


@contextlib.contextmanager
def checked(requested: str, ours: type) -> Iterator[None]:
    """A block in which the app works with `ours`. `requested`: what for.

    Raises OffloadError if the app lacks a required name, or calls `ours` with arguments that it does not accept.
    """
    if _missing:
        raise OffloadError(_refusal())
    try:
        yield
    except TypeError as error:
        if ours.__name__ not in str(error):
            raise
        raise OffloadError(
            f"asked {requested}; found that ComfyUI {app_version()} calls the pack in a way that it does not know "
            f"({error}): this ComfyUI is newer than the pack, which was run in ComfyUI up to {NEWEST_RUN}; update the "
            "pack, or use the app's own loader node"
        ) from error


def _refusal() -> str:
    shown = ", ".join(_missing[:3]) + (f" and {len(_missing) - 3} more" if len(_missing) > 3 else "")
    return (
        f"asked to work in ComfyUI {app_version()}; found that it lacks {shown}; the pack works from ComfyUI "
        f"{TESTED[0]} on and was run up to {NEWEST_RUN}: use one of these versions, or the app's own nodes"
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# ---------------------------------------------------------------------- features that a version may lack

FILL_IN_WEIGHT = "comfy.ops.disable_weight_init._zero_init_parameter"
"""(module, name): initialises a weight that no file had. Before 0.24 layers are built with values instead."""
DETECT_TEXT_ENCODER = "comfy.sd.detect_te_model"
"""(tensors by name): a text encoder's kind, by names and shapes; None if it is none."""
PATCHED_SHAPE = "comfy.lora.calculate_shape"
"""(patches, weight, key): the shape of a weight under patches."""


def server() -> Any | None:
    """The app's server; None in a process without one."""
    return getattr(find("server.PromptServer"), "instance", None)


def saves_lazily() -> bool:
    """Whether the app computes patched text encoder weights one by one while it saves (from 0.24 on)."""
    return find("comfy.model_patcher.ModelPatcher.model_state_dict_for_saving") is not None


class RunningPrompt(NamedTuple):
    """`number`: the app's own, another for each prompt; `nodes`: in API form; `outputs`: ids of those that were asked
    for, which run with all that they depend on."""

    number: object
    nodes: Mapping[str, Any]
    outputs: tuple[str, ...]


def running_prompts() -> frozenset[object]:
    """The queue's entries of the prompts that are executing; empty between prompts."""
    queue = getattr(server(), "prompt_queue", None)
    return frozenset(getattr(queue, "currently_running", None) or ())


def running_prompt() -> RunningPrompt | None:
    """The prompt that is executing, of several the last; None between prompts, or where the app has no queue."""
    queue = getattr(server(), "prompt_queue", None)
    entries = list((getattr(queue, "currently_running", None) or {}).items())
    if not entries or len(entries[-1][1]) < 5:  # of a queue that is not the app's own
        return None
    number, (_, _, nodes, _, outputs, *_) = entries[-1]
    return RunningPrompt(number, nodes, tuple(outputs))


def outputs_of(prompt: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes of a prompt, in API form, whose class has an output that a run is for: pictures, say."""
    classes = find("nodes.NODE_CLASS_MAPPINGS", {})
    return [key for key, node in prompt.items() if getattr(classes.get(node["class_type"]), "OUTPUT_NODE", False)]


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


def outside_the_apps_graph() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A factory of context managers in which device memory is allocated outside the app's memory graph (from 0.34 on).

    They raise if the graph has failed; `nullcontext` where the app has no such graph."""
    return find("comfy.model_prefetch.pause_malloc_graph") or contextlib.nullcontext


def apps_graph_is_active() -> bool:
    """Whether the calling thread runs inside the app's memory graph, where a failed call cannot be repeated."""
    graphs = find("comfy.model_prefetch.MALLOC_GRAPHS")
    return bool(graphs) and getattr(graphs.get(threading.get_ident()), "_comfy_active", False) is True
