"""Makes the app's loaders leave weights in the mapped file, and locates each parameter in its file.

With `is_dynamic()` true during a load (see `patcher.py`) the app assigns the file's tensors instead of copying them.
The app's reader is wrapped for the length of the load, so that a parameter's address gives file and offset. After the
load every parameter gets the type and the strides that it was built with, as the app's own copy would give it.
"""

from __future__ import annotations

import bisect
import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import comfy.clip_vision
import comfy.utils
import torch
from torch import nn

from ...offload_core.errors import OffloadError
from ...offload_core.runtime.files.weight_file import FileSlice, WeightFile, lies_in_file
from ...offload_core.runtime.tensors.parts import UnmovableTensor, bring_into_memory, is_plain, parts_of
from ...offload_core.runtime.tensors.safetensors_map import (
    is_mapping_failure,
    mapped_tensors,
    metadata_of,
    tensor_places,
    with_strides,
)
from ..app import compat

log = logging.getLogger(__name__)

_READER = "load_torch_file"
"""The app's reader of weight files; `comfy.clip_vision` has imported the name."""


class Built(NamedTuple):
    """Type, shape and strides of a model's tensor before the file's was assigned; a copy into it would keep them."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Built:
        return cls(tensor.dtype, tensor.shape, tensor.stride())

    def for_file(self, tensor: torch.Tensor) -> Built:
        """The layout for a tensor of the file: the file's shape and strides where they differ in shape or are empty."""
        if self.shape == tensor.shape and 0 not in self.stride:
            return self
        return Built(self.dtype, tensor.shape, tensor.stride())


class MappedFiles:
    """The tensors that the app has mapped during one load, by address."""

    def __init__(self) -> None:
        self._slices: list[tuple[int, int, FileSlice]] = []
        self._files: list[WeightFile] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """In the block, record what the app's loaders read. One load at a time (`patcher_class`). FileReadError."""
        load = comfy.utils.load_torch_file
        places = [place for place in (comfy.utils, comfy.clip_vision) if getattr(place, _READER, None) is load]

        def noting(ckpt: Any, *args: Any, **kwargs: Any) -> Any:
            opened = _open(ckpt)  # before the app reads, so that a later change of the file is noticed
            try:
                result = load(ckpt, *args, **kwargs)
            except (RuntimeError, OSError, MemoryError) as error:
                if opened is None or not is_mapping_failure(error):
                    raise
                log.info("Layerwise Offload: %s is mapped without memory set aside for it: %s", ckpt, error)
                wants = inspect.signature(load).bind(ckpt, *args, **kwargs).arguments
                result = mapped_tensors(ckpt)
                if wants.get("return_metadata"):
                    result = (result, metadata_of(ckpt))
            content = result[0] if isinstance(result, tuple) else result
            if opened is not None:
                self._note(*opened, content)
            return result

        for place in places:
            setattr(place, _READER, noting)
        try:
            yield
        finally:
            for place in places:
                setattr(place, _READER, load)
        self._slices.sort(key=lambda entry: entry[0])
        for file in self._files:
            file.check()

    def _note(self, file: WeightFile, places: dict[str, tuple[int, int]], content: dict[str, Any]) -> None:
        for name, (offset, nbytes) in places.items():
            tensor = content.get(name)
            if type(tensor) is torch.Tensor and nbytes and tensor.numel() * tensor.element_size() == nbytes:
                start = tensor.data_ptr()
                self._slices.append((start, start + nbytes, FileSlice(file, offset, nbytes, tensor.dtype, tensor)))
        self._files.append(file)

    def slice_of(self, tensor: torch.Tensor) -> FileSlice | None:
        """The part of a file that holds `tensor`; None if it is not a contiguous range of one mapped tensor."""
        if type(tensor) not in (torch.Tensor, nn.Parameter) or not tensor.numel() or tensor.device.type != "cpu":
            return None
        mapped, address = self.range_of(tensor), tensor.data_ptr()
        nbytes = tensor.numel() * tensor.element_size()
        if mapped is None or address + nbytes > mapped[1] or not tensor.is_contiguous():
            return None
        start, _, whole = mapped
        return FileSlice(whole.file, whole.offset + address - start, nbytes, tensor.dtype, tensor.detach())

    def range_of(self, tensor: torch.Tensor) -> tuple[int, int, FileSlice] | None:
        """(address, end, place) of the mapped tensor in which `tensor` begins; None if it is in no mapped file."""
        address = tensor.data_ptr()
        position = bisect.bisect_right(self._slices, address, key=lambda entry: entry[0]) - 1
        inside = position >= 0 and address < self._slices[position][1]
        return self._slices[position] if inside else None


def _open(path: Any) -> tuple[WeightFile, dict[str, tuple[int, int]]] | None:
    """The file and (offset, bytes) of its tensors by name; None if it is no readable safetensors file."""
    if not str(path).lower().endswith((".safetensors", ".sft")):
        return None
    try:
        return WeightFile(path), tensor_places(path)
    except (OffloadError, OSError) as error:
        log.debug("Layerwise Offload: %s is not left in its file: %s", path, error)
        return None


def settle_types_and_strides(
    model: nn.Module, built: Mapping[str, Built], files: MappedFiles, leave: bool, convert: bool
) -> None:
    """Give the mapped parameters of a freshly loaded model their built type and strides, in the file or in memory.

    built: the layouts of parameters and buffers before the file's were assigned. leave: weights may stay in the file.
    convert: weights of another type than the file's are converted now; otherwise when they are read. Weights whose
    strides differ from the file's (`--force-channels-last`) and buffers are copied into memory. Raises FileReadError.
    """
    for owner_name, owner in model.named_modules():
        prefix = f"{owner_name}." if owner_name else ""
        for name, parameter in list(owner._parameters.items()):
            if parameter is None or parameter.is_meta:
                continue
            if is_plain(parameter):
                # A layer that the app builds without its weight (for Dynamic VRAM) has the type in this attribute.
                dtype = getattr(owner, f"{name}_comfy_model_dtype", None) or parameter.dtype
                before = built.get(prefix + name, Built.of(parameter)._replace(dtype=dtype))
                _settle_tensor(parameter, before.for_file(parameter), files, leave, convert)
                continue
            with contextlib.suppress(UnmovableTensor):  # a tensor type that cannot be taken apart stays as loaded
                for leaf in parts_of(parameter).leaves:
                    _settle_tensor(leaf, Built.of(leaf), files, leave, convert)
        for name, buffer in owner._buffers.items():
            if buffer is not None and is_plain(buffer) and files.range_of(buffer) is not None:
                before = built.get(prefix + name, Built.of(buffer))
                owner._buffers[name] = _in_memory(buffer, before.for_file(buffer), files)


def _settle_tensor(tensor: torch.Tensor, built: Built, files: MappedFiles, leave: bool, convert: bool) -> None:
    if files.range_of(tensor) is None:
        return
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        as_built = with_strides(tensor.data, built.stride)
        if as_built is not None and tensor.stride() != built.stride:
            tensor.data = as_built
        part = files.slice_of(tensor)
        stays = leave and as_built is not None and (built.dtype == tensor.dtype or not convert)
        if stays and part is not None:
            lies_in_file(tensor, part, built.dtype)
        else:
            tensor.data = _in_memory(tensor.data, built, files)


def _in_memory(tensor: torch.Tensor, built: Built, files: MappedFiles) -> torch.Tensor:
    """A copy of `tensor` in memory, of the built type and strides.

    Read from the file where possible: pages that are touched through the mapping would stay resident.
    """
    part = files.slice_of(tensor)
    value = tensor.to(built.dtype, copy=True) if part is None else part.in_memory(built.dtype)
    as_built = with_strides(value, built.stride)
    if as_built is None:
        as_built = torch.empty_strided(value.shape, built.stride, dtype=value.dtype).copy_(value)
    return as_built


def fill_in_missing(model: nn.Module) -> None:
    """Initialise weights that no file had, as the app does when it loads a module."""
    zero_init = compat.find(compat.FILL_IN_WEIGHT)
    if zero_init is not None:
        for module in model.modules():
            if hasattr(module, "comfy_cast_weights"):
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.is_meta:
                        zero_init(module, name)


def bring_weights_into_memory(model: nn.Module) -> None:
    """Copy all weights out of their file into memory, for a model that the app is about to move itself."""
    for parameter in model.parameters():
        bring_into_memory(parameter)
