"""The kit for the GPU machine, rehearsed: its one command, in small, on the simulated device, with the app's flow.

Nothing is fetched: the environment has what the kit's wheels would bring, and the kit is packed without them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.kit.rows import UNKNOWN, read_rows
from tests.support import simdev
from tests.support.devkit import apps, gpu_kit, paths

pytestmark = [pytest.mark.app, pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")]

OWN_ROWS = {"begun", "ended", "part", "not run"}


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    if not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("kit")
    gpu_kit.pack(folder, apps.under_test(), {})
    return folder


def start(kit: Path, out: Path, *words: str) -> subprocess.Popen:
    command = [kit / "run.sh", "--smoke", "--out", out, *words]
    environment = {**os.environ, "PYTHON": sys.executable, "SIMDEV_LIB": str(simdev.library_path())}
    environment |= {"PIP_NO_INDEX": "1", "LAYERWISE_KIT_WORK": str(kit / "work")}
    return subprocess.Popen(
        [str(word) for word in command], env=environment, cwd=kit, stdout=subprocess.DEVNULL, start_new_session=True
    )


def names(rows: list[dict], part: str) -> set[str]:
    """What the part measured."""
    return {row["name"] for row in rows if row["part"] == part} - OWN_ROWS


def ended(rows: list[dict], part: str) -> str:
    return next(row["ended"] for row in rows if row["part"] == part and row["name"] == "part")


def test_one_command_gives_every_row_and_a_broken_part_costs_its_own(kit, tmp_path):
    out = tmp_path / "result"
    words = ["--break", "probes-async=hang", "--limit", "probes-async=12", "--break", "overhead=crash"]
    words += ["--only", "probes,tests,core,app,peers,overhead"]
    process = start(kit, out, *words)
    assert process.wait(timeout=280) == 1, "two parts were made to fail"
    rows = read_rows(out.with_suffix(".jsonl"))
    assert all({"part", "name", "seconds", *UNKNOWN} <= set(row) for row in rows)
    assert ended(rows, "probes-async") == "out of time, killed" and ended(rows, "overhead") == "died of SIGSEGV"
    assert len(names(rows, "probes-async")) == len(names(rows, "overhead")) == 1, "what they had is there"
    good = ("facts", "probes-native", "tests", "core", "app-full", "app-ours", "app-dynamic", "app-legacy", "peers")
    assert {part: ended(rows, part) for part in good} == dict.fromkeys(good, "ok")
    assert all(names(rows, part) and (out.with_suffix(".logs") / f"{part}.log").is_file() for part in good)
    assert all(row["identical"] for row in rows if row["part"] == "core" and "identical" in row)
    compared = [row for row in rows if row["part"] == "compare" and "lora" not in row["name"]]
    assert compared and all(row["equal"] for row in compared)
    assert {way for row in compared for ways in row["latents"].values() for way in ways} >= {
        "ours",
        "dynamic",
        "legacy",
    }


def test_when_it_is_ended_the_rows_so_far_are_there_and_no_process(kit, tmp_path):
    out = tmp_path / "result"
    process = start(kit, out, "--only", "probes", "--break", "probes-native=hang")
    until = time.monotonic() + 90
    while not names(read_rows(out.with_suffix(".jsonl")), "probes-native") and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    rows = read_rows(out.with_suffix(".jsonl"))
    assert rows[-1]["name"] == "stopped" and names(rows, "facts") and names(rows, "probes-native")
    if not shutil.which("ps"):
        return
    listed = subprocess.run(["ps", "-eo", "sid="], capture_output=True, text=True).stdout.split()
    assert str(process.pid) not in listed, "something of its session is left"
