"""Makes the app's own loaders build our patcher, and wraps models that are already loaded.

The app's loaders take their patcher class from `comfy.model_patcher.CoreModelPatcher`, the name that the app itself
re-points when it turns Dynamic VRAM on. For the duration of one load, and no longer, that name is ours.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch

from ..offload_core.errors import OffloadError
from ..offload_core.settings import ComponentSettings
from .patcher import LayerwiseModelPatcher

_swap_lock = threading.Lock()

_WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The choices of the app's own loader node and what they mean to its loading function."""

WEIGHT_DTYPES = tuple(_WEIGHT_DTYPES)


@contextlib.contextmanager
def patcher_class(cls: type[comfy.model_patcher.ModelPatcher]) -> Iterator[None]:
    """The app's loaders build patchers of class `cls` inside the block."""
    with _swap_lock:
        previous = comfy.model_patcher.CoreModelPatcher
        comfy.model_patcher.CoreModelPatcher = cls
        try:
            yield
        finally:
            comfy.model_patcher.CoreModelPatcher = previous


def load_diffusion_model(path: str, weight_dtype: str, settings: ComponentSettings) -> LayerwiseModelPatcher:
    """The app's `load_diffusion_model` with our patcher. Errors are the app's own, with the file's name."""
    options = dict(_WEIGHT_DTYPES[weight_dtype])
    try:
        with patcher_class(LayerwiseModelPatcher):
            patcher = comfy.sd.load_diffusion_model(path, model_options=options)
    except Exception as error:
        raise OffloadError(
            f"asked to load the diffusion model {Path(path).name}; found that ComfyUI cannot: "
            f"{type(error).__name__}: {error}; check that the file is complete and of a model that ComfyUI knows"
        ) from error
    if not isinstance(patcher, LayerwiseModelPatcher):
        raise OffloadError(
            f"asked the app to load {Path(path).name} for layerwise offload; found that it built a "
            f"{type(patcher).__name__} of its own; use Load Diffusion Model followed by Layerwise Offload Apply"
        )
    patcher.offload_settings = settings
    patcher.component.source = Path(path).name
    patcher.cached_patcher_init = (_reload, (path, weight_dtype, settings))
    return patcher


def _reload(path: str, weight_dtype: str, settings: ComponentSettings, disable_dynamic: bool = False) -> Any:
    """The factory that the app calls for a twin of the model, on another device for example."""
    if disable_dynamic:
        return comfy.sd.load_diffusion_model(
            path, model_options=dict(_WEIGHT_DTYPES[weight_dtype]), disable_dynamic=True
        )
    return load_diffusion_model(path, weight_dtype, settings)


def wrap(model: comfy.model_patcher.ModelPatcher, settings: ComponentSettings) -> tuple[LayerwiseModelPatcher, str]:
    """A layerwise patcher over the module of `model`, and a warning for the user, empty if there is none.

    Patches, options, wrappers and the rest are carried over as the app's own `clone` does. A Dynamic VRAM model is
    first turned into an ordinary one by the app's factory, which loads the file a second time.
    """
    warning = ""
    if model.is_dynamic():
        if model.cached_patcher_init is None:
            raise OffloadError(
                "asked to apply layerwise offload to a Dynamic VRAM model; found that its loader registered no factory "
                "to load it without; use a Layerwise Offload loader node for it, or start the app with "
                "--disable-dynamic-vram"
            )
        model = model.clone(disable_dynamic=True)
        warning = (
            "the model was loaded for Dynamic VRAM and had to be loaded a second time; "
            "a Layerwise Offload loader node in place of the app's loads it once"
        )
    if isinstance(model, LayerwiseModelPatcher):
        clone = model.clone()
    else:
        clone = _clone_as_ours(model)
    clone.offload_settings = settings
    if warning:
        clone.component.warn(warning)
    return clone, warning


def _clone_as_ours(model: comfy.model_patcher.ModelPatcher) -> LayerwiseModelPatcher:
    """`model.clone()`, built as our class: the app's clone makes an object of its own class, whatever that is."""
    if type(model) is not comfy.model_patcher.ModelPatcher:
        raise OffloadError(
            f"asked to apply layerwise offload to a {type(model).__name__}; found that this patcher moves weights its own "
            "way; use it without layerwise offload, or load the model by another loader"
        )
    shell = model.clone()
    shell.__class__ = LayerwiseModelPatcher
    shell.join_component()
    return shell
