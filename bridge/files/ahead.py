"""The components that a prompt would load, with the sizes that the headers of their files tell: no weights are read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ...offload_core.errors import OffloadError
from ...offload_core.files.model_files import ModelFile, read_models
from ...offload_core.files.model_shape import Compute, components_of, inventory_of
from ...offload_core.files.safetensors_header import TensorInfo
from ...offload_core.planning.inventory import Inventory
from ..app import compat
from ..app.device import segment_bytes
from ..requests.graph import what_runs
from ..requests.prompt_files import Wanted, wanted_in
from ..requests.requested import Requested
from .file_kinds import file_names, kind_of_vae, require_kind

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8_e4m3fn": 1, "fp8_e4m3fn_fast": 1, "fp8_e5m2": 1}
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class Ahead:
    """A component that is to come, of the file `model`. `inventory` None: nothing is known of its files."""

    wanted: Wanted
    requested: Requested
    model: str
    inventory: Inventory | None


def components_ahead(prompt: Mapping[str, Any], device: torch.device) -> list[Ahead]:
    """The components that a prompt brings, by name, in sizes of `device`. Raises OffloadError for what a run would
    refuse: a file that is not there, say."""
    return [ahead for wanted in wanted_in(prompt) if (ahead := _ahead(wanted, device)) is not None]


def components_of_running_prompt(device: torch.device) -> tuple[Ahead, ...]:
    """The components of the prompt that runs, in sizes of `device`; none between prompts, or where something in the
    prompt is refused: the node that it is about then says so. What no output of the prompt depends on does not run, and
    is left out."""
    running = compat.running_prompt()
    return () if running is None else _of_prompt(running.number, device)


@functools.lru_cache(maxsize=8)
def _of_prompt(number: object, device: torch.device) -> tuple[Ahead, ...]:
    """Once for each prompt and device. A component whose file is refused is left out."""
    running = compat.running_prompt()
    if running is None or running.number != number:
        return ()
    try:
        wanted = wanted_in(running.nodes)
    except OffloadError:
        return ()
    run = what_runs(running.nodes, running.outputs)
    components = []
    for component in wanted:
        if not run.intersection(component.nodes):
            continue
        with contextlib.suppress(OffloadError):
            if (ahead := _ahead(component, device)) is not None:
                components.append(ahead)
    return tuple(components)


def _ahead(wanted: Wanted, device: torch.device) -> Ahead | None:
    """What is known of a component, in sizes of `device`; None for a part that its checkpoint does not bring."""
    paths = [_path(wanted, name) for name in wanted.files]
    if not paths:
        return Ahead(wanted, wanted.requested(), "", None)
    turned_out = None
    if wanted.folder != "checkpoints":
        require_kind(paths, wanted.kind)
        turned_out = kind_of_vae(paths[0]) if wanted.kind == "vae" else None
    requested = wanted.requested(turned_out)
    tensors = _tensors(wanted, paths)
    if not tensors:
        is_absent = wanted.folder == "checkpoints" and Path(paths[0]).suffix != ".ckpt"
        return None if is_absent else Ahead(wanted, requested, file_names(paths), None)
    precision = requested.value("precision")
    dtype = precision if isinstance(precision, str) else wanted.weight_dtype
    inventory = inventory_of(requested.component, [_kept_as(tensor, dtype) for tensor in tensors], Compute(1.0))
    layers = tuple(replace(layer, compute_ns=None, in_file=not wanted.by_the_app) for layer in inventory.layers)
    inventory = replace(inventory, layers=layers, segment_bytes=segment_bytes(device))
    return Ahead(wanted, requested, file_names(paths), inventory)


def _path(wanted: Wanted, name: str) -> str:
    """The file in the app's folder. Only what the app offers in its own lists is looked for."""
    try:
        listed = folder_paths.get_filename_list(wanted.folder)
    except OSError as error:  # the app has listed the folder before, and it is gone, as a drive may be
        raise OffloadError(
            f"asked to load {name[:200]} ({wanted.name}); found that a folder of models/{wanted.folder} cannot be read "
            f"({error.strerror}); put back what was there, or start ComfyUI anew"
        ) from None
    path = folder_paths.get_full_path(wanted.folder, name) if name in listed else None
    if path is None:
        raise OffloadError(
            f"asked to load {name[:200]} ({wanted.name}); found no such file in models/{wanted.folder}; choose one "
            "that is there, or put it there and press R"
        )
    return str(path)


def _tensors(wanted: Wanted, paths: list[str]) -> list[TensorInfo]:
    """The component's tensors in all its files, whose names are kept apart. Raises OffloadError for a broken file."""
    tensors: list[TensorInfo] = []
    for number, path in enumerate(paths):
        for model in _models(path):
            of_component: Iterable[TensorInfo] = model.tensors
            if wanted.folder == "checkpoints":
                of_component = components_of(model.tensors, wanted.folder).get(wanted.kind, ())
            prefix = f"part{number}." if len(paths) > 1 else ""
            tensors += [replace(tensor, name=prefix + tensor.name) for tensor in of_component]
    return tensors


def _models(path: str) -> tuple[ModelFile, ...]:
    """The headers of a file that was there when the app listed it. Raises OffloadError, which names no folder."""
    try:
        status = Path(path).stat()
        return _headers(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    except OffloadError as error:  # it names the whole path, which browsers are not to see
        problem = str(error).replace(path, "this").removeprefix("this: ")
    raise OffloadError(f"asked to read {Path(path).name}; found {problem}; replace the file by a complete one")


@functools.lru_cache(maxsize=16)
def _headers(path: str, mtime_ns: int, size: int) -> tuple[ModelFile, ...]:
    """Read once for each state of a file. A pickle has none: it says nothing without being loaded."""
    has_header = Path(path).suffix.lower() in (".safetensors", ".sft", ".gguf")
    return tuple(read_models([Path(path)])) if has_header else ()


def _kept_as(tensor: TensorInfo, dtype: str) -> TensorInfo:
    """The tensor as large as it is in the type that was asked for."""
    if dtype not in _BYTES or tensor.dtype not in _FLOATS:
        return tensor
    return replace(tensor, end=tensor.start + tensor.elements * _BYTES[dtype])
