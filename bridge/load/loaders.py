"""One function per kind of file: the app's loader with our patcher class, settings attached, file names in errors.

Each returns what the app's loader node returns (a MODEL, CLIP, VAE, CLIP_VISION or CONTROL_NET) and raises
OffloadError or SettingsError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.sd
import comfy.utils
import torch

from ...offload_core.errors import OffloadError, SettingsError
from ..planning.placing import left_to_the_app
from ..requests.requested import Requested
from .file_kinds import require_kind
from .loading import adopt, app_load, check_placement, file_names

_WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The choices of the app's loader node, with the model options that they stand for."""

WEIGHT_DTYPES = tuple(_WEIGHT_DTYPES)
CLIP_TYPES = tuple(clip_type.name.lower() for clip_type in comfy.sd.CLIPType)
"""Every CLIP type of the app, in lower case."""

_VAE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VAE_PRECISIONS = ("auto", *_VAE_DTYPES)
_CPU = torch.device("cpu")


def _maps(requested: Requested) -> bool:
    """Whether weights may be left in the file: not if the app moves them itself."""
    return not left_to_the_app(requested)


def load_diffusion_model(path: str, weight_dtype: str, requested: Requested, disable_dynamic: bool = False) -> Any:
    """A MODEL from a diffusion model file. `disable_dynamic`: load an ordinary patcher of the app instead."""
    options = dict(_WEIGHT_DTYPES[weight_dtype])
    if disable_dynamic:
        return comfy.sd.load_diffusion_model(path, model_options=options, disable_dynamic=True)
    check_placement(requested)
    with app_load("diffusion model", [path], _maps(requested)) as files:
        patcher = comfy.sd.load_diffusion_model(path, model_options=options)
    adopt(patcher, requested, [path], files, functools.partial(load_diffusion_model, path, weight_dtype, requested))
    return patcher


def load_clip(
    paths: Sequence[str], clip_type: str, requested: Requested, embeddings: list[str] | None = None
) -> comfy.sd.CLIP:
    """A CLIP from one to four text encoder files, in the order of the app's loaders."""
    check_placement(requested)
    require_kind(paths, "text_encoder", "text encoder")
    with app_load("text encoder", paths, _maps(requested)) as files:
        clip = comfy.sd.load_clip(
            list(paths),
            embedding_directory=embeddings,
            clip_type=comfy.sd.CLIPType[clip_type.upper()],
            model_options=_encoder_options(requested),
        )
    reload = functools.partial(_clip_patcher, list(paths), clip_type, requested, embeddings)
    adopt(clip.patcher, requested, paths, files, reload)
    return clip


def _encoder_options(requested: Requested) -> dict[str, torch.device]:
    if requested.value("placement") == "cpu":
        return {"load_device": _CPU, "offload_device": _CPU}
    # By default the app builds a large encoder on the device, before a plan exists.
    return {} if left_to_the_app(requested) else {"initial_device": _CPU}


def _clip_patcher(
    paths: list[str], clip_type: str, requested: Requested, embeddings: list[str] | None, disable_dynamic: bool = False
) -> Any:
    if disable_dynamic:
        kind = comfy.sd.CLIPType[clip_type.upper()]
        return comfy.sd.load_clip(paths, embeddings, kind, _encoder_options(requested), disable_dynamic=True).patcher
    return load_clip(paths, clip_type, requested, embeddings).patcher


def load_vae(path: str, requested: Requested, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """A VAE. With precision on auto the app chooses the type, which leaves a bf16 file bf16."""
    check_placement(requested)
    require_kind([path], "vae", "VAE")
    precision = requested.value("precision")
    dtype = _VAE_DTYPES.get(precision) if isinstance(precision, str) else None
    if isinstance(precision, str) and dtype is None:
        raise SettingsError(
            f"asked vae.precision = {precision}; found that a VAE computes in {', '.join(_VAE_DTYPES)} only; choose "
            "one of these, or auto"
        )
    with app_load("VAE", [path], _maps(requested)) as files:
        content, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        device = _CPU if requested.value("placement") == "cpu" else None
        vae = comfy.sd.VAE(sd=content, metadata=metadata, device=device, dtype=dtype)
        vae.throw_exception_if_invalid()
    adopt(vae.patcher, requested, [path], files, functools.partial(_new_patcher, load_vae, "patcher", path, requested))
    return vae


def _new_patcher(
    load: Callable[[str, Requested], Any],
    attribute: str,
    path: str,
    requested: Requested,
    disable_dynamic: bool = False,
) -> Any:
    """A patcher over a model read anew. Ours is never dynamic, so `disable_dynamic` has no effect."""
    return getattr(load(path, requested), attribute)


def load_clip_vision(path: str, requested: Requested) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION."""
    check_placement(requested)
    require_kind([path], "image_encoder", "CLIP vision model")
    with app_load("CLIP vision model", [path], _maps(requested)) as files:
        vision = comfy.clip_vision.load(path)
    if vision is None:
        raise _not_a(path, "CLIP vision model")
    reload = functools.partial(_new_patcher, load_clip_vision, "patcher", path, requested)
    adopt(vision.patcher, requested, [path], files, reload)
    return vision


def load_controlnet(path: str, requested: Requested) -> Any:
    """A CONTROL_NET with weights of its own."""
    check_placement(requested)
    require_kind([path], "controlnet", "ControlNet")
    with app_load("ControlNet", [path], _maps(requested)) as files:
        control = comfy.controlnet.load_controlnet(path)
    if control is None:
        raise _not_a(path, "ControlNet")
    patcher = getattr(control, "control_model_wrapped", None)
    if patcher is None:
        raise OffloadError(
            f"asked to load {file_names([path])} for layerwise offload; found a {type(control).__name__}, which has no "
            "weights of its own to stream; use Load ControlNet Model"
        )
    reload = functools.partial(_new_patcher, load_controlnet, "control_model_wrapped", path, requested)
    adopt(patcher, requested, [path], files, reload)
    return control


def load_checkpoint(
    path: str, requested: dict[str, Requested], embeddings: list[str] | None = None
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint; None for a part that it lacks. `requested` by component name."""
    for request in requested.values():
        check_placement(request, at_load=False)
    encoder = _encoder_options(requested["text_encoder"])
    with app_load("checkpoint", [path], all(map(_maps, requested.values()))) as files:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            path, embedding_directory=embeddings, te_model_options=encoder
        )
    if vae is not None and getattr(vae, "first_stage_model", None) is None:
        vae = None  # the app returns an empty VAE that fails when used
    for name, patcher in _patchers_by_name(model, clip, vae).items():
        if patcher is not None:
            reload = functools.partial(_checkpoint_patcher, path, name, requested, embeddings)
            adopt(patcher, requested[name], [path], files, reload)
    return model, clip, vae


def _checkpoint_patcher(
    path: str, name: str, requested: dict[str, Requested], embeddings: list[str] | None, disable_dynamic: bool = False
) -> Any:
    """A patcher over one part of the checkpoint, which is read anew."""
    return _patchers_by_name(*load_checkpoint(path, requested, embeddings))[name]


def _patchers_by_name(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    return {"dit": model, "text_encoder": clip and clip.patcher, "vae": vae and vae.patcher}


def _not_a(path: str, what: str) -> OffloadError:
    return OffloadError(
        f"asked to load the {what} {file_names([path])}; found nothing in it that ComfyUI knows as one; "
        "choose another file"
    )
