"""Rows of figures: one JSON object a line, on the disk as soon as it is known. All measurements write by `Rows.write`.

Every row has `part`, `name`, `seconds` (what it took to get it), `card`, `versions` and `commit`; the rest is the
part's own. A process that the kit has started finds the file and what is the same in all rows in its environment; one
that was started by hand gives them. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROWS = "LAYERWISE_KIT_ROWS"
"""Environment: the file of rows."""
PART = "LAYERWISE_KIT_PART"
"""Environment: the part that this process is."""
COMMON = "LAYERWISE_KIT_COMMON"
"""Environment: a JSON file with what all rows have in common. The part `facts` completes it."""
BREAK = "LAYERWISE_KIT_BREAK"
"""Environment, for rehearsals: `hang` or `crash` once the first row of the part is written."""

UNKNOWN = {"card": "unknown", "versions": {}, "commit": "unknown"}


class Rows:
    """Where the rows of one part go. `path` None: to the standard output alone."""

    def __init__(self, part: str, path: Path | None, common: Mapping[str, Any]) -> None:
        self.part = part
        self.path = path
        self._common = {key: common.get(key, default) for key, default in UNKNOWN.items()}
        self._since = time.monotonic()

    def write(self, name: str, seconds: float | None = None, **facts: Any) -> dict[str, Any]:
        """Append a row and return it. `seconds`: what it took; None is the time since the row before."""
        now = time.monotonic()
        took = now - self._since if seconds is None else seconds
        self._since = now
        row = {"part": self.part, "name": name, "seconds": round(took, 3), **self._common, **facts}
        text = json.dumps(row, default=str)
        if self.path is not None:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, text.encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)
        shown = {key: value for key, value in row.items() if key not in UNKNOWN}
        print(json.dumps(shown, default=str), flush=True)
        _break_if_asked()
        return row


def open_rows(part: str, path: Path | None = None, common: Mapping[str, Any] | None = None) -> Rows:
    """The rows of this process: as the kit says in the environment, else as the caller does."""
    if os.environ.get(ROWS):
        return Rows(os.environ.get(PART) or part, Path(os.environ[ROWS]), read_common())
    return Rows(part, path, common or {})


def read_common() -> dict[str, Any]:
    """What all rows of this run of the kit have in common; empty outside the kit."""
    path = Path(os.environ.get(COMMON) or os.devnull)
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _break_if_asked() -> None:
    how = os.environ.get(BREAK)
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a process does that waits for a device
        while True:
            time.sleep(60)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
