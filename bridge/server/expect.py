"""What a prompt would come to if it ran now, before anything has been loaded: what the panel shows before a first run.

Of the files that the app lists the headers are read and no weights. The rest is what happens when one is loaded,
but sizes are seen through names (`model_shape`), and what the app will offer is guessed from what is free.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch

from ...offload_core.errors import BudgetError, OffloadError
from ...offload_core.files.model_files import ModelFile, read_models
from ...offload_core.files.model_shape import Compute, components_of, inventory_of
from ...offload_core.files.safetensors_header import TensorInfo
from ...offload_core.notices import notices_json
from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.plan_text import plan_to_text
from ...offload_core.sentences import Sentence, reason_json, sentence
from ...offload_core.settings.component_settings import Setting
from ..app import kinds
from ..app.device import segment_bytes
from ..component.component import live_components
from ..load.file_kinds import kind_of_vae, require_kind
from ..load.loading import file_names
from ..planning.decide import decide, plan_decision
from ..planning.placing import Neighbour, Situation, left_to_the_app, may_stream_on, wanted_bytes
from ..planning.refused_budget import refusal
from ..report.document import SCHEMA, devices, host, simulated, what_if
from ..report.telemetry import event_row
from ..requests.prompt_files import Wanted, wanted_in
from ..requests.requested import Requested

_LOADED = (kinds.DIT, kinds.TEXT_ENCODER, kinds.IMAGE_ENCODER, kinds.VAE, kinds.CONTROLNET)
KINDS = {kind.name: kind for kind in (*_LOADED, *kinds.APPLY_ONLY)}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8_e4m3fn": 1, "fp8_e4m3fn_fast": 1, "fp8_e5m2": 1}
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
SEEN_LATER = sentence("seen_later")
NO_MEMORY = sentence("no_device_memory")


@dataclass(frozen=True, slots=True)
class Ahead:
    """A component that is to come, of the file `model`. `inventory` None: nothing is known of its files."""

    wanted: Wanted
    requested: Requested
    model: str
    inventory: Inventory | None


def ahead_document(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A plan for each component that would be streamed, a reason for each other; or the first thing that a run would
    refuse: a file that is not there, say, or a budget."""
    device = mm.get_torch_device()
    planned: list[dict[str, Any]] = []
    bystanders = []
    try:
        components = [ahead for wanted in wanted_in(prompt) if (ahead := _ahead(wanted, device)) is not None]
        for ahead in components:
            name, nodes = ahead.requested.component, sorted(ahead.wanted.nodes)
            if reason := _left(ahead, device):
                bystanders.append({"component": name, "model": ahead.model, **reason_json(reason), "nodes": nodes})
                continue
            try:
                planned.append(_planned(ahead, device, [other for other in components if other is not ahead]))
            except BudgetError as error:
                settings = ahead.requested.settings
                widgets = ahead.wanted.budget_widgets(name, settings.source(Setting.BUDGET_BYTES))
                return {"schema": SCHEMA, **refusal(error, settings, device, widgets)}
    except OffloadError as error:
        return {"schema": SCHEMA, "error": str(error)}
    memory = {"devices": devices(), "host": host()}
    return {"schema": SCHEMA, "components": planned, "bystanders": bystanders, **memory}


def _left(ahead: Ahead, device: torch.device) -> Sentence | None:
    """Why the component is not streamed, or cannot be planned yet; None if neither."""
    if reason := left_to_the_app(ahead.requested):
        return reason
    if ahead.inventory is None:
        return SEEN_LATER
    return None if may_stream_on(device, ahead.requested, ahead.inventory.total_bytes) else NO_MEMORY


def _planned(ahead: Ahead, device: torch.device, others: list[Ahead]) -> dict[str, Any]:
    assert ahead.inventory is not None
    neighbours = [neighbour for other in others if (neighbour := _as_neighbour(other)) is not None]
    held_bytes = sum(component.device_bytes() for component in live_components() if component.loaded)
    attached = [component for component in live_components() if component.attached]
    own = [component for component in attached if component.model_name == ahead.model]
    layers = [layer for component in own for layer in component.controller.layers]
    situation = Situation.guessed(device, held_bytes, neighbours, layers)
    decision = decide(ahead.requested, KINDS[ahead.wanted.kind], ahead.inventory, situation)
    plan, request = plan_decision(decision, ahead.requested.settings, situation, ahead.model)
    decision = decision.as_planned(plan)
    component_id = f"{ahead.requested.component}-planned"
    return {
        "id": component_id,
        "component": ahead.requested.component,
        "model": ahead.model,
        "kind": ahead.wanted.kind,
        "device": request.device,
        "nodes": sorted(ahead.wanted.nodes),
        "placement": decision.settings.value(Setting.PLACEMENT),
        "plan": plan.to_json(),
        "plan_text": plan_to_text(plan),
        "budget_bytes": request.budget_bytes,
        "device_bytes": plan.device_bytes,
        "what_if": what_if(request, plan),
        "settings": decision.settings.to_json(),
        **notices_json(decision.notices),
        "events": [event_row(event) for event in simulated(plan, request, component_id)],
    }


def _as_neighbour(other: Ahead) -> Neighbour | None:
    if other.inventory is None:
        return None
    kind = KINDS[other.wanted.kind]
    asks = kind.asks_for_ring and not left_to_the_app(other.requested)
    wanted = wanted_bytes(kind, other.requested, other.inventory) if asks else 0
    return Neighbour(other.requested, other.inventory.total_bytes, 0, wanted)


# ---------------------------------------------------------------------- files


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
