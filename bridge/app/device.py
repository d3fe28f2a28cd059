"""One device queue per device, shared by the components that stream there and freed with the last of them."""

from __future__ import annotations

import threading
import weakref

import comfy.model_management as mm
import torch

from ...offload_core.runtime import DeviceQueue, port_for
from ...offload_core.runtime.device import device_port, peer_memory

_queues: weakref.WeakValueDictionary[str, DeviceQueue] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def queue_for(device: torch.device) -> DeviceQueue:
    """The queue of `device`. Only components hold strong references to it."""
    with _lock:
        queue = _queues.get(str(device))
        if queue is None:
            # the user's interrupt must end a slow read
            port = port_for(device, while_waiting=mm.throw_exception_if_processing_interrupted)
            queue = DeviceQueue(port)
            weakref.finalize(queue, port.close)
            _queues[str(device)] = queue
        return queue


def ring_there(device: torch.device) -> int:
    """Bytes of the ring arena on `device`, leased or not; 0 if none is allocated."""
    queue = _queues.get(str(device))
    return 0 if queue is None else queue.arena_bytes


def streams_to(device: torch.device) -> bool:
    """Whether `device` has memory of its own to stream into."""
    return not mm.is_device_cpu(device)


def takes_host_memory(device: torch.device) -> bool:
    """Whether memory of `device` is host memory: the CPU, and unified memory (Apple's GPUs)."""
    return not streams_to(device) or device_port.is_unified(device)


def computes_on_cpu() -> bool:
    """Whether the app computes on the CPU, where nothing is streamed from another memory."""
    return not streams_to(mm.get_torch_device())


def device_names() -> list[str]:
    """The devices of the accelerator's type, named as torch names them, where there are two or more; else none."""
    accelerator, device = torch.accelerator.current_accelerator(), mm.get_torch_device()
    if accelerator is None or accelerator.type != device.type:
        return []
    count = torch.accelerator.device_count()
    return [f"{device.type}:{index}" for index in range(count)] if count > 1 else []


segment_bytes = device_port.segment_bytes_of
can_reach = peer_memory.can_reach


def total_bytes(device: torch.device) -> int:
    return int(mm.get_total_memory(device))
