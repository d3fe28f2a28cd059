"""Processes that test at the same time have one models folder and no file in common."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.model_files import ModelFiles

pytestmark = pytest.mark.app

OTHER = """
from tests.support.model_files import ModelFiles
files = ModelFiles()
print(files.put("loras", "one.safetensors", b"theirs"), flush=True)
input()
files.close()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    monkeypatch.setenv("LAYERWISE_DEV_DIR", str(tmp_path))
    files = ModelFiles()
    yield files
    files.close()


def test_a_file_of_the_same_name_in_another_process_is_another_file(mine):
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], cwd=paths.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = paths.MODELS / "loras" / other.stdout.readline().strip()
        path = paths.MODELS / "loras" / mine.put("loras", "one.safetensors", b"mine")
        assert (theirs.read_bytes(), path.read_bytes()) == (b"theirs", b"mine")
        other.communicate("\n")
    assert path.read_bytes() == b"mine" and not theirs.exists()


def test_closing_takes_away_what_was_put_and_copies_also_where_a_test_deleted_one(mine):
    first = paths.MODELS / "vae" / mine.put("vae", "first", b"1")
    second = paths.MODELS / "vae" / mine.put("vae", "second", first)
    third = mine.path("vae", "never_written")
    assert second.read_bytes() == b"1" and second.name.endswith("second")
    first.unlink()
    mine.close()
    assert not second.exists() and not third.exists()


def test_a_model_that_two_ask_for_at_once_is_made_once(mine, monkeypatch):
    """A server may stream from the first file by the time that a second would take its place."""
    path = paths.MODELS / tiny_models.RECIPES["flux_tiny"].path
    monkeypatch.setattr(paths, "DEV", paths.MODELS)
    made = []

    def make(command, **_):
        made.append(command[-1])
        time.sleep(0.1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", make)
    with ThreadPoolExecutor() as both:
        list(both.map(tiny_models.ensure, ["flux_tiny"] * 2))
    assert made == ["flux_tiny"]
