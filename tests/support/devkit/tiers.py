"""Runs lint and the test tiers, one pytest run per tier, and sums them up.

A tier is a folder under tests/. Every tier runs even if an earlier one failed. A tier that cannot run on this machine
is reported as not run, which is a failure only on CI.
"""

import contextlib
import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import accelerator, apps, browser, environment, paths
from .setup import set_up
from .steps import on_ci, say, stop
from .versions import APP_RELEASES, OLDEST_APP

TIERS = ("lint", "core", "runtime", "app", "web", "gpu")
NO_TESTS = 5  # pytest's exit code
TEST_TIMEOUT_S = 300
MAX_WORKERS = 4
"""In the app tier each worker has its own servers, of 1 to 2 GB."""
ON_SEVERAL_WORKERS = {"core": "loadscope", "runtime": "loadscope", "app": "loadscope", "web": "load"}
"""How tests are given to workers: whole files, which share models or a server, or in the web tier one by one."""


@dataclass
class Outcome:
    tier: str
    seconds: float = 0.0
    failed: bool = False
    note: str = ""
    counts: dict = field(default_factory=lambda: {"passed": 0, "failed": 0, "skipped": 0})

    def line(self) -> str:
        state = "FAILED" if self.failed else "not run" if self.note else "passed"
        counts = ", ".join(f"{number} {word}" for word, number in self.counts.items() if number)
        parts = [f"{self.tier:8s} {state:8s} {self.seconds:6.1f} s", counts, self.note]
        return "  ".join(part for part in parts if part)


def child_environment(app_name: str) -> dict:
    """The environment variables of test processes. Model hubs are offline."""
    return {
        **os.environ,
        "LAYERWISE_DEV_DIR": str(paths.DEV),
        "LAYERWISE_COMFYUI": app_name,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def wanted_tiers(text: str | None) -> list[str]:
    if not text:
        gpu = ["gpu"] if environment.has_nvidia_gpu() else []
        return ["lint", "core", "runtime", "app", "web", *gpu]
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TIERS]
    if unknown:
        stop(f"--tier {','.join(unknown)}: known tiers are {', '.join(TIERS)}", 2)
    return [tier for tier in TIERS if tier in names]


def lint() -> Outcome:
    started = time.monotonic()
    commands = {
        "ruff check": ("ruff", "check", "."),
        "ruff format": ("ruff", "format", "--check", "."),
        "unused definitions": ("vulture",),
        "long functions": ("tests.support.devkit.long_functions",),
        "writes to attributes of other objects": ("tests.support.devkit.foreign_writes",),
    }
    broken = [name for name, command in commands.items() if not passes(name, command, paths.ROOT)]
    with as_package() as folder:
        settings = ("--config-file", str(paths.ROOT / "pyproject.toml"), "--cache-dir", str(paths.DEV / "mypy"))
        if not passes("mypy", ("mypy", *settings), folder):
            broken.append("mypy")
    return Outcome("lint", time.monotonic() - started, bool(broken), ", ".join(broken))


def passes(name: str, module: tuple[str, ...], folder: Path) -> bool:
    say(f"--- {name}")
    return not subprocess.run([str(paths.PYTHON), "-m", *module], cwd=folder).returncode


@contextlib.contextmanager
def as_package() -> Iterator[Path]:
    """A folder in which this checkout is the package `layerwise_offload`, whatever its folder is called.

    bridge/ and nodes/ import from their parent folder, so mypy needs it to be a package with a name.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "layerwise_offload").symlink_to(paths.ROOT, target_is_directory=True)
        yield Path(folder)


def cannot_run(tier: str) -> str:
    """Why this machine cannot run the tier; empty if it can."""
    if tier == "web" and not (browser.chromium() and paths.NODE_MODULES.is_dir()):
        return "no browser (see the set-up lines above)"
    if tier in ("app", "web") and not (accelerator.available() or environment.has_device_torch()):
        return "no simulated accelerator (see the set-up lines above)"
    return ""


def run_tier(tier: str, arguments, extra: list[str]) -> Outcome:
    reason = cannot_run(tier)
    if reason:
        say(f"--- {tier}: not run: {reason}")
        return Outcome(tier, failed=on_ci(), note=reason)
    folder = paths.ROOT / "tests" / tier
    if not list(folder.rglob("test_*.py")):
        return Outcome(tier, failed=True, note=f"no tests in {folder.relative_to(paths.ROOT)}")
    report = paths.ARTIFACTS / f"{tier}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    selected = [a for a in extra if a.startswith("tests/") or "::" in a]
    targets = [] if selected else [str(folder.relative_to(paths.ROOT))]
    python = apps.find(arguments.comfyui).python
    command = [str(python), "-m", "pytest", *targets, *extra, f"--junitxml={report}"]
    command += ["-o", "junit_family=xunit2", f"--timeout={TEST_TIMEOUT_S}", "--durations=5", "--durations-min=5"]
    if arguments.long:
        command.append("--long")
    if tier in ON_SEVERAL_WORKERS and not selected:
        command += ["-n", str(min(os.cpu_count() or 1, MAX_WORKERS)), "--dist", ON_SEVERAL_WORKERS[tier]]
    say(f"--- {tier}")
    started = time.monotonic()
    environment_ = child_environment(arguments.comfyui)
    code = subprocess.run(command, cwd=paths.ROOT, env=environment_, stdin=subprocess.DEVNULL).returncode
    outcome = Outcome(tier, time.monotonic() - started, failed=code not in (0, NO_TESTS), counts=read_counts(report))
    if code == NO_TESTS:  # fine for a selection that the user made, not for a whole tier
        outcome.note, outcome.failed = "no test selected", not extra
    return outcome


def read_counts(report) -> dict:
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    if not report.is_file():
        return {**counts, "failed": 1}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        counts["failed"] += bad
        counts["skipped"] += skipped
        counts["passed"] += int(suite.get("tests", 0)) - bad - skipped
    return counts


def main(arguments, extra: list[str]) -> int:
    tiers = wanted_tiers(arguments.tier)
    others = (APP_RELEASES if arguments.long else [OLDEST_APP]) if "app" in tiers else []
    set_up(arguments.comfyui, *others, web="web" in tiers)
    return sum_up([lint() if tier == "lint" else run_tier(tier, arguments, extra) for tier in tiers])


def versions_main(arguments, extra: list[str]) -> int:
    """Tests the pack in every version of the app that set-up knows, or only in the tree that is named."""
    selected = ["tests/app/test_versions.py"]
    if apps.find(arguments.comfyui).is_own_tree:
        set_up(arguments.comfyui)
        selected += ["-k", "tree or not test_the_pack_works_in"]
    else:
        set_up(*APP_RELEASES)
    return sum_up([run_tier("app", arguments, [*selected, *extra])])


def sum_up(outcomes: list[Outcome]) -> int:
    say("")
    for outcome in outcomes:
        say(outcome.line())
    total = {word: sum(outcome.counts[word] for outcome in outcomes) for word in ("passed", "failed", "skipped")}
    say(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def lint_main() -> int:
    set_up()
    return 1 if lint().failed else 0
