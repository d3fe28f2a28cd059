"""The pack in a process of ours, loaded as ComfyUI loads a pack: under a name of its own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_NAME = "layerwise_pack"
_ROOT = Path(__file__).resolve().parents[1]


def pack_module(name: str) -> ModuleType:
    """The module `name` of the pack, as `bridge.api`; the pack is loaded by the first call. ComfyUI's modules can be
    imported by then."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _NAME, _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{_NAME}.{name}")
