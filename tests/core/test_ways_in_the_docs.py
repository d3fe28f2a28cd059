"""The ways that docs/architecture.md describes, of a value and of a layer's weights: each step is where it says."""

import re

import pytest

from tests.support.devkit import paths

PAGE = (paths.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_STEPS = 12
"""What a reader can follow. More: the value is handed on without need, or the way has to be shortened."""


def steps(title: str) -> list[str]:
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. (.*?)(?=^\d+\. |\n\n|\Z)", section, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("title", ["The way of a value", "The way of a layer's weights"])
def test_each_step_is_in_the_file_that_it_names(title):
    assert 8 <= len(steps(title)) <= MOST_STEPS
    for step in steps(title):
        path, *names = re.findall(r"`([^`]+)`", step.partition(":")[0])
        file = next(place / path for place in (paths.ROOT, paths.ROOT / "offload_core") if (place / path).is_file())
        for name in names:
            defined = rf"(?:def|class) {name.rpartition('.')[2]}\b"
            assert (file.parent / name).is_file() or re.search(defined, file.read_text(encoding="utf-8")), (
                f"{path}: {name}"
            )
