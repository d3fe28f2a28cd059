"""Two devices in one process: the simulator keeps them apart, and the engine has a ring and a queue on each.

The cases run in a process of their own, because a process that has loaded the simulator has its number of devices.
"""

import os
import subprocess
import sys

import pytest

from tests.support import simdev
from tests.support.devkit import paths


@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")
def test_two_devices():
    command = [sys.executable, "-m", "pytest", "tests/runtime/cases_two_devices.py", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "SIMDEV_DEVICES": "2"}
    done = subprocess.run(command, cwd=paths.ROOT, env=env, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
