"""Runs cases in a process of their own with two simulated devices: a process that has loaded the simulator keeps its
number of devices."""

import os
import subprocess
import sys

import pytest

from tests.support import simdev
from tests.support.devkit import paths


def run_cases(file: str) -> None:
    """Run the cases in `file`, a path in the project. Fails unless they pass; skips without the simulator."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    command = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "SIMDEV_DEVICES": "2"}
    done = subprocess.run(command, cwd=paths.ROOT, env=env, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
