"""Runs all set-up steps in order, each once. environment.py explains the order of its steps."""

import sys

from . import accelerator, app_tree, apps, browser, environment, models, paths
from .steps import StepFailed, Steps, exclusive, say, stop
from .versions import DEFAULT_APP


def set_up(*names: str, web: bool = False) -> Steps:
    """Runs the steps for the default app, the named apps (apps.find) and, with `web`, the browser tests. Exits with one
    message if a step fails; `missing` of the result says what the machine lacks."""
    chosen = [apps.find(name) for name in names]
    if sys.platform == "win32":
        stop("set-up runs on Linux and macOS; on Windows use WSL")
    steps = Steps()
    try:
        with exclusive():
            _all_steps(steps, chosen, web)
    except StepFailed as failure:
        stop(str(failure))
    return steps


def _all_steps(steps: Steps, chosen: list[apps.App], web: bool):
    environment.steps_before_app(steps)
    # every known version of the app runs in one environment, made from the default version's requirements, the newest
    versions = [app.version for app in chosen if not app.is_own_tree]
    for version in dict.fromkeys((DEFAULT_APP, *versions)):
        app_tree.step_tree(steps, version)
    environment.steps_after_app(steps, paths.app_tree(DEFAULT_APP))
    for version in versions:
        app_tree.step_frontend(steps, version)
    for app in chosen:
        if app.is_own_tree:
            environment.step_tree_venv(steps, app.tree, paths.app_tree(DEFAULT_APP))
    accelerator.step(steps)
    models.step(steps, DEFAULT_APP)
    if web:
        browser.step(steps)
        app_tree.step_newest_frontend(steps)


def main(arguments) -> int:
    steps = set_up(arguments.comfyui, web=arguments.web)
    say(f"ready: {paths.DEV}")
    return 1 if steps.missing else 0
