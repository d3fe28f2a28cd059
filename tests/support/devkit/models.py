"""The step that makes the small model files (tests/support/tiny_models)."""

from . import paths
from .steps import Log, Steps

GENERATOR = paths.SUPPORT / "tiny_models"


def step(steps: Steps, version: str):
    """Shapes come from the app's classes, but are the same in every version, so one set serves all."""
    tree = paths.app_tree(version)

    def make(log: Log):
        command = ("-m", "tests.support.tiny_models", "--app", tree, "--out", paths.MODELS, "--blocks")
        log.run(paths.PYTHON, *command, cwd=paths.ROOT)

    inputs = [path for path in sorted(GENERATOR.glob("*.py"))]
    steps.run("models", inputs, make, makes=paths.MODELS)
