"""comfy-aimdo, the library of the app's Dynamic VRAM, started as `main.py` starts it: before torch is imported.

So nothing here may import torch, and the caller may not have imported it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).resolve().parents[2] / "tests" / "support" / "simdev" / "dynamic"


class NoDynamicVram(Exception):
    """comfy-aimdo is not here, or does not start."""


def start_library(simulated: bool) -> Any:
    """Its `control` module; on the simulated device that of the tests' stand-in. Raises NoDynamicVram."""
    if simulated:
        sys.path.insert(0, str(STAND_IN))
    elif "torch" in sys.modules:
        raise NoDynamicVram("torch was imported before comfy-aimdo")
    try:
        import comfy_aimdo.control as control
    except (ImportError, OSError) as error:
        raise NoDynamicVram(f"comfy-aimdo cannot be imported: {error}") from None
    try:
        started = control.init(simple_vram_headroom=None, nvml_pressure=True)
    except TypeError:  # 0.4.9 knows neither
        started = control.init()
    if started is False:  # it says nothing in some versions
        raise NoDynamicVram("comfy-aimdo does not start (control.init)")
    return control
