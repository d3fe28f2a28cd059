"""Makes the app's loaders build our patcher class, and takes over what they built.

The app's loaders take their patcher class from `comfy.model_patcher.CoreModelPatcher`, which the app itself rebinds
when it turns Dynamic VRAM on. It is rebound to our class for the duration of one load.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.model_patcher

from ...offload_core.errors import OffloadError, SettingsError
from ...offload_core.files.gguf_header import read_gguf_header
from ...offload_core.files.safetensors_header import LengthError, read_safetensors_header
from ...offload_core.settings.groups import group_of
from ..app import compat
from ..app.device import takes_host_memory
from ..component.mapped_load import MappedFiles
from ..files.file_kinds import file_names
from ..planning.placing import left_to_the_app, may_stream_on
from ..planning.remembered import states_of
from ..requests.requested import Requested
from .patcher import LayerwiseModelPatcher, become_ours, weights_stay_in_file

_swap_lock = threading.Lock()

MAX_ERROR_CHARACTERS = 400
"""Limit for the text of an app error that is quoted in ours."""


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
def app_load(what: str, paths: Sequence[str], maps: bool) -> Iterator[MappedFiles]:
    """One load by the app with our patcher class. Raises its errors as OffloadError with the files' names and a remedy.

    maps: weights stay in the mapped file, as far as the app's loader uses them unchanged. Call `adopt` afterwards.
    """
    files, names = MappedFiles(), file_names(paths)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(compat.checked(f"to load the {what} {names}", LayerwiseModelPatcher))
            stack.enter_context(patcher_class(LayerwiseModelPatcher))
            if maps:
                stack.enter_context(files.watching())
                stack.callback(weights_stay_in_file.reset, weights_stay_in_file.set(True))
            yield files
    except OffloadError:
        raise
    except Exception as error:
        remedy = _of_another_length(paths) or f"check that the file is complete and a {what} that this ComfyUI knows"
        raise OffloadError(
            f"asked to load the {what} {names}; found that ComfyUI cannot: {type(error).__name__}: {_short(error)}; "
            f"{remedy}"
        ) from error


def _of_another_length(paths: Sequence[str]) -> str:
    """The error of the first file whose size differs from what its header says; empty if there is none."""
    for path in paths:
        read = read_gguf_header if path.lower().endswith(".gguf") else read_safetensors_header
        try:
            read(Path(path))
        except LengthError as error:
            return str(error).replace(str(Path(path)), Path(path).name)
        except (OffloadError, OSError):  # no such file, or another fault in it
            continue
    return ""


def _short(error: Exception) -> str:
    """The first two lines of a message: torch lists every weight that does not fit. The log has all of it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = " ".join(lines[:2])
    more = len(lines) - 2
    text = text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."
    return f"{text} (and {more} lines more, see the log)" if more > 0 else text


def adopt(
    patcher: comfy.model_patcher.ModelPatcher,
    requested: Requested,
    paths: Sequence[str],
    files: MappedFiles,
    reload: Callable[..., Any],
) -> None:
    """Give a freshly loaded patcher its settings. `reload(disable_dynamic=False)` loads another one for the app.

    For models that it does not load partially the app builds a patcher of its own. That one is kept, unless placement,
    a budget or a selection are set explicitly: streaming moves whole layers, so it works for these models too.
    """
    if not isinstance(patcher, LayerwiseModelPatcher):
        is_set = requested.settings.is_explicitly_set
        if left_to_the_app(requested) or not (requested.has_budget or is_set("placement") or requested.selected):
            return
        become_ours(patcher)
    reads_file = _settle_weights(patcher, requested, files)
    patcher.component.comes_from(file_names(paths), states_of(paths), reads_file)
    patcher.take(requested)
    patcher.cached_patcher_init = (reload, ())


def _settle_weights(patcher: LayerwiseModelPatcher, requested: Requested, files: MappedFiles) -> bool:
    """Settle the weights in the file or in memory. Returns whether the component reads its layers from the file.

    On a device with memory of its own, weights of streamed models stay in the file. On the CPU they stay there only if
    placement or budget are explicit, or the model exceeds available host memory. Where device memory is host memory,
    weights of another type than the file's are converted when they are read.
    """
    streams = not left_to_the_app(requested)
    if streams:
        nbytes = sum(parameter.numel() * parameter.element_size() for parameter in patcher.model.parameters())
        streams = may_stream_on(patcher.load_device, requested, nbytes)
    one_memory = takes_host_memory(patcher.load_device)
    patcher.settle_weights(files, leave=streams, convert=not one_memory)
    return streams and one_memory


def check_placement(requested: Requested, at_load: bool = True) -> None:
    """Raise SettingsError for the placement `cpu` where the app cannot compute the component on the CPU."""
    placed_by_app = at_load and group_of(requested.component) in ("text_encoder", "vae")
    if requested.value("placement") == "cpu" and not placed_by_app:
        where = "for this component" if at_load else "after it has been loaded"
        raise SettingsError(
            f"asked {requested.component}.placement = cpu; found no way to compute it on the CPU {where}; choose "
            "layerwise, resident, whole or auto, or set it on the node that loads the component"
        )
