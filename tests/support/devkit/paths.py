"""Where things lie. Everything that set-up makes is under one git-ignored folder, `.dev` (or LAYERWISE_DEV_DIR)."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SUPPORT = ROOT / "tests" / "support"
DEV = Path(os.environ.get("LAYERWISE_DEV_DIR") or ROOT / ".dev").resolve()

VENV = DEV / "venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
LOGS = DEV / "logs"
STAMPS = DEV / "stamps"
DOWNLOADS = DEV / "downloads"
ARTIFACTS = DEV / "artifacts"
MODELS = DEV / "models"
SIMDEV_LIBRARY = DEV / "simdev" / "libsimdev.so"
DISTRIBUTION_VENV = DEV / "distribution-venv"
NODE_MODULES = DEV / "web" / "node_modules"
PERFETTO = DEV / "web" / "perfetto"
CONSTRAINTS = DEV / "constraints.txt"
TORCH_FACTS = DEV / "torch.json"


def app_tree(version: str) -> Path:
    return DEV / "comfyui" / version


def app_frontend(version: str) -> Path:
    return DEV / "frontends" / version
