"""Binding of the compiled backend: ctypes in, plain dictionaries out. Knows nothing about ComfyUI or tests."""

import ctypes
import os
from pathlib import Path

# The order of `sim_stats` in src/control.cpp.
STAT_NAMES = (
    "used",
    "peak",
    "reserved",
    "reserved_peak",
    "limit",
    "allocs",
    "frees",
    "pinned",
    "h2d_bytes",
    "d2h_bytes",
    "d2d_bytes",
    "peer_bytes",
    "async_copies",
    "blocking_copies",
    "kernels",
    "stream_syncs",
    "event_syncs",
    "device_syncs",
    "item_syncs",
    "event_records",
    "event_waits",
    "races",
    "registrations",
    "registered_bytes",
    "faulted_bytes",
    "bandwidth",
    "poison",
    "race",
)
MIB = 2**20
ALLOCATORS = ("native", "cudaMallocAsync")


def _library_path() -> Path:
    path = os.environ.get("SIMDEV_LIB")
    if not path:
        raise ImportError("SIMDEV_LIB does not say where libsimdev.so is; `python3 dev.py setup` builds it")
    return Path(path)


def _open() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(_library_path()), mode=ctypes.RTLD_GLOBAL)
    lib.sim_set.argtypes = [ctypes.c_longlong, ctypes.c_longlong, ctypes.c_int, ctypes.c_int]
    lib.sim_set_peers.argtypes = [ctypes.c_longlong, ctypes.c_int]
    lib.sim_set_pins.argtypes = [ctypes.c_longlong, ctypes.c_longlong]
    lib.sim_set_pin_limit.argtypes = [ctypes.c_longlong]
    lib.sim_stats.argtypes = [ctypes.POINTER(ctypes.c_longlong), ctypes.c_int]
    lib.sim_host_register.argtypes = [ctypes.c_void_p, ctypes.c_longlong]
    lib.sim_host_unregister.argtypes = [ctypes.c_void_p]
    lib.sim_memory.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_longlong)]
    lib.sim_diary.argtypes = [ctypes.POINTER(ctypes.c_longlong), ctypes.c_int]
    lib.sim_holds.argtypes = [ctypes.c_longlong]
    lib.sim_race_message.restype = ctypes.c_char_p
    return lib


lib = _open()
device_count = 1
"""Set once, by init()."""
allocator_backend = "native"
"""Whose manners the memory has: one of ALLOCATORS."""


def init(devices: int):
    """Register the backend with so many devices of their own memory, link and streams."""
    global device_count
    if not 1 <= devices <= lib.sim_max_devices():
        raise ImportError(f"SIMDEV_DEVICES={devices}: found that there can be 1 to {lib.sim_max_devices()}")
    device_count = devices
    lib.sim_init(devices)


def configure(
    mb=None,
    bandwidth=None,
    poison=None,
    race=None,
    pin_bandwidth=None,
    fault_bandwidth=None,
    pin_limit_mb=None,
    allocator=None,
    spin=None,
    peer_bandwidth=None,
    peers=None,
):
    """Change settings at run time; None leaves one as it is.

    mb               memory limit in MiB
    bandwidth        bytes per second of asynchronous copies (0: as fast as memcpy)
    pin_bandwidth    bytes per second of page-locking (0: it costs nothing)
    fault_bandwidth  of faulting in pages that were never touched, which page-locking does (0: nothing)
    pin_limit_mb     page-locked MiB beyond which a registration is refused (negative: no limit)
    allocator        "native" or "cudaMallocAsync"
    spin             whether a host that waits keeps its core busy, as it does unless CUDA is told otherwise
    peer_bandwidth   bytes per second of copies between devices (0: as fast as memcpy)
    peers            whether devices can reach each other; if not, copies between them run at `bandwidth`
    """
    keep = -1
    lib.sim_set(
        keep if mb is None else int(mb * MIB),
        keep if bandwidth is None else int(bandwidth),
        keep if poison is None else int(bool(poison)),
        keep if race is None else int(bool(race)),
    )
    lib.sim_set_peers(
        keep if peer_bandwidth is None else int(peer_bandwidth), keep if peers is None else int(bool(peers))
    )
    lib.sim_set_pins(
        keep if pin_bandwidth is None else int(pin_bandwidth), keep if fault_bandwidth is None else int(fault_bandwidth)
    )
    if pin_limit_mb is not None:
        lib.sim_set_pin_limit(int(pin_limit_mb * MIB))
    if spin is not None:
        lib.sim_set_spin(int(spin))
    if allocator is not None:
        global allocator_backend
        if allocator not in ALLOCATORS:
            raise ValueError(f"asked for the allocator {allocator!r}; found {', '.join(ALLOCATORS)}")
        allocator_backend = allocator
        lib.sim_set_async_allocator(int(allocator == "cudaMallocAsync"))


MEMORY_NAMES = ("used", "peak", "reserved", "reserved_peak", "limit")


def memory(device: int) -> dict:
    """The memory figures of one device, in bytes; a negative index means the current one."""
    values = (ctypes.c_longlong * len(MEMORY_NAMES))()
    lib.sim_memory(device, values)
    return dict(zip(MEMORY_NAMES, values))


def stats() -> dict:
    """All counters, of all devices together; `limit` is that of each. `host_syncs` sums every wait of the host that a
    program asked for (stream, event, device); `item_syncs` and `blocking_copies` are the waits that hide in operators.
    `devices` has the memory figures of each."""
    values = (ctypes.c_longlong * len(STAT_NAMES))()
    count = lib.sim_stats(values, len(STAT_NAMES))
    assert count == len(STAT_NAMES), f"libsimdev.so reports {count} counters, this file names {len(STAT_NAMES)}"
    result = dict(zip(STAT_NAMES, values))
    result["host_syncs"] = result["stream_syncs"] + result["event_syncs"] + result["device_syncs"]
    result["devices"] = [memory(index) for index in range(device_count)]
    result["race_message"] = lib.sim_race_message().decode()
    return result


def stat(name: str) -> int:
    return stats()[name]


DIARY_ROWS = 256
ALLOCATED, FREED, REFUSED = range(3)
"""The kinds of events in a diary, in the order of `MemoryEvent` in src/simdev.h."""


def follow(on: bool):
    """Whether the calling thread keeps a diary of its device memory from now on. It starts empty."""
    lib.sim_follow(int(on))


def diary() -> list[tuple[int, int, int, int]]:
    """(kind, serial, bytes, stream id) of each allocation, free and refusal in the calling thread since the last call.

    The serial names the allocation; a refusal has none.
    """
    rows: list[tuple[int, int, int, int]] = []
    values = (ctypes.c_longlong * (4 * DIARY_ROWS))()
    while True:
        count = lib.sim_diary(values, DIARY_ROWS)
        rows += [tuple(values[4 * row : 4 * row + 4]) for row in range(count)]
        if count < DIARY_ROWS:
            return rows


def holds(serial: int) -> bool:
    """Whether that allocation has not been freed yet, by whichever thread."""
    return bool(lib.sim_holds(serial))


def reset():
    """Start counting anew: peaks from what is in use now, everything else from zero."""
    lib.sim_reset()
