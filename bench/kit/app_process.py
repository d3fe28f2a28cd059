"""ComfyUI in this process, without a server, started as `main.py` and `execution.py` start it and run nodes.

`start` comes before anything of the app: it looks for its device when it is imported.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.device import Device
from bench.kit.dynamic_library import NoDynamicVram

SIM_MB = {True: 1290.0, False: 2048.0}
"""Of the simulated device, where the models are not to fit (True) and where they are: the app keeps 1.2 GB."""


def start(device: Device, tree: Path, library: Any, crowded: bool) -> Any:
    """The app's `model_management`, with Dynamic VRAM if its `library` is started. Raises NoDynamicVram.

    `crowded`: a simulated device is too small for the models; a real one is made so by the ballast.
    """
    device.open(mb=SIM_MB[crowded], bandwidth=3e9)
    sys.path.insert(0, str(tree))
    import comfy.cli_args

    comfy.cli_args.args.disable_dynamic_vram = library is None
    comfy.cli_args.args.cpu = device.kind == "cpu"
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if library is not None:
        _devices(library, comfy.model_management)
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    return comfy.model_management


def _devices(library: Any, management: Any) -> None:
    devices = management.get_all_torch_devices()
    try:
        started = library.init_devices((device.index, 0) for device in devices)
    except TypeError:
        started = library.init_devices(device.index for device in devices)
    if not started:
        raise NoDynamicVram("comfy-aimdo does not start on this device (control.init_devices)")


def place_loose(module: Any, device: Device) -> None:
    """On the simulated device: parameters of modules with children, which Dynamic VRAM moves by `parameter.data = ...`,
    are put there beforehand, for torch refuses that from one device to another unless they are its own."""
    import torch

    for child in module.modules() if device.simulated else ():
        if next(child.children(), None) is not None:
            for name, parameter in child.named_parameters(recurse=False):
                child._parameters[name] = torch.nn.Parameter(parameter.to(device.name), requires_grad=False)


@contextlib.contextmanager
def node(device: Device, times: dict[str, Any], name: str) -> Iterator[None]:
    """A node runs inside: its seconds go to `times[name]`, the device's work included. Then what follows every node."""
    device.synchronize()
    began = time.perf_counter()
    yield
    device.synchronize()
    times[name] = time.perf_counter() - began
    _after_node()


def _after_node() -> None:
    import comfy.memory_management
    import comfy.model_management

    if not getattr(comfy.memory_management, "aimdo_enabled", False):
        return
    import comfy_aimdo.model_vbar

    comfy.model_management.reset_cast_buffers()
    with contextlib.suppress(ImportError, AttributeError):  # not in every version
        import comfy.model_prefetch

        comfy.model_prefetch.cleanup_prefetch_queues()
    comfy_aimdo.model_vbar.vbars_reset_watermark_limits()
