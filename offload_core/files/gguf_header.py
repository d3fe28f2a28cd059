"""The tensors of a GGUF file, from its header alone, which is not trusted.

No memory is allocated by counts or lengths of the header: it is read value by value, and each length is checked against
the rest of the file. Knows nothing about models.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import shown
from .safetensors_header import MAX_TENSORS, HeaderError, LengthError, TensorInfo

MAGIC = b"GGUF"
_MAX_HEADER_BYTES = 256_000_000
_MAX_VALUES = 100_000
_MAX_TEXT_BYTES = 1 << 20
_MAX_DEPTH = 4
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# type number: (name, values in a block, bytes of a block)
_TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


def read_gguf_header(path: Path) -> tuple[TensorInfo, ...]:
    """The tensors of a GGUF file (versions 2 and 3), in the order of their data.

    Raises HeaderError for a malformed header, OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != MAGIC:
            raise HeaderError(f"{path}: not a GGUF file")
        version = reader.number(4)
        if version not in (2, 3):
            raise HeaderError(f"{path}: GGUF version {version}; 2 and 3 are understood")
        tensor_count, value_count = reader.number(8), reader.number(8)
        if tensor_count > MAX_TENSORS or value_count > _MAX_VALUES:
            raise HeaderError(f"{path}: says it has {tensor_count} tensors and {value_count} values, too many")
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(value_count):
            key, value = reader.text(), reader.value(reader.number(4))
            if key == "general.alignment" and isinstance(value, int):
                alignment = value
        if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise HeaderError(f"{path}: general.alignment is {alignment}, not a power of two")
        tensors = [_tensor(path, reader) for _ in range(tensor_count)]
        data_bytes = reader.size - -(-reader.position // alignment) * alignment
    return _checked(path, tensors, alignment, data_bytes)


class _Reader:
    """Reads a file forwards. Raises HeaderError instead of reading past its end or the limit for headers."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._file = file

    def take(self, count: int) -> bytes:
        self._reserve(count)
        data = self._file.read(count)
        if len(data) != count:
            raise HeaderError(f"{self.path}: ended while its header was read")
        return data

    def skip(self, count: int) -> None:
        self._reserve(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, count: int) -> int:
        """One unsigned integer of `count` bytes."""
        return int.from_bytes(self.take(count), "little")

    def text(self) -> str:
        length = self.number(8)
        if length > _MAX_TEXT_BYTES:
            raise HeaderError(f"{self.path}: a text of {length} bytes in the header; {_MAX_TEXT_BYTES} are allowed")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> int | None:
        """One value, if it is an unsigned 32-bit integer; any other is skipped, and None returned."""
        if kind == 4:
            return self.number(4)
        if kind in _VALUE_BYTES:
            self.skip(_VALUE_BYTES[kind])
        elif kind == _STRING:
            self.skip(self.number(8))
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            self._array(depth)
        else:
            raise HeaderError(f"{self.path}: a value of unknown type {kind} in the header")
        return None

    def _array(self, depth: int) -> None:
        kind, count = self.number(4), self.number(8)
        if kind in _VALUE_BYTES:
            self.skip(count * _VALUE_BYTES[kind])
            return
        # Every item (a text or an array) has four bytes at least: a count that is too large is refused at once.
        if count > (self.size - self.position) // 4:
            raise HeaderError(f"{self.path}: says an array has {count} items; the file is shorter than that")
        for _ in range(count):
            self.value(kind, depth + 1)

    def _reserve(self, count: int) -> None:
        self.position += count
        if self.position > self.size:
            raise HeaderError(f"{self.path}: truncated: its header goes on to byte {self.position}, it has {self.size}")
        if self.position > _MAX_HEADER_BYTES:
            raise HeaderError(f"{self.path}: its header is longer than {_MAX_HEADER_BYTES} bytes")


def _tensor(path: Path, reader: _Reader) -> TensorInfo:
    name = reader.text()
    where = f"{path}: tensor {shown(name)}"
    if not name or not name.isprintable():
        raise HeaderError(f"{where}: not a name")
    dimensions = reader.number(4)
    if dimensions > 8:
        raise HeaderError(f"{where}: {dimensions} dimensions; 8 are allowed")
    shape = tuple(reader.number(8) for _ in range(dimensions))
    kind, offset = reader.number(4), reader.number(8)
    if kind not in _TENSOR_TYPES:
        raise HeaderError(f"{where}: type {kind} is not known")
    dtype, block_values, block_bytes = _TENSOR_TYPES[kind]
    elements = math.prod(shape)
    if elements % block_values or (shape and shape[0] % block_values):
        raise HeaderError(f"{where}: shape {shown(shape)} is not whole blocks of {dtype}")
    return TensorInfo(name, dtype, shape[::-1], offset, offset + elements // block_values * block_bytes, path)


def _checked(path: Path, tensors: list[TensorInfo], alignment: int, data_bytes: int) -> tuple[TensorInfo, ...]:
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    position, seen = 0, set()
    for tensor in tensors:
        where = f"{path}: tensor {shown(tensor.name)}"
        if tensor.name in seen:
            raise HeaderError(f"{where} is in the header twice")
        if tensor.start < position or tensor.start % alignment:
            raise HeaderError(f"{where} starts at byte {tensor.start}, inside another or askew")
        if tensor.end > data_bytes:
            missing = tensor.end - data_bytes
            raise LengthError(f"{where}: the file is truncated, {missing} bytes of it are missing; get the file again")
        seen.add(tensor.name)
        position = tensor.end
    return tuple(tensors)
