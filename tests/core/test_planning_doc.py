"""docs/planning.md: its example runs, its request is answered, and the names in it exist."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "planning.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_runs() -> None:
    (example,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "blocks" in done.stdout


def test_the_request_is_answered() -> None:
    (request,) = blocks("json")
    line = [sys.executable, "-m", "offload_core", "plan"]
    done = subprocess.run(line, input=request, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["layers"][0]["name"] == "b.0"


def test_the_names_in_the_tables_exist() -> None:
    names = re.findall(r"`([a-z_]+)\.([A-Za-z_]+)[^`]*`", "\n".join(re.findall(r"^\| (`[^|]*) \|", TEXT, re.MULTILINE)))
    assert len(names) >= 11
    for module, name in names:
        assert hasattr(importlib.import_module(f"offload_core.planning.{module}"), name), f"{module}.{name}"
