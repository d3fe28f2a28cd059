"""Gives a module the weights of a safetensors file without reading them: its parameters look into the mapped file.

What is streamed is then read from there, layer by layer, by `weight_file`; what is not is read when it is first used.
Knows nothing about the app, whose own loaders are `bridge/loading.py`'s business.
"""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
import torch
from torch import nn

from ..errors import OffloadError
from ..safetensors_header import read_safetensors_header
from .weight_file import FileSlice, WeightFile, lies_in_file


def tensor_places(path: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """First byte in the file and number of bytes of each tensor of a safetensors file, by its name.

    Raises HeaderError for a file that is not sound, OSError for one that cannot be read.
    """
    tensors = read_safetensors_header(Path(path))
    data = os.path.getsize(path) - (tensors[-1].end if tensors else 0)
    return {tensor.name: (data + tensor.start, tensor.bytes) for tensor in tensors}


def weights_from_file(module: nn.Module, path: str | os.PathLike[str]) -> WeightFile:
    """Point every parameter of `module` at the tensor of its name in the file at `path`.

    A parameter keeps the type it had (converted when it is read); one that is on meta takes the file's. Raises
    OffloadError for a parameter that the file has not, or has in another shape.
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
                    found = f"{tuple(mapped.shape)} in the file and {tuple(parameter.shape)} in the model"
                    raise OffloadError(f"asked to take {full} from {path}; found {found}; use the model's own file")
                wanted = mapped.dtype if parameter.is_meta else parameter.dtype
                with torch.no_grad():
                    if parameter.is_meta:
                        parameter = nn.Parameter(mapped, requires_grad=False)
                        owner.register_parameter(name, parameter)
                    else:
                        parameter.data = mapped
                lies_in_file(parameter, FileSlice(file, *places[full], mapped.dtype, mapped), wanted)
    file.check()
    return file
