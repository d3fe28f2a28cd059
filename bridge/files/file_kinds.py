"""Detects from the tensor names in a file's header which component the file is for, and how many bytes it has.

Used to refuse a file in the wrong slot, which the app would load with a warning in the log and a broken picture, and
to load large files first. Files of unknown kind pass: the app decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...offload_core.errors import OffloadError
from ...offload_core.files.file_kinds import kinds_by_names
from ...offload_core.files.model_files import ModelFile, read_models
from ...offload_core.files.safetensors_header import TensorInfo
from ..app import compat


def _app_knows_encoder(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether the app's detection, by names and shapes, finds a text encoder; False in versions without it."""
    detect = compat.find(compat.DETECT_TEXT_ENCODER)
    try:
        return detect is not None and detect(tensors) is not None
    except Exception:  # it asked for values, which it does only for an encoder that it has detected
        return True


def read(paths: Sequence[str]) -> list[ModelFile]:
    """The headers of the files; empty if one cannot be read: the app then reports what is wrong with the file."""
    try:
        return read_models(Path(path) for path in paths)
    except (OffloadError, OSError):
        return []


WORDS = {
    "controlnet": "ControlNet",
    "image_encoder": "CLIP vision model",
    "vae": "VAE",
    "dit": "diffusion model",
    "text_encoder": "text encoder",
}
"""What users call a component of each kind."""


def require_kind(paths: Sequence[str], kind: str) -> None:
    """Raise OffloadError if a file is detected as another kind; not for a diffusion model, where the app does it."""
    for path in paths if kind != "dit" else ():
        tensors = {tensor.name: tensor for file in read([path]) for tensor in file.tensors}
        kinds = kinds_by_names(tensors) | ({"text_encoder"} if _app_knows_encoder(tensors) else set())
        if kinds and kind not in kinds:
            detected = " or ".join(sorted(WORDS[other] for other in kinds))
            raise OffloadError(
                f"asked to load {Path(path).name} as a {WORDS[kind]}; found that it is a {detected}; choose a "
                f"{WORDS[kind]}, or load this file with the loader for its kind"
            )


_AUDIO_VAE_NAMES = ("decoder.layers.1.layers.", "decoder.layers.3.transformers.", "vocoder.", "pre_block.attn.")


def kind_of_vae(path: str) -> str:
    """The kind of component in a VAE file: `audio_vae` or `vae`, from its tensor names."""
    names = [tensor.name for file in read([path]) for tensor in file.tensors]
    return "audio_vae" if any(name.startswith(_AUDIO_VAE_NAMES) for name in names) else "vae"


def payloads(files: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Tensor bytes by component name, from the headers; 0 where a header cannot be read."""
    return {name: sum(file.bytes for file in read(paths)) for name, paths in files.items()}


def file_names(paths: Sequence[str]) -> str:
    return ", ".join(Path(path).name for path in paths)
