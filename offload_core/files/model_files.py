"""The tensors of model files: single files, shards and indices, in safetensors or GGUF, detected by content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import shown
from .gguf_header import MAGIC, read_gguf_header
from .safetensors_header import HeaderError, TensorInfo, read_safetensors_header

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_MAX_INDEX_BYTES = 64_000_000
_MAX_SHARDS = 1000


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model: its display name, its files, and its tensors."""

    name: str
    paths: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def read_models(paths: Iterable[Path]) -> list[ModelFile]:
    """The models in these files. A path to one shard, or to the index, stands for all shards of its model.

    Raises HeaderError for a malformed file or index, OSError for a file that cannot be read.
    """
    models: dict[tuple[Path, ...], str] = {}
    for path in paths:
        name, parts = _parts(path)
        models.setdefault(parts, name)
    return [ModelFile(name, parts, _tensors(name, parts)) for parts, name in models.items()]


def _parts(path: Path) -> tuple[str, tuple[Path, ...]]:
    """The display name and the files of the model that `path` belongs to."""
    if path.name.endswith(".json"):
        return path.name, _index_parts(path)
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return path.name, (path,)
    count = int(match["count"])
    if not 1 <= count <= _MAX_SHARDS:
        raise HeaderError(f"{path}: one of {count} parts; 1 to {_MAX_SHARDS} are allowed")
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)]
    parts = tuple(path.with_name(name) for name in names)
    missing = [part.name for part in parts if not part.exists()]
    if missing and path.exists():
        raise HeaderError(f"{path}: one of {count} parts, of which {missing[0]} is missing beside it")
    return f"{match['stem']}{match['suffix']}", parts


def _index_parts(path: Path) -> tuple[Path, ...]:
    with open(path, "rb") as file:
        data = file.read(_MAX_INDEX_BYTES + 1)
    try:
        index = json.loads(data) if len(data) <= _MAX_INDEX_BYTES else None
    except (ValueError, RecursionError):
        index = None
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise HeaderError(f'{path}: not an index (a JSON object with a "weight_map" of file names)')
    names = sorted(set(weights.values()))
    for name in names:
        # Only names of files beside the index: a path could lead anywhere on the machine.
        if Path(name).name != name or name in ("", ".", ".."):
            raise HeaderError(f"{path}: names the file {shown(name)}, which is not beside it")
    if not 1 <= len(names) <= _MAX_SHARDS:
        raise HeaderError(f"{path}: names {len(names)} files; 1 to {_MAX_SHARDS} are allowed")
    return tuple(path.with_name(name) for name in names)


def _tensors(name: str, parts: tuple[Path, ...]) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        with open(part, "rb") as file:
            is_gguf = file.read(4) == MAGIC
        for tensor in read_gguf_header(part) if is_gguf else read_safetensors_header(part):
            if tensor.name in tensors:
                where = f"{tensors[tensor.name].path.name} and {part.name}"
                raise HeaderError(f"{name}: tensor {shown(tensor.name)} is in both {where}")
            tensors[tensor.name] = tensor
    return tuple(tensors.values())
