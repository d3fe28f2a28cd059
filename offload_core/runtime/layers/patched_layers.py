"""Patched weights: a patch set, applied on the device when a layer arrives.

A `Change` computes another value for one parameter; a `LayerPatch` is all changes of one layer under one patch set.
When a layer first arrives under a layer patch, its changes are applied in place, on the compute lane; the result is
copied back once, beside both lanes, into a host buffer, the *version*, from which the layer is copied from then on.
Without host memory for a version, the changes are applied on each arrival. Patch sets that change a layer alike share
its layer patch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import OffloadError
from ..tensors.host_source import ByteSource
from ..tensors.parts import parts_of, plain

Place = tuple[dict[str, Any], str]
"""A module's dictionary of parameters, and a name in it."""


PatchKey = tuple[int, Hashable]
"""The generation of the masters, and the keys of the changes."""


@dataclass(frozen=True, slots=True)
class Change:
    """Another value for one parameter."""

    key: Hashable
    """Changes of a parameter with equal keys give equal values."""
    compute: Callable[[], torch.Tensor]
    """Computes the value, on the device of the parameter that the module holds, from that parameter."""
    shape: tuple[int, ...] | None = None
    """The value's shape, if it differs from the parameter's."""
    marks: Mapping[str, Any] | None = None
    """Attributes that make up the change (GGUF types): the bytes stay, and the weight's user applies them."""


@dataclass(slots=True, eq=False)
class LayerPatch:
    """All changes of one layer under one patch set."""

    key: PatchKey
    changes: Sequence[tuple[Place, Change]]
    version: torch.Tensor | None = None
    """A host buffer with the layer's patched bytes, valid once the queued copy back is complete."""
    to_read: ByteSource | None = None
    """The source to read the version from, if it is not page-locked."""

    def make_by(self, changes: Sequence[tuple[Place, Change]]) -> None:
        """Set the changes, which have the same keys as before: those of another run of the patcher."""
        self.changes = changes

    def keep(self, version: torch.Tensor | None, to_read: ByteSource | None = None) -> None:
        """Set the version, and its source; None: there is none."""
        self.version, self.to_read = version, to_read

    def apply(self) -> None:
        """Apply the changes in place. The modules hold device parameters with the masters' values."""
        for (parameters, name), change in self.changes:
            write_into(parameters[name], change.compute(), name)


def write_into(shown: torch.Tensor, value: torch.Tensor, name: str) -> None:
    """Copy `value` into `shown`, part by part. Raises OffloadError for another kind, shape or type."""
    target, source = parts_of(shown), parts_of(value)
    for part, new in zip(target.leaves, source.leaves):
        if plain(part).shape != plain(new).shape or part.dtype != new.dtype or len(target.leaves) != len(source.leaves):
            raise OffloadError(
                f"asked to change the weight {name} of a streamed layer; found that the new value is a {new.dtype} of "
                f"shape {tuple(plain(new).shape)} where the layer has a {part.dtype} of {tuple(plain(part).shape)}; "
                "use the patch without layerwise offload"
            )
    with torch.no_grad():
        for part, new in zip(target.leaves, source.leaves):
            plain(part).data.copy_(plain(new))
