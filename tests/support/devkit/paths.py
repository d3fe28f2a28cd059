"""Paths. Everything that set-up makes is in one git-ignored folder, `.dev` or LAYERWISE_DEV_DIR."""

import os
import sys
from pathlib import Path


def python_in(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


ROOT = Path(__file__).resolve().parents[3]
SUPPORT = ROOT / "tests" / "support"
DEV = Path(os.environ.get("LAYERWISE_DEV_DIR") or ROOT / ".dev").resolve()

VENV = DEV / "venv"
PYTHON = python_in(VENV)
LOGS = DEV / "logs"
STAMPS = DEV / "stamps"
DOWNLOADS = DEV / "downloads"
ARTIFACTS = DEV / "artifacts"
MODELS = DEV / "models"
SIMDEV_LIBRARY = DEV / "simdev" / "libsimdev.so"
DISTRIBUTION_VENV = DEV / "distribution-venv"
NODE_MODULES = DEV / "web" / "node_modules"
PERFETTO = DEV / "web" / "perfetto"
NEWEST_KITCHEN = DEV / "newest-kitchen"
CONSTRAINTS = DEV / "constraints.txt"
TORCH_FACTS = DEV / "torch.json"


def app_tree(version: str) -> Path:
    return DEV / "comfyui" / version


def tree_environment(digest: str) -> Path:
    """The folder of the environment for trees whose requirements have this digest."""
    return DEV / "trees" / digest


def app_frontend(version: str) -> Path:
    return DEV / "frontends" / version
