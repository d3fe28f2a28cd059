"""The `torch.npu` module: the part of torch.cuda's surface that the app, diffusers and accelerate use of a backend."""

import os
import types

import torch

from . import library
from .library import lib


def _device(device) -> torch.device:
    """A device with its index; None and a bare "npu" mean the current one."""
    found = torch.device("npu" if device is None else device)
    return found if found.index is not None else torch.device("npu", lib.sim_current_device())


class Stream(torch.Stream):
    """torch.npu.Stream(device=..., priority=...) in the manner of torch.cuda.Stream."""

    def __new__(cls, device=None, priority=0, **kwargs):
        return super().__new__(cls, device=_device(device), priority=priority)


class stream:  # noqa: N801 - named as torch.cuda.stream is
    """Context manager: makes a stream the current one; None does nothing."""

    def __init__(self, wanted):
        self.wanted = wanted

    def __enter__(self):
        if self.wanted is not None:
            self.previous = torch.accelerator.current_stream()
            torch.accelerator.set_stream(self.wanted)
        return self.wanted

    def __exit__(self, *exc):
        if self.wanted is not None:
            torch.accelerator.set_stream(self.previous)


def _memory(device) -> dict:
    return library.memory(device if isinstance(device, int) else _device(device).index)


def mem_get_info(device=None):
    """(free, total); free counts what is not reserved, and is never negative even after the limit was lowered."""
    now = _memory(device)
    return max(0, now["limit"] - now["reserved"]), now["limit"]


def memory_stats(device=None):
    now = _memory(device)
    counts = library.allocator_backend == "native"  # the other back end has these figures too, and they stay 0
    return {
        "allocation.all.allocated": library.stat("allocs") if counts else 0,
        "allocation.all.freed": library.stat("frees") if counts else 0,
        "active_bytes.all.current": now["used"],
        "allocated_bytes.all.current": now["used"],
        "allocated_bytes.all.peak": now["peak"],
        "reserved_bytes.all.current": now["reserved"],
        "reserved_bytes.all.peak": now["reserved_peak"],
    }


def set_device(device):
    lib.sim_set_device(device if isinstance(device, int) else _device(device).index)


def get_device_properties(device=None):
    return types.SimpleNamespace(
        name="simulated",
        total_memory=_memory(device)["limit"],
        is_integrated=int(os.environ.get("SIMDEV_INTEGRATED", "0")),
    )


def _index(device, optional=False) -> int:
    """The index of a device as torch.cuda's functions take it: an integer as it is, else a device of this type."""
    if isinstance(device, int):
        return device
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device) and device.type != "npu":
        raise ValueError(f"Expected a npu device, but got: {device}")
    return torch._utils._get_device_index(device, optional)


def can_device_access_peer(device, peer_device) -> bool:
    """Whether one device can reach the memory of another. As with CUDA, none is a peer of itself."""
    device, peer_device = _index(device, optional=True), _index(peer_device)
    if device < 0 or device >= library.device_count:
        raise AssertionError("Invalid device id")
    if peer_device < 0 or peer_device >= library.device_count:
        raise AssertionError("Invalid peer device id")
    return bool(lib.sim_can_access_peer(device, peer_device))


class Runtime:
    """What `torch.cuda.cudart()` offers for page-locking memory that is already there: no `cudaGetLastError`."""

    @staticmethod
    def cudaHostRegister(address, size, flags):  # noqa: N802 - named as cudart names it
        return lib.sim_host_register(address, size)

    @staticmethod
    def cudaHostUnregister(address):  # noqa: N802
        return lib.sim_host_unregister(address)


def make_module() -> types.ModuleType:
    module = types.ModuleType("torch.npu")
    entries = {
        "device_count": lambda: library.device_count,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "current_device": lib.sim_current_device,
        "set_device": set_device,
        "can_device_access_peer": can_device_access_peer,
        "get_device_name": lambda device=None: "simulated",
        "get_device_properties": get_device_properties,
        "is_bf16_supported": lambda *args: True,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        # one generator, the CPU's: kernels run there
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "synchronize": lambda device=None: torch.accelerator.synchronize(device),
        "Stream": Stream,
        "Event": torch.Event,
        "stream": stream,
        "current_stream": lambda device=None: torch.accelerator.current_stream(device),
        "empty_cache": lib.sim_trim,
        "mem_get_info": mem_get_info,
        "memory_stats": memory_stats,
        "memory_allocated": lambda device=None: _memory(device)["used"],
        "max_memory_allocated": lambda device=None: _memory(device)["peak"],
        "memory_reserved": lambda device=None: _memory(device)["reserved"],
        "max_memory_reserved": lambda device=None: _memory(device)["reserved_peak"],
        "reset_peak_memory_stats": lambda device=None: library.reset(),
        # ours, for tests
        "configure": library.configure,
        "stats": library.stats,
        "reset_stats": library.reset,
        "cudart": Runtime,
        "host_register": lib.sim_host_register,
        "host_unregister": lib.sim_host_unregister,
    }
    for name, value in entries.items():
        setattr(module, name, value)
    return module
