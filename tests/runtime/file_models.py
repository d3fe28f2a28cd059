"""Toy models whose weights lie in a safetensors file, and a reader that the race check can see."""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path

import pytest
import safetensors.torch
import torch

from offload_core.runtime.files.weight_file import WeightFile
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.support.tiny_torch_models import Model


def saved(model: torch.nn.Module, path: Path, dtype: torch.dtype | None = None) -> Path:
    """Write the parameters of `model` to a file, in their own types or floating ones in `dtype`."""
    tensors = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().clone().contiguous()
        tensors[name] = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    safetensors.torch.save_file(tensors, path)
    return path


def from_file(kilobytes: list[int], path: Path, dtype: torch.dtype | None = None) -> tuple[Model, Model, WeightFile]:
    """A toy model whose parameters lie in the file at `path`, its plain twin, and the file."""
    model = Model(kilobytes)
    saved(model, path, dtype)
    twin = copy.deepcopy(model)
    if dtype is not None:
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return model, twin, weights_from_file(model, path)


def visible_reads(patch: pytest.MonkeyPatch) -> None:
    """Reads of files become operations of torch's, which the race check sees."""
    real = WeightFile.read_into

    def read_into(self: WeightFile, address: int, nbytes: int, offset: int) -> None:
        content = torch.empty(nbytes, dtype=torch.uint8)
        real(self, content.data_ptr(), nbytes, offset)
        memory = (ctypes.c_ubyte * nbytes).from_address(address)
        torch.frombuffer(memory, dtype=torch.uint8).copy_(content)

    patch.setattr(WeightFile, "read_into", read_into)
