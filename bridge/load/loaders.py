"""One function per kind of file: the app's loader with our patcher class, settings attached, file names in errors.

Each returns what the app's loader node returns (a MODEL, CLIP, VAE, CLIP_VISION or CONTROL_NET) and raises
OffloadError or SettingsError.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import comfy.clip_vision
import comfy.controlnet
import comfy.sd
import comfy.utils
import torch

from ...offload_core.errors import OffloadError, SettingsError
from ..files.file_kinds import WORDS, file_names, require_kind
from ..planning.placing import left_to_the_app
from ..requests.requested import Requested
from .loading import adopt, app_load, check_placement

T = TypeVar("T")

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


def load_diffusion_model(path: str, weight_dtype: str, requested: Requested) -> Any:
    """A MODEL from a diffusion model file."""
    options = _WEIGHT_DTYPES[weight_dtype]

    def load(**more: bool) -> Any:
        return comfy.sd.load_diffusion_model(path, model_options=dict(options), **more)

    return _load("dit", [path], requested, load, lambda patcher: patcher, may_be_dynamic=True)


def load_clip(
    paths: Sequence[str], clip_type: str, requested: Requested, embeddings: list[str] | None = None
) -> comfy.sd.CLIP:
    """A CLIP from one to four text encoder files, in the order of the app's loaders."""

    def load(**more: bool) -> comfy.sd.CLIP:
        return comfy.sd.load_clip(
            list(paths),
            embedding_directory=embeddings,
            clip_type=comfy.sd.CLIPType[clip_type.upper()],
            model_options=_encoder_options(requested),
            **more,
        )

    return _load("text_encoder", paths, requested, load, may_be_dynamic=True)


def _encoder_options(requested: Requested) -> dict[str, torch.device]:
    if requested.value("placement") == "cpu":
        return {"load_device": _CPU, "offload_device": _CPU}
    # By default the app builds a large encoder on the device, before a plan exists.
    return {} if left_to_the_app(requested) else {"initial_device": _CPU}


def load_vae(path: str, requested: Requested) -> comfy.sd.VAE:
    """A VAE. With precision on auto the app chooses the type, which leaves a bf16 file bf16."""

    def load() -> comfy.sd.VAE:
        precision = requested.value("precision")
        dtype = _VAE_DTYPES.get(precision) if isinstance(precision, str) else None
        if isinstance(precision, str) and dtype is None:
            raise SettingsError(
                f"asked vae.precision = {precision}; found that a VAE computes in {', '.join(_VAE_DTYPES)} only; "
                "choose one of these, or auto"
            )
        content, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
        device = _CPU if requested.value("placement") == "cpu" else None
        vae = comfy.sd.VAE(sd=content, metadata=metadata, device=device, dtype=dtype)
        vae.throw_exception_if_invalid()
        return vae

    return _load("vae", [path], requested, load)


def load_clip_vision(path: str, requested: Requested) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION."""
    return _load("image_encoder", [path], requested, lambda: comfy.clip_vision.load(path))


def load_controlnet(path: str, requested: Requested) -> Any:
    """A CONTROL_NET with weights of its own."""

    def patcher_of(control: Any) -> Any:
        patcher = getattr(control, "control_model_wrapped", None)
        if patcher is None:
            raise OffloadError(
                f"asked to load {file_names([path])} for layerwise offload; found a {type(control).__name__}, which "
                "has no weights of its own to stream; use Load ControlNet Model"
            )
        return patcher

    return _load("controlnet", [path], requested, lambda: comfy.controlnet.load_controlnet(path), patcher_of)


def _load(
    kind: str,
    paths: Sequence[str],
    requested: Requested,
    load: Callable[..., T],
    patcher_of: Callable[[T], Any] = operator.attrgetter("patcher"),
    may_be_dynamic: bool = False,
) -> T:
    """What `load`, a call of the app's loader, returns: of `kind`, with our patcher.

    may_be_dynamic: the app's loader may build a dynamic patcher, and an ordinary one with `disable_dynamic=True`.
    """
    check_placement(requested)
    require_kind(paths, kind)
    with app_load(WORDS[kind], paths, not left_to_the_app(requested)) as files:
        loaded = load()
    if loaded is None:
        raise OffloadError(
            f"asked to load the {WORDS[kind]} {file_names(paths)}; found nothing in it that ComfyUI knows as one; "
            "choose another file"
        )

    def reload(*_args: Any, disable_dynamic: bool = False, **_kwargs: Any) -> Any:
        """A patcher over the same files. A newer app may call it with more arguments."""
        if disable_dynamic and may_be_dynamic:
            return patcher_of(load(disable_dynamic=True))
        return patcher_of(_load(kind, paths, requested, load, patcher_of, may_be_dynamic))

    adopt(patcher_of(loaded), requested, paths, files, reload)
    return loaded


def load_checkpoint(
    path: str, requested: dict[str, Requested], embeddings: list[str] | None = None
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint; None for a part that it lacks. `requested` by component name."""
    for request in requested.values():
        check_placement(request, at_load=False)
    encoder = _encoder_options(requested["text_encoder"])
    with app_load("checkpoint", [path], not any(map(left_to_the_app, requested.values()))) as files:
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
    path: str, name: str, requested: dict[str, Requested], embeddings: list[str] | None, *_args: Any, **_kwargs: Any
) -> Any:
    """A patcher over one part of the checkpoint, which is read anew; ours is never dynamic."""
    return _patchers_by_name(*load_checkpoint(path, requested, embeddings))[name]


def _patchers_by_name(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
    return {"dit": model, "text_encoder": clip and clip.patcher, "vae": vae and vae.patcher}
