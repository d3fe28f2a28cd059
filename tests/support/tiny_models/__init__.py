"""Small random-weight model files that the app's own loaders accept. Nothing is downloaded.

`python -m tests.support.tiny_models` lists, makes and measures them; `ensure(...)` makes those that a test needs and
that set-up has not made. Families are one module each; the registry knows nothing about them.
"""

import subprocess
from collections.abc import Iterable

from tests.support.devkit import apps, paths, steps

from . import apply_only, flux, pictures, text_encoders, unets, vaes, video, vision  # noqa: F401 - importing registers the recipes
from .registry import RECIPES

__all__ = ["RECIPES", "ensure", "file_name", "models_folder"]


def models_folder():
    return paths.MODELS


def file_name(name: str) -> str:
    """What the app's loader widgets call this model."""
    return RECIPES[name].path.split("/", 1)[1]


def ensure(*names: str):
    """Make the files that are not there yet, in a process of its own: building them imports the app.

    A file that another process is making is waited for. A second file in the first one's place would be
    a changed file to a server that has begun to stream from it.
    """
    if _absent(names):
        with steps.exclusive():
            if left := _absent(names):
                _make(left)


def _absent(names: Iterable[str]) -> list[str]:
    return [name for name in names if not (paths.MODELS / RECIPES[name].path).is_file()]


def _make(names: list[str]):
    app = apps.under_test()
    command = [app.python, "-m", "tests.support.tiny_models", "--app", app.tree, "--out", paths.MODELS, *names]
    done = subprocess.run([str(word) for word in command], cwd=paths.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"making {', '.join(names)} failed:\n{done.stdout}\n{done.stderr[-3000:]}")
