"""Memory of another device, as a store of layers: they are copied from there over the link between the two devices.

What lies there is a copy, never the only one: the master stays in its file or in host memory. So that memory can be
given back at any moment between passes, and nothing is lost.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..tensors.host_source import ByteSource


class _Memory(Protocol):
    """The calls of a port that the store uses of the other device."""

    device: torch.device

    def empty(self, nbytes: int) -> torch.Tensor: ...

    def copy_from(self, destination: torch.Tensor, source: ByteSource) -> None: ...

    def trim(self) -> None: ...

    def memory(self) -> tuple[int, int] | None: ...


class PeerMemory:
    """The memory of one other device, by its port. Used between passes only: every call may make the host wait."""

    def __init__(self, port: _Memory) -> None:
        self._port = port
        self.device = port.device

    def copy_of(self, source: ByteSource) -> torch.Tensor | None:
        """A copy of the source's bytes on the other device, complete on return; None if it has no memory for it.

        Raises what reading the source raises; the memory is then free again.
        """
        with torch.inference_mode(False), torch.no_grad():
            try:
                buffer = self._port.empty(source.nbytes)
            except torch.OutOfMemoryError:
                return None
            self._port.copy_from(buffer, source)
            return buffer

    def trim(self) -> None:
        """Return what was freed to the other device, for others to allocate."""
        self._port.trim()

    def free_bytes(self) -> int:
        """Free bytes there; 0 where the device does not tell."""
        memory = self._port.memory()
        return 0 if memory is None else memory[0]


def can_reach(device: torch.device, peer: torch.device) -> bool:
    """Whether copies from `peer` to `device` go over a link between the two, not through host memory.

    False where the back end cannot tell: a copy through host memory would be slower than one from there.
    """
    if device.type != peer.type or device == peer or device.type in ("cpu", "mps", "meta"):
        return False
    ask = getattr(torch.get_device_module(device), "can_device_access_peer", None)
    return ask is not None and bool(ask(device, peer)) and bool(ask(peer, device))
