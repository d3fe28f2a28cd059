"""Host masters: one flat byte buffer per layer, the only copy of a streamed layer's weights on the host.

The module's parameters stay the same objects and get data in the buffer. A layer whose tensors lie in a file may do
without a buffer (the tier `mapped`): its parameters look into the mapped file. If it has a buffer, it is shared with
all layers of the same bytes (`masters.py`): the parameters look into it while the component is loaded and nothing else
writes to them, and into the file otherwise. A layer may have a copy in another device's memory too (the tier `peer`):
then it has no buffer if it lies in a file, and is copied from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import torch
from torch import nn

from ...planning.plan import HostTier
from ..device.device_port import DevicePort
from ..device.peer_memory import PeerMemory
from ..files.weight_file import FileReadError, FileSlice, forget_file, keep_what_was_written, slice_of
from ..tensors.host_source import ByteSource, FileSource, KeptPart, MemorySource, read_whole
from ..tensors.layout import Flattened, LayerLayout, copy_span
from ..tensors.parts import Parts, UnmovableTensor, parts_of, plain
from .host_parameter import OutsideTouches, adopt, release
from .masters import HostMaster, MasterUse, find

MAX_KEPT_SHARE = 4
"""A layer lies in a file if at most one byte in so many does not: nvfp4 weights have a scale per 16 elements."""


def _file_parts(flat: Flattened) -> list[FileSlice | KeptPart] | None:
    """Where each tensor lies in its file; None unless nearly all bytes do, in a form that can be read directly."""
    parts: list[FileSlice | KeptPart] = []
    kept = total = 0
    for slot, leaf in zip(flat.layout.slots, flat.leaves):
        part = slice_of(leaf)
        total += slot.nbytes
        whole = plain(leaf).is_contiguous() and slot.nbytes == slot.shape.numel() * slot.dtype.itemsize
        if part is None:
            if not whole or leaf.device.type != "cpu":
                return None
            kept += slot.nbytes
            with _mode_of(leaf):
                parts.append(KeptPart(plain(leaf).data))
        elif whole if slot.dtype != part.dtype else part.nbytes == slot.nbytes:
            parts.append(part)
        else:
            return None
    return parts if kept < total and kept * MAX_KEPT_SHARE <= total else None


def lies_whole_in_file(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether a layer of these parameters needs no copy in memory."""
    return _file_parts(Flattened(parameters)) is not None


class HostLayer:
    """The host master of one layer: a buffer, page-locked or not, or the file that holds its tensors."""

    __slots__ = (
        *("_file", "_flat", "_key", "_left_copy", "_port", "buffer", "generation", "parameters", "peer_copy", "source"),
        *("touches", "use"),
    )

    def __init__(self, parameters: list[nn.Parameter], port: DevicePort, pinned: bool) -> None:
        """`parameters` are on the CPU, each once, each movable. Where they lie in files they stay there until
        `move_to`; else they are copied into a buffer from the port."""
        self._flat = Flattened(parameters)
        self._port = port
        self.parameters = parameters
        self.generation = 0
        """Incremented whenever a master's bytes change: what was derived from older bytes is out of date."""
        self.touches = OutsideTouches()
        self.use = MasterUse()
        """Our use of the master."""
        self.buffer: torch.Tensor | None = None
        """The master's buffer; None in the tier `mapped`."""
        self.peer_copy: torch.Tensor | None = None
        """The copy in the memory of another device, of the master's values; None except in the tier `peer`."""
        self._left_copy: torch.Tensor | None = None
        """The copy there of values that have changed since: copies in flight may still read it."""
        self.source: ByteSource | None = None
        """The source to read the bytes from; None: `peer_copy` or `buffer` can be copied directly."""
        parts = _file_parts(self._flat)
        self._key = None if parts is None else _content_key(parts, self.layout)
        self._file = None if parts is None else self._file_source(parts)
        if self._file is not None:
            self.source = self._file
        else:
            self._use(self.use.take(port).fill(self.layout.nbytes, pinned, self._copy_leaves), pinned)

    def _copy_leaves(self, buffer: torch.Tensor) -> None:
        for slot, leaf in zip(self.layout.slots, self._flat.leaves):
            with _mode_of(leaf):
                view, part = slot.host_view(buffer), slice_of(leaf)
                if part is not None and part.mapped.is_contiguous():
                    part.read(buffer[slot.offset : slot.offset + slot.nbytes], 0, slot.dtype)
                    part.file.check(part.offset)
                    continue
                view.copy_(plain(leaf).data) if leaf.dtype != slot.dtype else copy_span(view, plain(leaf).data)

    @property
    def in_file(self) -> bool:
        """Whether the layer can do without a buffer: its tensors lie in files, with their current values."""
        return self._file is not None

    @property
    def pinned(self) -> bool:
        """Whether the buffer is page-locked on our behalf."""
        return self.use.pinned

    @property
    def tier(self) -> HostTier:
        """The tier that the bytes are copied from."""
        if self.peer_copy is not None:
            return "peer"
        if self.buffer is None:
            return "mapped"
        return "pinned" if self.pinned else "pageable"

    @property
    def master(self) -> HostMaster | None:
        """The master in memory, ours or one that `move_to` would share; None if there is none."""
        return self.use.master if self.buffer is not None else find(self._port, self._key)

    def move_to(self, tier: HostTier, threads: Executor | None = None, peer: PeerMemory | None = None) -> None:
        """Bring the bytes to `tier`, or the closest that is possible: pageable where page-locking fails, the buffer for
        bytes in no file, where they are if `peer` has no memory for them. No copy is in flight from the layer.
        `threads` read the file; `peer` is the other device's memory, for the tier of that name. Raises FileReadError.
        """
        if tier != "peer":
            self.drop_peer_copy()
            self._move_master(tier, threads)
            return
        assert peer is not None
        self.drop_peer_copy()
        file, buffer = self._file, self.buffer
        source = file if buffer is None else MemorySource(buffer)
        assert source is not None
        copy = peer.copy_of(source)
        # It takes no more of the host than was planned, also if it got no copy.
        self._move_master("pageable" if file is None else "mapped", threads)
        if copy is not None:
            self.peer_copy, self.source = copy, None

    @property
    def on_peer(self) -> torch.Tensor | None:
        """The memory that the layer takes of another device; None: it takes none."""
        return self.peer_copy if self.peer_copy is not None else self._left_copy

    def drop_peer_copy(self) -> None:
        """Free the copy on another device, if there is one: the bytes are copied from the master again. No copy is in
        flight from the layer."""
        self._left_copy = None
        if self.peer_copy is not None:
            self.peer_copy = None
            self.source = self._source_of_master()

    def leave_peer_copy(self) -> None:
        """Copy from the master in memory from now on, as its bytes are about to change while copies may be in flight.
        The memory on the other device stays taken until `drop_peer_copy`."""
        if self.peer_copy is not None and self._file is None:
            self.source = self._source_of_master()  # first: a copy that is queued meanwhile reads one of the two
            self._left_copy, self.peer_copy = self.peer_copy, None

    def _source_of_master(self) -> ByteSource | None:
        if self.buffer is None:
            return self._file
        return MemorySource(self.buffer) if self._port.stages_unpinned and not self.pinned else None

    def _move_master(self, tier: HostTier, threads: Executor | None) -> None:
        file, buffer = self._file, self.buffer
        if tier == "mapped" and file is not None:
            if buffer is not None:
                self._point(self._ours(), None)
                self.use.drop()
                self.buffer, self.source = None, file
            return
        pinned = self.pinned if tier == "mapped" else tier == "pinned"
        if buffer is None:
            assert file is not None
            file.check()  # also for bytes that another layer has read
            buffer = self.use.take(self._port, self._key).fill(
                self.layout.nbytes,
                pinned and not self._port.pins_in_place,
                lambda empty: read_whole(file, empty, threads),  # before the page-lock: faults pages in
            )
        self._use(buffer, pinned)

    def _use(self, buffer: torch.Tensor, pinned: bool) -> None:
        """Point the parameters into `buffer`, our master's, and page-lock it or not."""
        if pinned and self.use.pin():
            assert self.use.master is not None and self.use.master.buffer is not None
            buffer = self.use.master.buffer
        elif not pinned:
            self.use.unpin()
        if buffer is not self.buffer:
            self.buffer = buffer
            self._point(range(len(self._flat.leaves)), buffer)
        self.source = self._source_of_master()

    def _file_source(self, parts: Sequence[FileSlice | KeptPart]) -> FileSource:
        port, key = self._port, self._key

        def in_memory() -> torch.Tensor | None:
            master = find(port, key)
            return None if master is None else master.buffer

        return FileSource(self.layout.slots, parts, self.layout.nbytes, in_memory)

    def _point(self, places: Iterable[int], buffer: torch.Tensor | None) -> None:
        """Point leaves into `buffer`; None: at the file."""
        for place in places:
            leaf = self._flat.leaves[place]
            with _mode_of(leaf):
                if buffer is not None:
                    leaf.data = self.layout.slots[place].host_view(buffer)
                elif self._file is not None:
                    leaf.data = self._file.parts[place].mapped
            if self._file is None:
                forget_file(leaf)

    def _ours(self) -> list[int]:
        """Indices of the leaves that look into the file or the buffer; other code has given the others other data."""
        leaves = enumerate(self._flat.leaves)
        return [place for place, leaf in leaves if self._at_file(place, leaf) or self._in_buffer(place, leaf)]

    def own_bytes(self) -> torch.Tensor:
        """The layer's own, writable buffer, which no other layer shares. The layer lies in no file from now on, and has
        no copy on another device, which would not be written with it."""
        self.drop_peer_copy()
        if self._file is not None:
            ours, pinned, file, shown = self._ours(), self.pinned, self._file, self.buffer
            fresh = HostMaster(self._port)
            buffer = fresh.fill(
                self.layout.nbytes,
                pinned and not self._port.pins_in_place,
                lambda empty: file.read(empty, 0) if shown is None else copy_span(empty, shown),
            )
            self._file, self._key = None, None
            self.use.hold(fresh)
            self.buffer = buffer
            self._point(ours, buffer)
            self._use(buffer, pinned)
        assert self.buffer is not None
        return self.buffer

    @property
    def lies_whole_in_file(self) -> bool:
        """Whether all of its tensors lie in files: others may be written while the layer is not loaded, and nothing
        would tell."""
        return self._file is not None and all(part.file is not None for part in self._file.parts)

    def show_file(self) -> None:
        """Point the parameters at the file, as a write to the module must not reach a shared buffer. If the file has
        changed, the layer gets a buffer of its own instead."""
        if self._file is None or self.buffer is None:
            return
        try:
            self._file.check()
        except FileReadError:
            self.own_bytes()
        else:
            self._point(self._ours(), None)

    @property
    def layout(self) -> LayerLayout:
        return self._flat.layout

    def take_over(self) -> None:
        """Make the parameters lend their values (see `HostParameter`)."""
        for parameter, parts in zip(self.parameters, self._flat.parts):
            adopt(parameter, self.touches, parts)

    def hand_back(self) -> None:
        """Make the parameters ordinary ones again; their data stays where it is."""
        for parameter in self.parameters:
            release(parameter)

    def set_marks(self, position: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set attributes of a parameter and of what is built from it. Returns the values before."""
        parameter = self.parameters[position]
        vars(parameter).update(values)
        return self._flat.parts[position].set_marks(values)

    def _position_of(self, parameter: nn.Parameter) -> int:
        return next(index for index, own in enumerate(self.parameters) if own is parameter)

    def reclaim(self, position: int, parameter: nn.Parameter) -> bool:
        """Make `parameter`, which other code may have moved or replaced, the master at `position`, with its value.
        Returns False if it no longer has the shape and type that the layer was built for, or lies elsewhere and the
        master's elements overlap, so that it cannot be written."""
        try:
            parts = parts_of(parameter)
        except UnmovableTensor:
            return False
        places = self._flat.places[position]
        slots = [self.layout.slots[place] for place in places]
        for leaf in parts.leaves:
            keep_what_was_written(leaf)
        if self._still_in_file(parts, places):
            if self.buffer is not None:
                self._point(places, self.buffer)
            return True
        if not self._fits(position, parts):
            return False
        views = []
        looks_here = all(self._in_buffer(place, leaf) for place, leaf in zip(places, parts.leaves))
        buffer = self.buffer if looks_here and self.buffer is not None else self.own_bytes()
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
            with _mode_of(parts.leaves[0]):  # torch does not let a device tensor take CPU data
                parameter = parts.as_parameter(views)
            parts = parts_of(parameter)
        self.parameters[position] = parameter
        self._flat.parts[position] = parts
        for place, leaf in zip(places, parts.leaves):
            self._flat.leaves[place] = leaf
        return True

    def to_be_written(self) -> None:
        """Before the masters' bytes are changed in place. No copy is in flight from the layer."""
        self.own_bytes()
        self.generation += 1

    def has_form_of(self, parameter: nn.Parameter, value: torch.Tensor) -> bool:
        """Whether `value` has the kind, shapes and types of a master, wherever it lies."""
        try:
            return self._fits(self._position_of(parameter), parts_of(value))
        except UnmovableTensor:
            return False

    def _fits(self, position: int, parts: Parts) -> bool:
        """Whether the parts have the kind, shapes and types that the layer was built for."""
        slots = [self.layout.slots[place] for place in self._flat.places[position]]
        return (
            parts.like(self._flat.parts[position])
            and len(parts.leaves) == len(slots)
            and all(
                plain(leaf).shape == slot.shape and leaf.dtype == slot.dtype for leaf, slot in zip(parts.leaves, slots)
            )
        )

    def looking_elsewhere(self) -> set[int]:
        """Positions of the masters that other code has given other data."""
        ours = set(self._ours())
        return {position for position, places in enumerate(self._flat.places) if not ours.issuperset(places)}

    def look_back(self, position: int) -> None:
        """Point a master into the buffer again, or at the file."""
        self._point(self._flat.places[position], self.buffer)

    def offset_of(self, position: int) -> int | None:
        """Byte offset of an ordinary parameter in the layer's buffer; None for one of several parts."""
        places = self._flat.places[position]
        return self.layout.slots[places[0]].offset if len(places) == 1 else None

    def _still_in_file(self, parts: Parts, places: Sequence[int]) -> bool:
        """Whether these are still the layer's own leaves, looking at the file."""
        return all(
            leaf is self._flat.leaves[place] and self._at_file(place, leaf) for leaf, place in zip(parts.leaves, places)
        )

    def _at_file(self, place: int, leaf: torch.Tensor) -> bool:
        """Whether a leaf looks at the file, or at the bytes kept beside it."""
        part = None if self._file is None else self._file.parts[place]
        if isinstance(part, KeptPart):
            return plain(leaf).data_ptr() == part.mapped.data_ptr()
        return slice_of(leaf) is not None

    def _in_buffer(self, place: int, leaf: torch.Tensor) -> bool:
        """Whether a leaf looks into the buffer at its own slot, so that no value has to be taken over."""
        if self.buffer is None or leaf.device.type != "cpu":
            return False
        slot = self.layout.slots[place]
        if not slot.nbytes:  # it has no address
            return not plain(leaf).numel()
        return plain(leaf).data_ptr() == self.buffer.data_ptr() + slot.offset

    def write(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Change a master that is not being copied or used. Raises UnmovableTensor for another kind of tensor."""
        self.to_be_written()
        leaves, values = self._flat.parts[self._position_of(parameter)].leaves, parts_of(value).leaves
        if len(values) != len(leaves):
            raise UnmovableTensor(f"a {type(value).__name__} tensor of {len(values)} parts, not {len(leaves)}")
        for leaf, part in zip(leaves, values):
            with _mode_of(leaf):
                plain(leaf).data.copy_(plain(part))

    def device_views(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """The layer's parameters as views into a device buffer. Built once per plan, swapped in on every visit."""
        with torch.inference_mode(False), torch.no_grad():
            views = self._flat.views(buffer)
            return [parts.as_parameter(own) for parts, own in zip(self._flat.parts, views)]


def _content_key(slices: Sequence[FileSlice | KeptPart], layout: LayerLayout) -> Hashable | None:
    """Equal for two layers exactly if their buffers hold the same bytes at the same places; None: not known."""
    if any(part.file is None for part in slices):
        return None
    tensors = tuple(
        (str(part.file.path), part.file.identity, part.offset, part.nbytes, part.dtype, slot)
        for part, slot in zip(slices, layout.slots)
        if isinstance(part, FileSlice)
    )
    return layout.nbytes, tensors


def _same_bytes(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the tensors are equal bit for bit: a NaN equals itself, and zeros of either sign differ."""
    return torch.equal(
        tensor.contiguous().view(-1).view(torch.uint8), other.cpu().contiguous().view(-1).view(torch.uint8)
    )


@contextlib.contextmanager
def _mode_of(parameter: torch.Tensor) -> Iterator[None]:
    """For the engine's own writes, which lending parameters must not take for those of other code. Tensors made in
    inference mode can only be written to in it, and take no data made outside of it."""
    with (
        torch.inference_mode(parameter.is_inference()),
        torch.no_grad(),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        yield
