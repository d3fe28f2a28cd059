"""The pure modules of web/ under Node, without a browser."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.web

TESTS = Path(__file__).parent / "modules.test.mjs"


def test_pure_modules():
    done = subprocess.run(["node", "--test", str(TESTS)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
