"""Weights that differ from the host masters: a patch set, applied on the device when a layer arrives.

Masters never change. A `Change` says how one parameter gets another value; a `Revision` is all changes of one layer
under one patch set. When a layer first arrives under a revision, its changes are applied where it lies on the device,
on the compute lane; the result is copied back, once, beside everything else, into a host buffer of the revision's
own, its *version*, from which the layer is copied from then on. Without room for that the changes are applied again
on each arrival. Two patch sets that treat a layer alike share a revision. Knows nothing of what a patch is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import OffloadError
from .host_source import ByteSource
from .parts import parts_of, plain

Place = tuple[dict[str, Any], str]
"""A module's dictionary of parameters, and a name in it."""


RevisionKey = tuple[int, Hashable]
"""The generation of the masters, and the keys of the changes."""


@dataclass(frozen=True, slots=True)
class Change:
    """Another value for one parameter."""

    key: Hashable
    """Two changes of a parameter with equal keys give equal values."""
    compute: Callable[[], torch.Tensor]
    """The value, on the device, from what hangs in the module at that moment: the master's value, on either side."""
    shape: tuple[int, ...] | None = None
    """The value's shape, if it is not the parameter's."""
    marks: Mapping[str, Any] | None = None
    """Attributes that carry the change: the bytes stay, and what uses the weight does the rest (GGUF types)."""


class Revision:
    """All changes of one layer under one patch set."""

    __slots__ = ("changes", "key", "to_read", "version")

    def __init__(self, key: RevisionKey, changes: Sequence[tuple[Place, Change]]) -> None:
        self.key = key
        self.changes = changes
        self.version: torch.Tensor | None = None
        """A host buffer with the layer's revised bytes, once the device has been told to fill it."""
        self.to_read: ByteSource | None = None
        """The same for a version that is not page-locked, and has to be read before it can be copied."""

    def apply(self) -> None:
        """Change the layer's parameters where they are. The modules hold the device's, with the master's values."""
        for (parameters, name), change in self.changes:
            write_into(parameters[name], change.compute(), name)


def write_into(shown: torch.Tensor, value: torch.Tensor, name: str) -> None:
    """Give `shown` the bytes of `value`, which is of the same kind, part by part."""
    mine, theirs = parts_of(shown), parts_of(value)
    for part, new in zip(mine.leaves, theirs.leaves):
        if plain(part).shape != plain(new).shape or part.dtype != new.dtype or len(mine.leaves) != len(theirs.leaves):
            raise OffloadError(
                f"asked to change the weight {name} of a streamed layer; found that the new value is a {new.dtype} of "
                f"shape {tuple(plain(new).shape)} where the layer has a {part.dtype} of {tuple(plain(part).shape)}; "
                "use the patch without layerwise offload"
            )
    with torch.no_grad():
        for part, new in zip(mine.leaves, theirs.leaves):
            plain(part).data.copy_(plain(new))
