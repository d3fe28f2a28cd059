"""comfy-kitchen's quantised types are streamed as bytes: those that the app pins, and those of the newest version."""

import functools
import json
import os
import subprocess
import sys

import pytest

from tests.runtime.quantised_types import MAKERS, PASSES
from tests.support.devkit import paths, versions

KITCHENS = ("installed", "newest")


@functools.cache
def seen(kitchen: str) -> dict:
    """What `quantised_types.py` saw; once for each kitchen, in a process that has no other."""
    if kitchen == "newest" and not paths.NEWEST_KITCHEN.is_dir():
        pytest.skip("comfy-kitchen's newest version is not there; `python3 dev.py setup` fetches it")
    first = [str(paths.NEWEST_KITCHEN)] if kitchen == "newest" else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*first, str(paths.ROOT)])}
    command = [sys.executable, "-m", "tests.runtime.quantised_types"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        pytest.skip(found["missing"])
    return found


@pytest.mark.parametrize("layout", sorted(MAKERS))
@pytest.mark.parametrize("kitchen", KITCHENS)
def test_it_is_streamed_as_one_buffer_of_bytes_with_the_same_values(kitchen, layout):
    result = seen(kitchen)["types"][layout]
    if "skipped" in result:
        pytest.skip(f"{result['skipped']} ({seen(kitchen)['kitchen']})")
    assert "error" not in result, result["error"]
    assert result["leaves"] >= 2 and result["finite_and_alive"], "not what a quantised weight is"
    assert result["on_device"] and result["one_buffer"], "ran from the host, or was not moved as one buffer"
    assert PASSES < result["copies"] <= result["visits"], "one copy a layer and visit"
    assert result["layer_bytes"] <= result["weight_bytes"] + 256 * result["leaves"], "more than what is stored"
    assert result["same"] and result["bytes_after_as_before"] and result["live_bytes_after"] == 0


def test_the_newest_kitchen_is_the_one_that_is_meant_and_has_every_type():
    found = seen("newest")
    assert found["kitchen"] == versions.NEWEST_KITCHEN
    assert not [name for name, result in found["types"].items() if "skipped" in result]


@pytest.mark.parametrize("kitchen", KITCHENS)
def test_no_type_is_unknown_to_these_tests(kitchen):
    assert sorted(seen(kitchen)["types"]) == sorted(MAKERS)
