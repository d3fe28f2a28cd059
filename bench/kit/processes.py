"""Child processes that end: each in a process group of its own, with a time limit, its output in a file.

Standard library only. Whatever ends the caller (Ctrl-C, SIGTERM, an error), the groups it started are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE_S = 3.0
"""Between the polite signal and the other one."""

# In the session of the caller, so that killing that session ends these too; `process_group` came with Python 3.11.
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    exit_code: int | None
    """None: it was out of time, and killed. Negative: a signal's number."""
    seconds: float

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def words(self) -> str:
        if self.exit_code is None:
            return "out of time, killed"
        if self.exit_code < 0:
            return f"died of {signal.Signals(-self.exit_code).name}"
        return "ok" if self.ok else f"failed with exit code {self.exit_code}"


def run_bounded(command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path, limit_s: float) -> Ended:
    """Run `command` for at most `limit_s` seconds; what it and its children print goes to the file `log`."""
    started = time.monotonic()
    code: int | None
    with running(command, cwd, environment, log) as process:
        try:
            code = process.wait(timeout=max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            code = None
    return Ended(code, time.monotonic() - started)


@contextlib.contextmanager
def running(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`command` runs inside the block; after it nothing of its group is left, however the block ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file, **_OWN_GROUP
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no process of the group is left
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
