"""What a model file looks like by the names in its header: which component it is for, and how many bytes it brings.

Only there to refuse a file in the wrong slot, which the app would load with a warning in the log and garbage in the
picture, and to load large files first. A file that looks like nothing known is the app's to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..offload_core.errors import OffloadError
from ..offload_core.file_kinds import kinds_by_names
from ..offload_core.model_files import ModelFile, read_models
from ..offload_core.safetensors_header import TensorInfo
from . import compat


def kinds_of(files: Iterable[ModelFile]) -> set[str]:
    """The components these files may be for. Empty: nothing known."""
    tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
    kinds = kinds_by_names(tensors)
    if _app_knows_encoder(tensors):
        kinds.add("text_encoder")
    return kinds


def _app_knows_encoder(tensors: Mapping[str, TensorInfo]) -> bool:
    """The app's own detection, which looks at names and shapes only; not there in every version."""
    detect = compat.detect_text_encoder()
    try:
        return detect is not None and detect(tensors) is not None
    except Exception:  # it wanted values: then it has found something
        return True


def read(paths: Sequence[str]) -> list[ModelFile]:
    """What the headers say; empty if one cannot be read: the app then says what is wrong with the file."""
    try:
        return read_models(Path(path) for path in paths)
    except (OffloadError, OSError):
        return []


def require_kind(paths: Sequence[str], wanted: str, what: str) -> None:
    """Raise OffloadError, naming the file, if one is clearly for another component."""
    for path in paths:
        kinds = kinds_of(read([path]))
        if kinds and wanted not in kinds:
            found = " or ".join(sorted(_WORDS[kind] for kind in kinds))
            raise OffloadError(
                f"asked to load {Path(path).name} as a {what}; found that it is a {found}; choose a {what}, or load "
                "this file with the loader for its kind"
            )


_AUDIO_VAE_NAMES = ("decoder.layers.1.layers.", "decoder.layers.3.transformers.", "vocoder.", "pre_block.attn.")


def kind_of_vae(path: str) -> str:
    """The component that a VAE file is for: `audio_vae` if it decodes sound, else `vae`."""
    names = [tensor.name for file in read([path]) for tensor in file.tensors]
    return "audio_vae" if any(name.startswith(_AUDIO_VAE_NAMES) for name in names) else "vae"


_WORDS = {
    "controlnet": "ControlNet",
    "image_encoder": "CLIP vision model",
    "vae": "VAE",
    "dit": "diffusion model",
    "text_encoder": "text encoder",
}


def payloads(files: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Payload bytes by component name, from the headers; 0 where one cannot be read."""
    return {name: sum(file.bytes for file in read(paths)) for name, paths in files.items()}
