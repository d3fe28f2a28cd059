"""What the kit carries, put where Python finds it. Standard library only."""

from __future__ import annotations

import importlib.util
import json
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OF_THE_MACHINE = ("torch", "torchvision", "torchaudio", "transformers", "safetensors", "psutil", "numpy", "scipy")
OF_THE_MACHINE += ("yaml", "PIL")
"""Modules that the kit does not carry: what it is for is measured with the machine's own."""


def read_manifest(kit: Path) -> dict[str, Any]:
    return dict(json.loads((kit / "manifest.json").read_text()))


def missing_modules() -> list[str]:
    """What the machine's Python lacks that the kit does not carry."""
    return [name for name in OF_THE_MACHINE if importlib.util.find_spec(name) is None]


def unpack(kit: Path, work: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The app's tree, and the wheels that this machine lacks. The environment for what runs on them, and for each
    wheel that is not there one line. What the machine has already is left packed, so nothing of its own is shadowed."""
    app, site = work / "app", work / "site"
    if not (app / "comfy").is_dir():
        with tarfile.open(kit / "app.tar.gz") as tar:
            tar.extractall(app, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    lacking = []
    for wheel, module in manifest["wheels"].items():
        if importlib.util.find_spec(module) is not None or (site / module).exists():
            continue
        try:
            with zipfile.ZipFile(kit / "wheels" / wheel) as archive:
                archive.extractall(site)
        except (OSError, zipfile.BadZipFile) as error:
            lacking.append(f"{module}: {wheel}: {error}")
    pack = Path(__file__).resolve().parents[2]
    path = [str(pack), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "LAYERWISE_COMFYUI": str(app),
        "LAYERWISE_DEV_DIR": os.environ.get("LAYERWISE_DEV_DIR") or str(work / "dev"),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return environment, lacking
