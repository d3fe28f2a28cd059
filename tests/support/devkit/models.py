"""The step that makes the small model files (tests/support/tiny_models)."""

import shutil

from . import paths
from .steps import Log, Steps

GENERATOR = paths.SUPPORT / "tiny_models"


def step(steps: Steps, version: str):
    """Makes one set of files with the app's classes of `version`; their shapes are the same in every version."""
    tree = paths.app_tree(version)

    def make(log: Log):
        shutil.rmtree(paths.MODELS, ignore_errors=True)  # including those that tests made on demand
        command = ("-m", "tests.support.tiny_models", "--app", tree, "--out", paths.MODELS, "--blocks")
        log.run(paths.PYTHON, *command, cwd=paths.ROOT)

    steps.run("models", sorted(GENERATOR.glob("*.py")), make, makes=paths.MODELS)
