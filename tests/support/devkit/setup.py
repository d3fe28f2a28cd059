"""Brings everything up, each step once. See environment.py for the order's reasons."""

import sys

from . import accelerator, app_tree, browser, environment, models, paths
from .steps import StepFailed, Steps, exclusive, say, stop
from .versions import DEFAULT_APP, app_release


def set_up(app_version: str = DEFAULT_APP, web: bool = False) -> Steps:
    """All steps that the default app, `app_version` and (on request) the browser tests need. Ends the program with one
    readable message if a step fails; what the machine lacks is in the result's `missing`."""
    app_release(app_version)
    if sys.platform == "win32":
        stop("set-up runs on Linux and macOS; on Windows use WSL")
    steps = Steps()
    try:
        with exclusive():
            _all_steps(steps, app_version, web)
    except StepFailed as failure:
        stop(str(failure))
    return steps


def _all_steps(steps: Steps, app_version: str, web: bool):
    environment.steps_before_app(steps)
    # one environment serves every version of the app: the default one's requirements, which are the newest
    for version in dict.fromkeys((DEFAULT_APP, app_version)):
        app_tree.step_tree(steps, version)
    environment.steps_after_app(steps, paths.app_tree(DEFAULT_APP))
    app_tree.step_frontend(steps, app_version)
    accelerator.step(steps)
    models.step(steps, DEFAULT_APP)
    if web:
        browser.step(steps)


def main(arguments) -> int:
    steps = set_up(arguments.comfyui, web=arguments.web)
    say(f"ready: {paths.DEV}")
    return 1 if steps.missing else 0
