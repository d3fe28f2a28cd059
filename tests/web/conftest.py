"""Fixtures of the web tier: a server with each frontend, and a way to run a scenario (a .mjs file here) against it.

Every test of the page runs with the frontend that the app names (`own`) and with the newest one (`newest`); the test's
name says which, and `-k newest` selects.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import devices
from tests.support.app_server import AppServer
from tests.support.devkit import app_tree, browser, paths
from tests.support.devkit.versions import APP_RELEASES, DEFAULT_APP

HERE = Path(__file__).parent
SCENARIO_TIMEOUT_S = 180


def frontends() -> list[str]:
    """An app that is older than the default one is not run with a frontend that was made long after it."""
    version = os.environ.get("LAYERWISE_COMFYUI") or DEFAULT_APP
    return ["own"] if version in APP_RELEASES and version != DEFAULT_APP else ["own", "newest"]


@pytest.fixture(scope="session", params=frontends())
def frontend(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def server(frontend):
    root = app_tree.newest_frontend_root() if frontend == "newest" else None
    with AppServer(devices.choose("auto"), memory_mb=4096, frontend=root) as running:
        yield running


@pytest.fixture
def play(server, frontend):
    """`play("loader.mjs", name, **task)` runs the scenario in a fresh browser and returns what it printed."""

    def run(script: str, name: str, **task) -> dict:
        screenshot = paths.ARTIFACTS / "web" / frontend / f"{name}.png"
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        task = {"url": server.url, "frontend": frontend, "screenshot": str(screenshot), "timeoutMs": 120_000, **task}
        env = {
            **os.environ,
            "LAYERWISE_NODE_MODULES": str(paths.NODE_MODULES),
            "LAYERWISE_CHROMIUM": browser.chromium(),
        }
        done = subprocess.run(
            ["node", str(HERE / script), json.dumps(task)],
            **{"env": env, "capture_output": True, "text": True, "timeout": SCENARIO_TIMEOUT_S},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout.strip().splitlines()[-1])
        assert "failure" not in result, result["failure"]
        return {**result, "screenshot": task["screenshot"]}

    return run
