"""TEST ONLY: makes the simulated accelerator look like an Ascend NPU.

That is the one vendor backend that ComfyUI probes for by `import torch_npu`, so an unmodified app picks the simulated
device up as its main device when this folder's parent is on PYTHONPATH.

Environment: SIMDEV_LIB (the compiled library), SIMDEV_MB (memory limit, default 8192), SIMDEV_BW (bytes per second of
asynchronous copies, 0 = memcpy), SIMDEV_POISON (1), SIMDEV_RACE (0), SIMDEV_DEVICES (1; memory limit and bandwidth are
each one's own), SIMDEV_PIN_MB (-1, no limit), SIMDEV_ALLOCATOR (native), SIMDEV_INTEGRATED (0).
"""

import os

import torch

from .device_module import make_module
from .library import configure, init, lib, reset, stat, stats

__all__ = ["configure", "lib", "reset", "stat", "stats"]


def _register():
    init(int(os.environ.get("SIMDEV_DEVICES", "1")))
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", make_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    environment = os.environ.get
    configure(
        mb=float(environment("SIMDEV_MB", "8192")),
        bandwidth=float(environment("SIMDEV_BW", "0")),
        poison=int(environment("SIMDEV_POISON", "1")),
        race=int(environment("SIMDEV_RACE", "0")),
        pin_limit_mb=float(environment("SIMDEV_PIN_MB", "-1")),
        allocator=environment("SIMDEV_ALLOCATOR", "native"),
    )


_register()
