"""The engine: what carries a plan out. The only part of `offload_core` that imports torch.

Start reading at `prefetcher.py` (what is issued when, and why that is enough), then `controller.py`.
"""

from .attach import Attachment, attach
from .controller import OffloadController
from .device_port import DevicePort
from .device_queue import DeviceQueue
from .discovery import discover
from .host_parameter import blank_like, twin_of
from .ports import port_for
from .revision import Change

__all__ = [
    "Attachment",
    "Change",
    "DevicePort",
    "DeviceQueue",
    "OffloadController",
    "attach",
    "blank_like",
    "discover",
    "port_for",
    "twin_of",
]
