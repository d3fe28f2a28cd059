"""A second card as a store, by the app's own memory management. The cases run in a process with two devices."""

import os
import subprocess
import sys

import pytest

from tests.support import simdev
from tests.support.devkit import paths

pytestmark = pytest.mark.app


@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")
def test_second_card():
    command = [sys.executable, "-m", "pytest", "tests/app/cases_second_card.py", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "SIMDEV_DEVICES": "2"}
    done = subprocess.run(command, cwd=paths.ROOT, env=env, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
