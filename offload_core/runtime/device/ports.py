"""Which port a device has."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .accelerator_port import AcceleratorPort, SynchronousPort, has_streams
from .cpu_port import ThreadedCpuPort
from .device_port import DevicePort
from .staging import StagedPort


def port_for(device: torch.device | str, while_waiting: Callable[[], None] | None = None) -> DevicePort:
    """The port for `device`: accelerator streams where the back end has them, else plain synchronous copies.

    `while_waiting` is called several times a second while the caller waits for a read; it may raise to end the wait.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return ThreadedCpuPort(while_waiting)
    return StagedPort(AcceleratorPort(device), while_waiting) if has_streams(device) else SynchronousPort(device)
