"""Files that a test puts among the models, and takes away again.

The models folder is one for all processes that test at the same time. Every name has the process's number in it, so
that none of them reads, spoils or deletes another's file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.devkit import paths


class ModelFiles:
    """The files of one test, or of more, until `close`."""

    def __init__(self) -> None:
        self._made: set[Path] = set()

    def path(self, folder: str, name: str) -> Path:
        """Where the caller may write a file of the kind `folder` (`"loras"`); the name has `name` at its end."""
        path = paths.MODELS / folder / f"{os.getpid()}_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._made.add(path)
        return path

    def put(self, folder: str, name: str, content: bytes | Path) -> str:
        """What the app's widgets call a new file of these bytes, or with those of the file at a path."""
        path = self.path(folder, name)
        if isinstance(content, Path):
            shutil.copy(content, path)
        else:
            path.write_bytes(content)
        return path.name

    def close(self) -> None:
        for path in self._made:
            path.unlink(missing_ok=True)
        self._made.clear()
