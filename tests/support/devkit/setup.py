"""Brings everything up, each step once. See environment.py for the order's reasons."""

import sys

from . import accelerator, app_tree, browser, environment, models, paths
from .steps import StepFailed, Steps, exclusive, say, stop
from .versions import DEFAULT_APP, app_release


def set_up(*app_versions: str, web: bool = False) -> Steps:
    """All steps that the default app, `app_versions` and (on request) the browser tests need. Ends the program with one
    readable message if a step fails; what the machine lacks is in the result's `missing`."""
    for version in app_versions:
        app_release(version)
    if sys.platform == "win32":
        stop("set-up runs on Linux and macOS; on Windows use WSL")
    steps = Steps()
    try:
        with exclusive():
            _all_steps(steps, app_versions, web)
    except StepFailed as failure:
        stop(str(failure))
    return steps


def _all_steps(steps: Steps, app_versions: tuple[str, ...], web: bool):
    environment.steps_before_app(steps)
    # one environment serves every version of the app: the default one's requirements, which are the newest
    for version in dict.fromkeys((DEFAULT_APP, *app_versions)):
        app_tree.step_tree(steps, version)
    environment.steps_after_app(steps, paths.app_tree(DEFAULT_APP))
    for version in app_versions:
        app_tree.step_frontend(steps, version)
    accelerator.step(steps)
    models.step(steps, DEFAULT_APP)
    if web:
        browser.step(steps)


def main(arguments) -> int:
    steps = set_up(arguments.comfyui, web=arguments.web)
    say(f"ready: {paths.DEV}")
    return 1 if steps.missing else 0
