"""The benchmarks run, and the kit for the GPU machine holds what it must. Figures are not tested: machines differ."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.devkit import gpu_kit

ROOT = Path(__file__).resolve().parents[2]


def test_host_overhead_runs():
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "bench.host_overhead", "--device", "cpu", "--repeats", "5", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    rows = {row["name"]: row for row in result["results"]}
    # The fourth, diffusers' stream path, wants page-locked memory, which torch has only beside an accelerator.
    assert {"ours", "diffusers, plain", "accelerate"} <= set(rows)
    # Loose enough for any machine, tight enough to notice an engine that walks its parameters twice.
    assert rows["ours"]["us_quiet"] * 4 < rows["diffusers, plain"]["us_quiet"]


def test_the_kit_carries_the_checkout_and_nothing_ignored(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    gpu_kit.pack_checkout(tmp_path / "pack.tar.gz")
    with tarfile.open(tmp_path / "pack.tar.gz") as tar:
        names = tar.getnames()
    needed = {
        "bench/kit/__main__.py",
        "bench/gpu.py",
        "tests/gpu/test_engine.py",
        "offload_core/runtime/engine/attach.py",
    }
    assert needed <= set(names)
    assert not [name for name in names if name.startswith(".dev") or "__pycache__" in name]


def test_pins_come_from_the_requirement_files(tmp_path):
    (tmp_path / "one.txt").write_text("comfy-kitchen==0.2.26\ncomfy-kitchen-extra==9\nav>=16\n")
    assert gpu_kit.pinned("comfy-kitchen", tmp_path / "one.txt") == "comfy-kitchen==0.2.26"
    assert gpu_kit.pinned("av", tmp_path / "one.txt") == "av"
