"""Host masters: one flat byte buffer per layer, the only copy of a streamed layer's weights on the host.

A layer's tensors are laid end to end, each aligned and with its original strides, so that one copy of bytes moves the
layer and a view at the same offset of any other byte buffer is the same tensor there. The parameters of the module
are re-pointed into the buffer; they stay the same objects. Masters never change while a model runs and are never
copied back. The module knows nothing about devices beyond the port that hands out host memory.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .device_port import DevicePort
from .host_parameter import OutsideTouches, adopt, release

TENSOR_ALIGNMENT = 256
"""Bytes. Vectorised and tensor-core kernels want 16 to 128; fp8 kernels have failed at 32. Costs nothing per layer."""

ALLOCATION_BYTES = 512
"""Device allocators hand out multiples of this: a budget that is kept to the byte has to count what is taken."""


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies in its layer's buffer."""

    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor, as a view into `buffer`, a flat byte tensor that holds the whole layer."""
        return self._view(buffer[self.offset : self.offset + self.nbytes])

    def host_view(self, buffer: torch.Tensor) -> torch.Tensor:
        """The same for a host buffer, with a storage of its own over the tensor's bytes.

        Tensors of one storage cannot be saved by torch if their types differ, and each counts for all of it.
        """
        if not self.nbytes:
            return self._view(torch.empty(0, dtype=torch.uint8))
        memory = (ctypes.c_ubyte * self.nbytes).from_address(buffer.data_ptr() + self.offset)
        memory.owner = buffer  # type: ignore[attr-defined]  # the new storage keeps `memory` alive, and that the bytes
        return self._view(torch.frombuffer(memory, dtype=torch.uint8))

    def _view(self, own_bytes: torch.Tensor) -> torch.Tensor:
        typed = own_bytes.view(self.dtype)
        return torch.as_strided(typed, self.shape, self.stride, typed.storage_offset())


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The slots of a layer, in the order of its parameters, and the bytes of the buffer that holds them."""

    slots: tuple[TensorSlot, ...]
    nbytes: int


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether moving the bytes of `tensor` moves the tensor: an ordinary dense one, nothing wrapped, nothing lazy."""
    return (
        type(tensor) in (nn.Parameter, torch.Tensor)
        and tensor.layout == torch.strided
        and not (tensor.is_meta or tensor.is_conj() or tensor.is_neg())
    )


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first to its last element; more than its elements where the strides leave gaps."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def copy_span(destination: torch.Tensor, source: torch.Tensor) -> None:
    """Copy what lies between the first and the last element of two tensors of the same shape, type and strides.

    As flat memory, because tensors whose elements lie on top of each other (expanded ones) cannot be written to.
    """
    length = span_bytes(source) // source.element_size()
    flat = [torch.as_strided(tensor, (length,), (1,), tensor.storage_offset()) for tensor in (destination, source)]
    flat[0].copy_(flat[1])


def layout_of(tensors: Sequence[torch.Tensor]) -> LayerLayout:
    """Lay the tensors end to end. Holes inside a tensor's strides are kept as they are."""
    slots, end = [], 0
    for tensor in tensors:
        nbytes = span_bytes(tensor)
        slots.append(TensorSlot(end, nbytes, tensor.dtype, tensor.shape, tensor.stride()))
        end = _aligned(end + nbytes)
    return LayerLayout(tuple(slots), -(-end // ALLOCATION_BYTES) * ALLOCATION_BYTES)


class HostLayer:
    """The host master of one layer."""

    __slots__ = ("_originals", "buffer", "layout", "parameters", "pinned", "touches")

    def __init__(self, parameters: list[nn.Parameter], port: DevicePort, pinned: bool) -> None:
        """Copy `parameters` (plain, on the CPU, each once) into a buffer of the port's and re-point them into it."""
        self.layout = layout_of(parameters)
        self.parameters = parameters
        self.touches = OutsideTouches()
        with torch.inference_mode(False):
            self.buffer, self.pinned = port.host_empty(self.layout.nbytes, pinned)
        for slot, parameter in zip(self.layout.slots, parameters):
            with _mode_of(parameter):
                view = slot.host_view(self.buffer)
                copy_span(view, parameter.data)
                parameter.data = view

    def take_hold(self) -> None:
        """From now on the parameters lend their values (see `HostParameter`)."""
        for parameter in self.parameters:
            adopt(parameter, self.touches)

    def let_go(self) -> None:
        """The parameters are plain ones again, still looking into the buffer."""
        for parameter in self.parameters:
            release(parameter)

    def reclaim(self, position: int, parameter: nn.Parameter) -> bool:
        """Make sure that `parameter` is the master at `position`, after somebody else may have moved or replaced it.

        Its value is taken over. False if it no longer has the shape and type the layer was planned with, or lies
        elsewhere and cannot be written into the master because the master's elements lie on top of each other.
        """
        slot = self.layout.slots[position]
        if parameter.shape != slot.shape or parameter.dtype != slot.dtype or not is_plain(parameter):
            return False
        with _mode_of(parameter):
            view = slot.host_view(self.buffer)
            if parameter.device.type != "cpu" or parameter.data_ptr() != view.data_ptr():
                if any(step == 0 and size > 1 for step, size in zip(slot.stride, slot.shape)):
                    return False
                view.copy_(parameter.data)
                if parameter.device.type != "cpu":  # torch lets no back end's tensor change places with a CPU one
                    parameter = nn.Parameter(view, requires_grad=False)
                else:
                    parameter.data = view
        self.parameters[position] = parameter
        return True

    def write(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Change a master. The caller has made sure that nothing is in flight from it and no copy of it is in use."""
        with _mode_of(parameter), torch._C.DisableTorchFunctionSubclass():
            parameter.data.copy_(value)

    def device_views(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """The layer's parameters as views into a device buffer: built once per plan, swapped in on every visit."""
        with torch.inference_mode(False), torch.no_grad():
            return [nn.Parameter(slot.view(buffer), requires_grad=False) for slot in self.layout.slots]


@contextlib.contextmanager
def _mode_of(parameter: torch.Tensor) -> Iterator[None]:
    """What was made in inference mode can only be written to there, and takes no data made outside of it."""
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        yield


def _aligned(nbytes: int) -> int:
    return -(-nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
