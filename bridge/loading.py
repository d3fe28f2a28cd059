"""Makes the app's own loaders build our patcher, and takes over what they built.

The app's loaders take their patcher class from `comfy.model_patcher.CoreModelPatcher`, the name that the app itself
re-points when it turns Dynamic VRAM on. For the duration of one load, and no longer, that name is ours.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.model_patcher

from ..offload_core.errors import OffloadError, SettingsError
from ..offload_core.groups import group_of
from . import compat
from .asked import Asked
from .patcher import LayerwiseModelPatcher, become_ours
from .placing import left_to_the_app

_swap_lock = threading.Lock()

_ON_THE_CPU = ("text_encoder", "vae")
"""Components whose app loader can place them on the CPU."""


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


@contextlib.contextmanager
def app_load(what: str, paths: Sequence[str]) -> Iterator[None]:
    """One load by the app, with our patcher class; its errors get the files' names and a way out."""
    compat.require()
    try:
        with patcher_class(LayerwiseModelPatcher):
            yield
    except OffloadError:
        raise
    except Exception as error:
        raise OffloadError(
            f"asked to load the {what} {file_names(paths)}; found that ComfyUI cannot: {type(error).__name__}: "
            f"{error}; check that the file is complete and a {what} that ComfyUI knows"
        ) from error


def file_names(paths: Sequence[str]) -> str:
    return ", ".join(Path(path).name for path in paths)


def adopt(
    patcher: comfy.model_patcher.ModelPatcher, asked: Asked, paths: Sequence[str], reload: Callable[..., Any] | None
) -> None:
    """Give a freshly loaded patcher its settings. `reload(disable_dynamic=False)` makes a twin of it for the app.

    For models that it will not move in parts the app builds a patcher of its own. That one is left as it is, unless
    somebody explicitly asked for more: layers that move whole are no parts to its operations.
    """
    check_placement(asked)
    if not isinstance(patcher, LayerwiseModelPatcher):
        said = asked.settings.is_explicitly_set
        if left_to_the_app(asked) or not (said("placement") or said("budget_bytes") or asked.selected):
            return
        become_ours(patcher)
    patcher.take(asked)
    patcher.component.source = file_names(paths)
    if reload is not None:
        patcher.cached_patcher_init = (reload, ())


def check_placement(asked: Asked, at_load: bool = True) -> None:
    """Refuse `cpu` where the app has no such way."""
    if asked.value("placement") == "cpu" and not (at_load and group_of(asked.component) in _ON_THE_CPU):
        where = "for this component" if at_load else "after it has been loaded"
        raise SettingsError(
            f"asked {asked.component}.placement = cpu; found no way to compute it on the CPU {where}; choose "
            "layerwise, resident, whole or auto, or set it on the node that loads the component"
        )
