"""Which port a device has."""

from __future__ import annotations

import torch

from .accelerator_port import AcceleratorPort, SynchronousPort, has_streams
from .cpu_port import ThreadedCpuPort
from .device_port import DevicePort
from .staging import StagedPort


def port_for(device: torch.device | str) -> DevicePort:
    """The port for `device`: accelerator streams where the back end has them, else plain synchronous copies."""
    device = torch.device(device)
    if device.type == "cpu":
        return ThreadedCpuPort()
    return StagedPort(AcceleratorPort(device)) if has_streams(device) else SynchronousPort(device)
