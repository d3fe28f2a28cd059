"""Finds versions on the package index newer than those the project knows. Uses pip with its configured index."""

import os
import re
import subprocess
from collections.abc import Iterable

from . import paths
from .versions import numbers

TIMEOUT_S = 60


class NoAnswer(RuntimeError):
    """The index cannot be reached, or lacks the package; the message has pip's error."""


def versions_of(package: str) -> list[str]:
    """All final versions of `package` on the index, for any Python, newest first. Raises NoAnswer."""
    command = [str(paths.PYTHON), "-m", "pip", "index", "versions", package, "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "0", "--timeout", "20"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"the package index gave no answer about {package} in {TIMEOUT_S} s") from None
    listed = re.search(r"^Available versions: (.+)$", done.stdout, re.MULTILINE)
    if done.returncode or not listed:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["nothing"]
        raise NoAnswer(f"asked the package index for {package}; no network, or not there; pip said: {said[-1]}")
    return sorted(listed[1].split(", "), key=numbers, reverse=True)


def newer_than(known: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{package: newest version} for the (package, newest known version) pairs that the index has a newer one of."""
    found = {}
    for package, version in known:
        newest = versions_of(package)[0]
        if numbers(newest) > numbers(version):
            found[package] = newest
    return found
