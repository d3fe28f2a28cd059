"""Runs set-up steps: each once, with its own log, one quiet line per step. Knows nothing about what the steps do.

A step is done if its stamp has the digest of its inputs; changed inputs run it again. A step raises `Missing` if the
machine lacks something that it needs; set-up then continues and keeps the message.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

from . import paths

TAIL_LINES = 25
DISK_SIGN = "No space left on device"
NETWORK_SIGNS = (
    "Temporary failure in name resolution",
    "NewConnectionError",
    "Failed to establish a new connection",
    "Could not find a version that satisfies",
    "Network is unreachable",
    "EAI_AGAIN",
    "ENOTFOUND",
    "Temporary failure resolving",
)


class StepFailed(RuntimeError):
    """A step failed; the message is for the user."""


class Missing(RuntimeError):
    """The machine lacks something; the message says what, and what cannot run without it."""


class Log:
    """The log file of one step, and a way to run commands into it."""

    def __init__(self, name: str):
        self.path = paths.LOGS / f"{name}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def write(self, text: str):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")

    def run(self, *command, cwd: Path | None = None, env: dict | None = None):
        words = [str(word) for word in command]
        self.write("$ " + " ".join(words))
        with self.path.open("a", encoding="utf-8") as file:
            code = subprocess.run(
                words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise subprocess.CalledProcessError(code, words)

    def tail(self) -> str:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join("    " + line for line in lines[-TAIL_LINES:])


def digest(*inputs) -> str:
    """One digest of strings and of the contents of files and folders (Path)."""
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            files = (
                sorted(p for p in item.rglob("*") if p.is_file() and p.suffix != ".pyc") if item.is_dir() else [item]
            )
            for file in files:
                total.update(str(file.relative_to(paths.ROOT) if paths.ROOT in file.parents else file.name).encode())
                total.update(file.read_bytes())
        else:
            total.update(str(item).encode())
        total.update(b"\0")
    return total.hexdigest()


class Steps:
    """Runs steps and remembers, in `missing`, what the machine lacks."""

    def __init__(self):
        self.missing: dict[str, str] = {}

    def run(self, name: str, inputs: Iterable, action: Callable[[Log], None], makes: Path | None = None) -> bool:
        """Runs the step unless its stamp matches and `makes` still exists. False if the machine lacks something."""
        stamp, wanted = paths.STAMPS / name, digest(*inputs)
        if stamp.is_file() and stamp.read_text() == wanted and (makes is None or makes.exists()):
            return True
        started = time.monotonic()
        log = Log(name)
        try:
            action(log)
        except Missing as lack:
            self.missing[name] = str(lack)
            say(f"{name:24s} missing: {lack}")
            return False
        except Exception as error:
            raise StepFailed(_failure(name, log, error)) from error
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(wanted)
        say(f"{name:24s} {time.monotonic() - started:6.1f} s")
        return True


def _failure(name: str, log: Log, error: Exception) -> str:
    text = log.path.read_text(encoding="utf-8", errors="replace")
    if DISK_SIGN in text or DISK_SIGN in str(error):
        free = f"{shutil.disk_usage(log.path.parent).free / 1e9:.1f} GB free"
        needed = "set-up and the models of the tests take 6 GB"
        return f"set-up step '{name}' found no space on the disk of {paths.DEV}: {free}, {needed} ({log.path})"
    if any(sign in text for sign in NETWORK_SIGNS):
        return f"set-up step '{name}' cannot reach the package index, or it lacks a package: no network? ({log.path})"
    return f"set-up step '{name}' failed: {error}\n{log.tail()}\n    whole log: {log.path}"


def say(line: str):
    print(line, flush=True)


@contextmanager
def exclusive():
    """Allows one set-up at a time per `.dev` folder; a second one prints that it waits."""
    paths.DEV.mkdir(parents=True, exist_ok=True)
    with (paths.DEV / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up is at work in this folder; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def on_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def stop(message: str, code: int = 1):
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)
