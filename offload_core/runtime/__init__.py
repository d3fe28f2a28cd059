"""The engine: what carries a plan out. The only part of `offload_core` that imports torch.

`engine` obeys a plan: start reading there. It moves `layers` and applies `patches`, between `host` memory or `files`
and the `device`; `tensors` says how a tensor is bytes. What programs without the app need is imported here.
"""

from .device.device_port import DevicePort
from .device.device_queue import DeviceQueue
from .device.ports import port_for
from .engine.attach import Attachment, attach
from .engine.controller import LinkRates, OffloadController
from .host.host_parameter import blank_like, twin_of
from .layers.discovery import discover
from .layers.patched_layers import Change

__all__ = [
    "Attachment",
    "Change",
    "DevicePort",
    "DeviceQueue",
    "LinkRates",
    "OffloadController",
    "attach",
    "blank_like",
    "discover",
    "port_for",
    "twin_of",
]
