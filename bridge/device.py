"""One device queue per device, shared by every component that streams there, gone with the last of them."""

from __future__ import annotations

import threading
import weakref

import comfy.model_management as mm
import torch

from ..offload_core.runtime import DeviceQueue, device_port, port_for

_queues: weakref.WeakValueDictionary[str, DeviceQueue] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def queue_for(device: torch.device) -> DeviceQueue:
    """The queue of `device`. Components hold it; nobody else does."""
    with _lock:
        queue = _queues.get(str(device))
        if queue is None:
            # a slow file must not keep a user who has given up
            port = port_for(device, while_waiting=mm.throw_exception_if_processing_interrupted)
            queue = DeviceQueue(port)
            weakref.finalize(queue, port.close)
            _queues[str(device)] = queue
        return queue


def ring_there(device: torch.device) -> int:
    """Bytes of the ring on `device`, whoever leases it; 0 where there is none yet."""
    queue = _queues.get(str(device))
    return 0 if queue is None else queue.arena_bytes


def streams_to(device: torch.device) -> bool:
    """Whether there is anything to stream to: a device with memory of its own."""
    return not mm.is_device_cpu(device)


def takes_host_memory(device: torch.device) -> bool:
    """Whether what lies on `device` lies in the host's memory: on the CPU, and on Apple's GPUs."""
    return not streams_to(device) or device_port.is_unified(device)


def segment_bytes(device: torch.device) -> int:
    """In multiples of what memory is taken of `device`."""
    return device_port.segment_bytes_of(device)


def total_bytes(device: torch.device) -> int:
    return int(mm.get_total_memory(device))
