"""The probe for a real card says in one line what it lacks, and runs through on the simulated device."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import simdev
from tests.support.devkit import paths

WITHOUT = """
import sys, types
{before}
from bench.memory_graph import main
sys.argv = ["memory_graph"]
sys.exit(main())
"""
NO_LIBRARY = "sys.modules['comfy_aimdo'] = None"
NO_CARD = """
for name in ("comfy_aimdo", "comfy_aimdo.control", "comfy_aimdo.malloc_graph"):
    sys.modules[name] = types.ModuleType(name)
"""


@pytest.mark.parametrize(
    ("before", "message"),
    [(NO_LIBRARY, "no comfy-aimdo with memory graphs"), (NO_CARD, "torch finds no CUDA device")],
)
def test_it_says_in_one_line_what_is_missing(before, message):
    command = [sys.executable, "-c", WITHOUT.format(before=before)]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=paths.ROOT, env=hidden, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench.memory_graph: not run: ") and message in line


@pytest.mark.long
@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
def test_it_runs_through_on_the_simulated_device(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "bench.memory_graph", "--device", "sim", "--size", "tiny", "--steps", "2"]
    subprocess.run([*command, "--out", str(out)], cwd=paths.ROOT, check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8 and all(row["equal"] and "error" not in row for row in rows)
    breaks = {row["case"]: row["breaks_later"] for row in rows if "breaks_later" in row}
    assert breaks["patches on arrival, paused around it"] == breaks["streamed, in the graph"]
