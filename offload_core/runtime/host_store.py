"""Host masters: one flat byte buffer per layer, the only copy of a streamed layer's weights on the host.

A layer's tensors are laid end to end, each aligned and with its original strides, so that one copy of bytes moves the
layer and a view at the same offset of any other byte buffer is the same tensor there. Wrapped ones (quantised weights)
are laid down as the plain tensors they are made of (`parts.py`). The parameters of the module are re-pointed into the
buffer; they stay the same objects. A layer whose tensors lie in a file may do without a buffer (the tier `mapped`):
its parameters show the file's values, and its bytes are read from there. Masters never change while a model runs and
are never copied back. The module knows nothing about devices beyond the port that hands out host memory.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..plan import HostTier
from .device_port import DevicePort
from .host_parameter import OutsideTouches, adopt, release
from .host_source import ByteSource, FileSource, MemorySource
from .parts import Parts, UnmovableTensor, parts_of, plain
from .weight_file import FileSlice, dtype_of, forget_file, slice_of

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
    """The slots of a layer, one for each plain tensor, and the bytes of the buffer that holds them."""

    slots: tuple[TensorSlot, ...]
    nbytes: int


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


class Flattened:
    """Tensors as the plain ones they are made of, each of those once, and where these lie when laid end to end."""

    __slots__ = ("layout", "leaves", "parts", "places")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Raises UnmovableTensor if one of them cannot be moved as bytes."""
        self.parts = [parts_of(tensor) for tensor in tensors]
        positions: dict[int, int] = {}
        self.leaves: list[torch.Tensor] = []
        for parts in self.parts:
            for leaf in parts.leaves:
                if id(leaf) not in positions:
                    positions[id(leaf)] = len(self.leaves)
                    self.leaves.append(leaf)
        self.places = [tuple(positions[id(leaf)] for leaf in parts.leaves) for parts in self.parts]
        """For each tensor, which slots its parts lie in."""
        self.layout = layout_of([_in_memory(leaf) for leaf in self.leaves])

    def views(self, buffer: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each tensor, its parts as views into `buffer`."""
        views = [slot.view(buffer) for slot in self.layout.slots]
        return [[views[place] for place in places] for places in self.places]


def _in_memory(leaf: torch.Tensor) -> torch.Tensor:
    """`leaf`, or a stand-in of its shape for one that lies in a file in another type than it is to have."""
    dtype = dtype_of(leaf)
    return plain(leaf) if dtype == leaf.dtype else torch.empty(leaf.shape, dtype=dtype, device="meta")


def _file_slices(flat: Flattened) -> list[FileSlice] | None:
    """Where each tensor lies in its file; None unless all do, in a form that can be read as it is."""
    found = [slice_of(leaf) for leaf in flat.leaves]
    slices = [part for part in found if part is not None]
    if not slices or len(slices) != len(found):
        return None
    for slot, part in zip(flat.layout.slots, slices):
        contiguous = part.mapped.is_contiguous() and slot.nbytes == slot.shape.numel() * slot.dtype.itemsize
        if not (contiguous if slot.dtype != part.dtype else part.nbytes == slot.nbytes):
            return None
    return slices


def lies_whole_in_file(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether a layer of these can do without a copy in memory."""
    return any(slice_of(parameter) for parameter in parameters) and _file_slices(Flattened(parameters)) is not None


class HostLayer:
    """The host master of one layer: a buffer of its own, page-locked or not, or the file that its tensors lie in."""

    __slots__ = ("_flat", "_port", "_slices", "buffer", "generation", "locked", "parameters", "source", "touches")

    def __init__(self, parameters: list[nn.Parameter], port: DevicePort, pinned: bool) -> None:
        """`parameters` are on the CPU, each once, each movable.

        Where all of them lie in files they stay there, until `move_to`; else they are copied into a buffer of the
        port's and re-pointed.
        """
        self._flat = Flattened(parameters)
        self._port = port
        self.parameters = parameters
        self.generation = 0
        """Counts how often a master got other bytes: what was derived from the ones before is out of date."""
        self.touches = OutsideTouches()
        self.buffer: torch.Tensor | None = None
        self.locked: list[torch.Tensor] = []
        """The buffer, while it is page-locked. Whoever is to end that when we are gone holds this list, and no more."""
        self.source: ByteSource | None = None
        """What to read the bytes from; None: `buffer` can be copied from as it is."""
        self._slices = _file_slices(self._flat)
        if self._slices is not None:
            self.source = FileSource(self.layout.slots, self._slices, self.layout.nbytes)
            return
        with torch.inference_mode(False):
            buffer, locked = port.host_empty(self.layout.nbytes, pinned)
        self.locked += [buffer] if locked else []
        for slot, leaf in zip(self.layout.slots, self._flat.leaves):
            with _mode_of(leaf):
                view = slot.host_view(buffer)
                view.copy_(plain(leaf).data) if leaf.dtype != slot.dtype else copy_span(view, plain(leaf).data)
                leaf.data = view
                forget_file(leaf)
        self._hold(buffer)

    @property
    def in_file(self) -> bool:
        """Whether the layer can do without a buffer: its tensors lie in files, with the values they have."""
        return self._slices is not None

    @property
    def pinned(self) -> bool:
        """Whether the buffer is page-locked."""
        return bool(self.locked)

    @property
    def tier(self) -> HostTier:
        """Where the bytes are now."""
        if self.buffer is None:
            return "mapped"
        return "pinned" if self.pinned else "pageable"

    def move_to(self, tier: HostTier) -> None:
        """Bring the bytes to `tier`, or to the next one that there is. Nothing is in flight from the layer.

        Page-locking that fails leaves it pageable; what is in no file stays in its buffer. Raises FileReadError.
        """
        if tier == "mapped" and self.in_file:
            self._leave_buffer()
            return
        if self.buffer is None:
            self._read_file(pinned=tier == "pinned")
        assert self.buffer is not None
        if tier == "pinned":
            self._lock(self.buffer)
        elif tier == "pageable":
            self.unlock()
        self._hold(self.buffer)

    def _read_file(self, pinned: bool) -> None:
        """From the file into a buffer of the port's. Read first, page-locked after: reading is what faults pages in."""
        assert self._slices is not None
        source = FileSource(self.layout.slots, self._slices, self.layout.nbytes)
        with torch.inference_mode(False):
            buffer, _ = self._port.host_empty(self.layout.nbytes, False)
            source.read(buffer, 0)
        self._point_into(buffer)
        if pinned:
            self._lock(buffer)
            assert self.buffer is not None
            self._hold(self.buffer)

    def _leave_buffer(self) -> None:
        if self.buffer is None:
            return
        assert self._slices is not None
        for part, leaf in zip(self._slices, self._flat.leaves):
            with _mode_of(leaf):
                leaf.data = part.mapped
        self.unlock()
        self.buffer = None
        self.source = FileSource(self.layout.slots, self._slices, self.layout.nbytes)

    def _hold(self, buffer: torch.Tensor) -> None:
        self.buffer = buffer
        self.source = MemorySource(buffer) if self._port.stages_unpinned and not self.pinned else None

    def own_bytes(self) -> torch.Tensor:
        """The layer's buffer, read from the file if it had none. From now on the file does not count any more."""
        if self.buffer is None:
            self._read_file(pinned=False)
        if self._slices is not None:
            for leaf in self._flat.leaves:
                forget_file(leaf)
            self._slices = None
        assert self.buffer is not None
        return self.buffer

    def _lock(self, buffer: torch.Tensor) -> None:
        """Page-lock the buffer in place; what a back end cannot do so is moved into a buffer that it has locked."""
        if self.locked:
            return
        if self._port.host_pin(buffer):
            self.locked.append(buffer)
        elif not self._port.pins_in_place:
            with torch.inference_mode(False), torch.no_grad():
                other, locked = self._port.host_empty(buffer.numel(), True)
                if locked:
                    other.copy_(buffer)
                    self._point_into(other)
                    self.locked.append(other)

    def _point_into(self, buffer: torch.Tensor) -> None:
        for slot, leaf in zip(self.layout.slots, self._flat.leaves):
            with _mode_of(leaf):
                leaf.data = slot.host_view(buffer)
        self._hold(buffer)

    def unlock(self) -> None:
        """End the page-lock, if there is one. The bytes stay."""
        for buffer in self.locked:
            self._port.host_release(buffer)
        self.locked.clear()

    @property
    def layout(self) -> LayerLayout:
        return self._flat.layout

    def take_hold(self) -> None:
        """From now on the parameters lend their values (see `HostParameter`)."""
        for parameter, parts in zip(self.parameters, self._flat.parts):
            adopt(parameter, self.touches, parts)

    def let_go(self) -> None:
        """The parameters are plain ones again, still looking into the buffer."""
        for parameter in self.parameters:
            release(parameter)

    def set_marks(self, parameter: nn.Parameter, values: Mapping[str, Any]) -> dict[str, Any]:
        """Other attributes for one of the parameters, and for what is built from it. Returns the values before."""
        position = next(index for index, own in enumerate(self.parameters) if own is parameter)
        vars(parameter).update(values)
        return self._flat.parts[position].set_marks(values)

    def reclaim(self, position: int, parameter: nn.Parameter) -> bool:
        """Make sure that `parameter` is the master at `position`, after somebody else may have moved or replaced it.

        Its value is taken over. False if it no longer has the shape and type the layer was planned with, or lies
        elsewhere and cannot be written into the master because the master's elements lie on top of each other.
        """
        try:
            parts = parts_of(parameter)
        except UnmovableTensor:
            return False
        places = self._flat.places[position]
        slots = [self.layout.slots[place] for place in places]
        if self.buffer is None and self._still_in_file(parts, places):
            return True
        if not parts.like(self._flat.parts[position]) or len(slots) != len(parts.leaves):
            return False
        if any(plain(leaf).shape != slot.shape or leaf.dtype != slot.dtype for leaf, slot in zip(parts.leaves, slots)):
            return False
        views = []
        buffer = self.buffer if self._holds(parts, slots) else self.own_bytes()
        assert buffer is not None
        for leaf, slot in zip(parts.leaves, slots):
            with _mode_of(leaf):
                view = slot.host_view(buffer)
                views.append(view)
                if leaf.device.type != "cpu" or leaf.data_ptr() != view.data_ptr():
                    if any(step == 0 and size > 1 for step, size in zip(slot.stride, slot.shape)):
                        return False
                    if not _same_bytes(view, plain(leaf).data):
                        self.generation += 1
                        view.copy_(plain(leaf).data)
                    if leaf.device.type == "cpu":
                        leaf.data = view
        if any(leaf.device.type != "cpu" for leaf in parts.leaves):
            with _mode_of(parts.leaves[0]):  # torch lets no back end's tensor change places with a CPU one
                parameter = parts.as_parameter(views)
            parts = parts_of(parameter)
        self.parameters[position] = parameter
        self._flat.parts[position] = parts
        for place, leaf in zip(places, parts.leaves):
            self._flat.leaves[place] = leaf
        return True

    def _still_in_file(self, parts: Parts, places: Sequence[int]) -> bool:
        """Whether a tensor still is the one that lies in the file."""
        return all(leaf is self._flat.leaves[place] and slice_of(leaf) for leaf, place in zip(parts.leaves, places))

    def _holds(self, parts: Parts, slots: Sequence[TensorSlot]) -> bool:
        """Whether a tensor looks into the buffer at its own place, so that there is nothing to be taken over."""
        if self.buffer is None:
            return False
        start = self.buffer.data_ptr()
        return all(
            leaf.device.type == "cpu" and (not slot.nbytes or leaf.data_ptr() == start + slot.offset)
            for leaf, slot in zip(parts.leaves, slots)
        )

    def write(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Change a master. The caller has made sure that nothing is in flight from it and no copy of it is in use."""
        self.own_bytes()
        position = next(index for index, own in enumerate(self.parameters) if own is parameter)
        mine = self._flat.parts[position]
        self.generation += 1
        for leaf, part in zip(mine.leaves, _parts_like(mine, value)):
            with _mode_of(leaf), torch._C.DisableTorchFunctionSubclass():
                plain(leaf).data.copy_(part)

    def device_views(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """The layer's parameters as views into a device buffer: built once per plan, swapped in on every visit."""
        with torch.inference_mode(False), torch.no_grad():
            views = self._flat.views(buffer)
            return [parts.as_parameter(own) for parts, own in zip(self._flat.parts, views)]


def _parts_like(mine: Parts, value: torch.Tensor) -> Sequence[torch.Tensor]:
    """The parts of a new value for a tensor. Raises UnmovableTensor if it is another kind of tensor."""
    theirs = parts_of(value)
    if len(theirs.leaves) != len(mine.leaves):
        raise UnmovableTensor(f"a {type(value).__name__} tensor of {len(theirs.leaves)} parts, not {len(mine.leaves)}")
    return [plain(leaf) for leaf in theirs.leaves]


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit: a NaN equals itself, and zeros of either sign differ."""
    if one.numel() == 0:
        return True
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.cpu().contiguous().view(-1).view(torch.uint8))


@contextlib.contextmanager
def _mode_of(parameter: torch.Tensor) -> Iterator[None]:
    """What was made in inference mode can only be written to there, and takes no data made outside of it."""
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        yield


def _aligned(nbytes: int) -> int:
    return -(-nbytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
