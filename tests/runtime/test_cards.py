"""The README's table of cards and models is what the adviser predicts today."""

import os
import subprocess
import sys

import pytest

from bench.cards import BEGIN, END, README, with_table
from bench.full_size import default_tree
from tests.support.devkit import apps, paths
from tests.support.devkit.versions import DEFAULT_APP


def test_the_readme_has_the_table_that_is_made():
    """`python -m bench.cards --write` makes it anew."""
    tree = default_tree()
    if apps.under_test().version != DEFAULT_APP or not (tree / "comfy").is_dir():
        pytest.skip(f"the table is of ComfyUI {DEFAULT_APP}, which is not here (`python3 dev.py setup` fetches it)")
    done = subprocess.run(
        [sys.executable, "-m", "bench.cards", "--tree", str(tree)],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(paths.ROOT), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = README.read_text(encoding="utf-8")
    made = done.stdout[done.stdout.index("**Predicted") :].rstrip("\n")
    assert "| Flux dev, bf16 |" in made
    assert page == with_table(page, made)


def test_only_what_is_between_the_markers_is_made_anew():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_table(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError):
        with_table("no markers", "new")
