"""The tensors of a safetensors file, from its header alone, which is not trusted. Knows nothing about models."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OffloadError, shown
from ..fields import MAX_BYTES, no_duplicates

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1_000_000
_MAX_DIMENSIONS = 16
_MAX_NAME_CHARS = 4096
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


class HeaderError(OffloadError, ValueError):
    """A file with a malformed header. The message names the file and the error in one line."""


class LengthError(HeaderError):
    """A file with a valid header that is longer or shorter than the header says. The message says what to do."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `start` and `end` are byte positions in the data part of the file at `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    path: Path

    @property
    def bytes(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> tuple[TensorInfo, ...]:
    """The tensors of a safetensors file, in the order of their data.

    Reads the header only. Raises HeaderError for a malformed header, OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if len(head) < 8:
            raise HeaderError(f"{path}: {size} bytes are too few for a safetensors file (8 at least)")
        length = int.from_bytes(head, "little")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(f"{path}: says its header has {length} bytes; {MAX_HEADER_BYTES} are allowed")
        if length < 2 or 8 + length > size:
            raise HeaderError(f"{path}: says its header has {length} bytes; the file has {size}")
        text = file.read(length)
    if len(text) != length:
        raise HeaderError(f"{path}: ended while its header was read")
    entries = _parse(path, text)
    return checked_tensors(path, [_tensor(path, name, entry) for name, entry in entries.items()], size - 8 - length)


def checked_tensors(path: Path, tensors: list[TensorInfo], data_bytes: int) -> tuple[TensorInfo, ...]:
    """The tensors in the order of their data. `data_bytes`: bytes of the file after its header.

    Raises HeaderError if tensors overlap or leave a hole, LengthError if they have more or less than `data_bytes`.
    """
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise HeaderError(f"{path}: tensor {shown(tensor.name)} starts at byte {tensor.start} and {what}")
        position = tensor.end
    missing = position - data_bytes
    if missing > 0:
        raise LengthError(
            f"{path}: truncated: {missing} of its tensors' {position} bytes are missing; get the file again"
        )
    if missing < 0:
        raise LengthError(
            f"{path}: too long: {-missing} bytes lie behind its last tensor. Its tensors are complete, so do not get "
            f"it again: cut its last {-missing} bytes off, or save its tensors anew"
        )
    return tuple(tensors)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        once = no_duplicates(lambda key: HeaderError(f"{path}: {shown(key)} is in the header twice"))
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except HeaderError:
        raise
    except RecursionError:
        raise HeaderError(f"{path}: its header is nested too deeply") from None
    except ValueError as error:
        raise HeaderError(f"{path}: its header is not JSON in UTF-8 ({shown(str(error))})") from None
    if not isinstance(header, dict):
        raise HeaderError(f"{path}: its header is {shown(header)}, not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"{path}: __metadata__ is {shown(metadata)}, not an object of texts")
    if len(header) > MAX_TENSORS:
        raise HeaderError(f"{path}: {len(header)} tensors; {MAX_TENSORS} are allowed")
    return header


def _tensor(path: Path, name: str, entry: object) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
        raise HeaderError(f"{where}: not a name (1 to {_MAX_NAME_CHARS} printable characters)")
    if not isinstance(entry, dict):
        raise HeaderError(f"{where}: described by {shown(entry)}, not by a JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise HeaderError(f"{where}: dtype {shown(dtype)} is not one this format has")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise HeaderError(f"{where}: shape {shown(shape)} is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)) or offsets[0] > offsets[1]:
        raise HeaderError(f"{where}: data_offsets {shown(offsets)} are not a start and an end")
    tensor = TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1], path)
    bits = tensor.elements * _DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != tensor.bytes:
        raise HeaderError(f"{where}: shape {shown(shape)} of {dtype} does not have {tensor.bytes} bytes")
    return tensor


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BYTES
