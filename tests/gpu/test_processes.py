"""What a process has once: its allocator, and torch's own check for races. The same tests, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.device import ASYNC
from tests.gpu.device import device

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 50
UNDER_THE_APPS_ALLOCATOR = (
    "test_engine.py::test_bit_identical_at_every_budget",
    "test_engine.py::test_steady_state_waits_for_nothing",
    "test_engine.py::test_an_exception_leaves_nothing_in_flight",
    "test_cases.py::test_changed_weights_in_several_strengths",
    "test_cases.py::test_a_refused_page_lock_leaves_no_error_behind",
)
UNDER_THE_RACE_CHECK = (
    "test_engine.py::test_bit_identical_on_a_stream_of_the_caller",
    "test_cases.py::test_changed_weights_in_several_strengths",
)


def run(tests, **environment):
    """pytest on these, in a process of its own. Fails with its last lines."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/gpu/{name}" for name in tests]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_on_the_allocator_of_the_app():
    if device.allocator() == ASYNC:
        pytest.skip("this process is on it already")
    said = run(UNDER_THE_APPS_ALLOCATOR, PYTORCH_CUDA_ALLOC_CONF=f"backend:{ASYNC}")
    assert f"{len(UNDER_THE_APPS_ALLOCATOR)} passed" in said


@pytest.mark.skipif(device.simulated, reason="the simulated device has a race check of its own")
def test_under_torchs_race_check():
    said = run(UNDER_THE_RACE_CHECK, TORCH_CUDA_SANITIZER="1")
    assert f"{len(UNDER_THE_RACE_CHECK)} passed" in said
