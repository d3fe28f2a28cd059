"""The ComfyUI that something runs in: a version that set-up fetches, or a local tree, named by its folder.

A tree named by `--comfyui PATH` is run in place and never written to. Its requirements are installed into an
environment of its own over the common one (environment.py, decision 162).
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import environment, paths
from .versions import APP_RELEASES, DEFAULT_APP

FILES_OF_A_TREE = ("main.py", "comfyui_version.py", "requirements.txt")
OF_ITS_USER = {".git", ".venv", "venv", "output", "temp", "user"}
"""Entries of a developer's tree that are not copied; neither are packs and models."""


@dataclass(frozen=True)
class App:
    name: str
    """Its value in `--comfyui` and LAYERWISE_COMFYUI: a version, or the absolute path of a tree."""
    version: str
    tree: Path
    is_own_tree: bool

    @property
    def python(self) -> Path:
        """The interpreter of the environment with this app's requirements."""
        return paths.python_in(environment.tree_venv(self.tree)) if self.is_own_tree else paths.PYTHON

    def copy_tree(self, target: Path):
        """Copies the app without its user's files, for tests that write into the tree."""

        def left_out(folder: str, names: list[str]) -> set[str]:
            here = Path(folder)
            if here == self.tree:
                return OF_ITS_USER.intersection(names)
            if here in (self.tree / "custom_nodes", self.tree / "models"):
                return {name for name in names if (here / name).is_dir() and name != "configs"}
            return {"__pycache__"}.intersection(names)

        shutil.copytree(self.tree, target, ignore=left_out)


def find(name: str) -> App:
    """The app that `--comfyui` names. Exits with one line if there is none."""
    if name in APP_RELEASES:
        return App(name, name, paths.app_tree(name), is_own_tree=False)
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise SystemExit(
            f"--comfyui {name}: found neither a known version nor a folder; "
            f"known versions are {', '.join(APP_RELEASES)}, and a ComfyUI of your own is named by its folder"
        )
    missing = [file for file in FILES_OF_A_TREE if not (folder / file).is_file()]
    if missing:
        raise SystemExit(
            f"--comfyui {name}: asked for a ComfyUI tree; found a folder without {', '.join(missing)}; "
            "name the folder that holds ComfyUI's main.py"
        )
    return App(str(folder), _version_of(folder, name), folder, is_own_tree=True)


def under_test() -> App:
    """The app that tests use unless they name another: LAYERWISE_COMFYUI, or the default one."""
    return find(os.environ.get("LAYERWISE_COMFYUI") or DEFAULT_APP)


def _version_of(tree: Path, name: str) -> str:
    said = re.search(r"^__version__ = [\"'](\d+[^\"']*)[\"']", (tree / "comfyui_version.py").read_text(), re.MULTILINE)
    if not said:
        raise SystemExit(
            f"--comfyui {name}: asked for the tree's version; found no line '__version__ = \"1.2.3\"' in its "
            "comfyui_version.py; take a tree as ComfyUI's repository has it"
        )
    return said.group(1)
