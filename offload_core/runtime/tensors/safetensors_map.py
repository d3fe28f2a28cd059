"""Gives a module the weights of a safetensors file without reading them: its parameters look into the mapped file."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import safetensors
import torch
from torch import nn

from ...errors import OffloadError
from ...files.safetensors_header import read_safetensors_header
from ..files.weight_file import FileSlice, WeightFile, lies_in_file

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}


def is_mapping_failure(error: BaseException) -> bool:
    """Whether a reader of safetensors files failed because the system would not map so large a file for it."""
    return isinstance(error, (RuntimeError, OSError, MemoryError)) and ("mmap" in str(error) or "mapping" in str(error))


def mapped_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, over a mapping that reserves no memory.

    The usual readers' mapping is refused by a system that accounts for writable memory if the file is larger than it. A
    write goes to a private page; on Windows the tensors are read-only. Raises HeaderError and OSError as
    `tensor_places`, OffloadError for a type that torch lacks.
    """
    tensors = read_safetensors_header(Path(path))
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            raise OffloadError(
                f"asked to map {path}; found {tensor.name} of type {tensor.dtype}; use a file without it"
            )
    with open(path, "rb") as file:
        data = os.fstat(file.fileno()).st_size - (tensors[-1].end if tensors else 0)
        if sys.platform != "win32":
            flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
        else:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = {}
    for tensor in tensors:
        dtype = _TYPES[tensor.dtype]
        if not tensor.bytes:
            mapped[tensor.name] = torch.empty(tensor.shape, dtype=dtype)
            continue
        flat = torch.frombuffer(mapping, dtype=dtype, count=tensor.elements, offset=data + tensor.start)
        mapped[tensor.name] = flat.view(tensor.shape)
    return mapped


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """The metadata of a safetensors file. Its tensors are not mapped."""
    with safetensors.safe_open(path, framework="np") as file:
        metadata: dict[str, str] | None = file.metadata()
    return metadata


def tensor_places(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """(first byte, number of bytes) of each tensor of a safetensors file, by name. Raises HeaderError for an invalid
    file, OSError for one that cannot be read."""
    tensors = read_safetensors_header(Path(path))
    data = os.path.getsize(path) - (tensors[-1].end if tensors else 0)
    return {tensor.name: (data + tensor.start, tensor.bytes) for tensor in tensors}


def with_strides(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor | None:
    """The same elements in the same memory, with other strides; None if these would reorder them. Memory formats also
    differ in the strides of sizes of 1 (1x1 kernels), by which convolutions choose their algorithm."""
    if tensor.stride() == stride:
        return tensor
    laid_out = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device="meta")
    if not (tensor.is_contiguous() and laid_out.is_contiguous()):
        return None
    return tensor.as_strided(tensor.shape, stride)


def weights_from_file(module: nn.Module, path: str | os.PathLike[str]) -> WeightFile:
    """Point every parameter of `module` at the tensor of its name in the file at `path`.

    A parameter keeps its type and its strides: one whose elements are in another order than in the file
    (`torch.channels_last`) is copied into memory now. A meta parameter takes the file's type and strides. Raises
    OffloadError for a parameter that the file lacks or has in another shape.
    """
    file, places = WeightFile(path), tensor_places(path)
    with safetensors.safe_open(path, framework="pt", device="cpu") as tensors:
        for owner_name, owner in module.named_modules():
            for name, parameter in list(owner.named_parameters(recurse=False)):
                full = f"{owner_name}.{name}" if owner_name else name
                if full not in places:
                    raise OffloadError(f"asked to take {full} from {path}; found no tensor of that name in it")
                mapped = tensors.get_tensor(full)
                if mapped.shape != parameter.shape:
                    shapes = f"{tuple(mapped.shape)} in the file and {tuple(parameter.shape)} in the model"
                    raise OffloadError(f"asked to take {full} from {path}; found {shapes}; use the model's own file")
                wanted = mapped.dtype if parameter.is_meta else parameter.dtype
                as_built = mapped if parameter.is_meta else with_strides(mapped, parameter.stride())
                place = FileSlice(file, *places[full], mapped.dtype, mapped if as_built is None else as_built)
                with torch.no_grad():
                    if as_built is None:
                        parameter.copy_(place.in_memory(wanted))
                        continue
                    if parameter.is_meta:
                        parameter = nn.Parameter(mapped, requires_grad=False)
                        owner.register_parameter(name, parameter)
                    else:
                        parameter.data = as_built
                lies_in_file(parameter, place, wanted)
    file.check()
    return file
