"""A simulated accelerator for machines without one: `load()` gives a plain Python process a `torch.npu`.

The compiled library is made by `python3 dev.py setup` (tests/support/devkit/accelerator.py). What is real about the
device and what is not is in README.md beside this file. A process can load it once and cannot unload it; a server
process gets it through PYTHONPATH instead (tests/support/app_server.py).
"""

import importlib.util
import os
import sys
from pathlib import Path

from tests.support.devkit import paths

STANDIN = Path(__file__).parent / "standin"


def library_path() -> Path:
    return Path(os.environ.get("SIMDEV_LIB") or paths.SIMDEV_LIBRARY)


def available() -> bool:
    """True if the compiled library is there."""
    return library_path().is_file()


def load():
    """Register the backend in this process (once) and return `torch.npu`."""
    import torch

    if "torch_npu" not in sys.modules:
        if not available():
            raise RuntimeError(f"no simulated accelerator at {library_path()}; `python3 dev.py setup` builds it")
        os.environ["SIMDEV_LIB"] = str(library_path())
        package = STANDIN / "torch_npu"
        spec = importlib.util.spec_from_file_location(
            "torch_npu", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["torch_npu"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["torch_npu"]
            raise
    return torch.npu
