"""Which device a server should run on: the accelerator at hand, else the simulated one, else the CPU."""

import subprocess

from tests.support import simdev
from tests.support.devkit import environment


def _accelerator_works() -> bool:
    """A torch build for a device on a machine without one (or with a broken driver) does not count."""
    if not environment.has_device_torch():
        return False
    probe = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([str(environment.paths.PYTHON), "-c", probe], capture_output=True).returncode == 0


def choose(wanted: str) -> str:
    """`auto` becomes one of cuda, sim, cpu; anything else must be there."""
    if wanted in ("auto", "cuda") and _accelerator_works():
        return "cuda"
    if wanted == "cuda":
        raise SystemExit("--device cuda: torch sees no CUDA or ROCm device here")
    if wanted in ("auto", "sim") and simdev.available():
        return "sim"
    if wanted == "sim":
        raise SystemExit("--device sim: the simulated accelerator was not built (no C++ compiler?)")
    return "cpu"
