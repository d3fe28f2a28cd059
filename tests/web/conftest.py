"""Fixtures of the web tier: one server for the session, and a way to run a scenario (a .mjs file here) against it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import devices
from tests.support.app_server import AppServer
from tests.support.devkit import browser, paths

HERE = Path(__file__).parent
SCENARIO_TIMEOUT_S = 180


@pytest.fixture(scope="session")
def server():
    with AppServer(devices.choose("auto"), memory_mb=4096) as running:
        yield running


@pytest.fixture
def play(server):
    """`play("loader.mjs", name, **task)` runs the scenario in a fresh browser and returns what it printed."""

    def run(script: str, name: str, **task) -> dict:
        screenshot = paths.ARTIFACTS / "web" / f"{name}.png"
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        task = {"url": server.url, "screenshot": str(screenshot), "timeoutMs": 120_000, **task}
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
