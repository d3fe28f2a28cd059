"""The bench of a changed LoRA strength runs through, and says what the virtual clock and the counters say."""

import json
import subprocess
import sys

import pytest

from tests.support import simdev
from tests.support.devkit import paths


@pytest.mark.long
@pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
def test_it_runs_through():
    command = [sys.executable, "-m", "bench.lora_step", "--json", "--strengths", "1"]
    done = subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)["results"]
    assert len(rows) == 6
    for row in rows:
        between = row["memory_taken"] == "between passes"
        assert row["locks_in_first"] == [0 if between else 57], row
        assert row["clock"] != "virtual clock" or (row["ratio"] < 1.1) == between, row
