"""Runs the parts one after the other against one deadline. What a part is stands in `parts.py`.

A part that dies or hangs costs its own rows. When time runs out, parts are cut from the end; the one that is kept has
its time taken from what comes before it. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.kit import rows as rows_module
from bench.kit.parts import AIMDO, Part
from bench.kit.processes import Ended, run_bounded, running
from bench.kit.rows import Rows, read_rows

MARGIN_S = 6.0
"""At the end, for killing what hangs and writing the last rows."""
BALLAST_READY_S = 30.0
FULL_GB, HALF_GB = 34.0, 20.0
"""Device memory that a resident model of these sizes needs with its activations at 2048 pixels."""
FILES_GB = 48.0
"""What the model files of one model may take."""


@dataclass
class Plan:
    """What was asked for on the command line."""

    out: Path
    work: Path
    device: str
    smoke: bool
    deadline_s: float
    size: str
    breaks: Mapping[str, str] = field(default_factory=dict)
    """For rehearsals: the part, and `hang` or `crash`."""
    limits_s: Mapping[str, float] = field(default_factory=dict)
    """Per part, instead of its own."""


class Runner:
    """One run of the kit."""

    def __init__(self, plan: Plan, environment: Mapping[str, str], commit: str, started: float) -> None:
        self.plan = plan
        self.pack = Path(__file__).resolve().parents[2]
        self.logs = plan.out.with_suffix(".logs")
        self.logs.mkdir(parents=True, exist_ok=True)
        self.rows_file = plan.out.with_suffix(".jsonl")
        self._common = plan.work / "common.json"
        self._common.write_text(json.dumps({"commit": commit, "versions": {"python": platform.python_version()}}))
        self._environment = {
            **environment,
            rows_module.ROWS: str(self.rows_file.resolve()),
            rows_module.COMMON: str(self._common.resolve()),
        }
        self._end = started + plan.deadline_s - MARGIN_S
        self._ballast = contextlib.ExitStack()
        self._ballast_gb: float | None = None
        self.outcomes: dict[str, str] = {}
        """Per part, how it ended, or why it was not run."""

    # ------------------------------------------------------------------ all parts

    def run(self, parts: Sequence[Part]) -> None:
        """Run them in their order. What ends this early leaves the rows so far, and no process behind."""
        try:
            for index, part in enumerate(parts):
                self._one(part, parts[index + 1 :])
        finally:
            self._ballast.close()
            self._compare()

    def failed(self) -> list[str]:
        """Parts that were begun and came to harm."""
        return [name for name, how in self.outcomes.items() if not how.startswith(("ok", "not run"))]

    def write(self, part: str, name: str, **facts: Any) -> None:
        """A row of the runner's own."""
        Rows(part, self.rows_file, self.common()).write(name, **facts)

    def common(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self._common.read_text()))
        return {}

    # ------------------------------------------------------------------ one part

    def _one(self, part: Part, later: Sequence[Part]) -> None:
        limit = self._limit_s(part, later)
        reason = self._why_not(part) or self._why_no_time(part, limit)
        if reason:
            self.outcomes[part.name] = f"not run: {reason}"
            self.write(part.name, "not run", seconds=0.0, reason=reason, gives=part.gives)
            return
        self._hold_ballast(part)
        limit = self._limit_s(part, later)
        command = [sys.executable, *self._words(part)]
        print(f"--- {part.name}, at most {limit:.0f} s: {' '.join(command[1:])}", flush=True)
        log = self.logs / f"{part.name}.log"
        log.unlink(missing_ok=True)
        ended = run_bounded(command, self.pack, self._environment_of(part), log, limit)
        self._closed(part, ended, log)

    def _closed(self, part: Part, ended: Ended, log: Path) -> None:
        self.outcomes[part.name] = ended.words()
        facts: dict[str, Any] = {"exit_code": ended.exit_code, "ended": ended.words(), "log": log.name}
        if not ended.ok:
            facts["last_lines"] = log.read_text(errors="replace").splitlines()[-12:]
            print("\n".join(facts["last_lines"]), flush=True)
        self.write(part.name, "part", seconds=ended.seconds, **facts)

    def _limit_s(self, part: Part, later: Sequence[Part]) -> float:
        """The seconds it may have: what is left, less what a kept part after it needs."""
        left = self._end - time.monotonic()
        if part.kept:  # it has whatever is left, and its own limit where others are to follow
            return min(left, self.plan.limits_s.get(part.name, part.at_most_s if later else left))
        kept = sum(other.least_s for other in later if other.kept) if not self.plan.smoke else 0.0
        return min(left - kept, self.plan.limits_s.get(part.name, part.at_most_s))

    def _why_no_time(self, part: Part, limit: float) -> str:
        least = 5.0 if self.plan.smoke or part.kept or part.name in self.plan.limits_s else part.least_s
        return f"{limit:.0f} s left, and it takes {least:.0f}" if limit < least else ""

    def _why_not(self, part: Part) -> str:
        """What the part lacks on this machine; empty if nothing, or if `facts` has not looked."""
        known = self.common()
        if part.words[:2] == ("-m", "bench.kit.facts") or "device" not in known:
            return ""
        if known["device"]["why_not"]:
            return str(known["device"]["why_not"])
        stood_in_for = {AIMDO} if self.plan.device == "sim" else set()
        if absent := sorted(set(part.modules) - set(known["modules"]) - stood_in_for):
            return f"no module {', '.join(absent)}"
        if not self.outcomes.get(part.after, "ok").startswith("ok"):
            return f"{part.after} {self.outcomes[part.after]}"
        free = known["device"].get("free_bytes")
        if not self.plan.smoke and free is not None and free < part.free_gb * 1e9:
            return f"{free / 1e9:.1f} GB of device memory free, and it takes {part.free_gb:.0f}"
        return ""

    def _environment_of(self, part: Part) -> dict[str, str]:
        words = words_of(self)
        extra = {name: value.format(**words) for name, value in part.environment.items()}
        extra[rows_module.PART] = part.name
        if part.name in self.plan.breaks:
            extra[rows_module.BREAK] = self.plan.breaks[part.name]
        return {**self._environment, **extra}

    def _words(self, part: Part) -> list[str]:
        words = words_of(self)
        return [word.format(**words) for word in part.words]

    # ------------------------------------------------------------------ ballast

    def _hold_ballast(self, part: Part) -> None:
        """A process beside it holds the rest of the card's memory. The simulated device is one process's own."""
        if part.ballast_gb == self._ballast_gb:
            return
        self._ballast.close()
        self._ballast_gb = None
        if part.ballast_gb is None or self.plan.device != "cuda":
            return
        log = self.logs / "ballast.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.kit.ballast", "--leave-gb", str(part.ballast_gb)]
        process = self._ballast.enter_context(running(command, self.pack, self._environment, log))
        waited_until = time.monotonic() + BALLAST_READY_S
        while time.monotonic() < waited_until and process.poll() is None:
            if "ready" in log.read_text(errors="replace"):
                self._ballast_gb = part.ballast_gb
                return
            time.sleep(0.2)
        self.write("ballast", "not held", log=log.name, last_lines=log.read_text(errors="replace").splitlines()[-5:])

    # ------------------------------------------------------------------ the end

    def _compare(self) -> None:
        """One row for each model, size and seed: which ways of the app's flow made which latent."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in read_rows(self.rows_file):
            if row.get("latent"):
                case = f"{row['model']}, {row['case']}, {row['pixels']} pixels"
                found.setdefault(case, {}).setdefault(row["latent"], []).append(row["way"])
        for case, latents in found.items():
            self.write("compare", case, seconds=0.0, equal=len(latents) == 1, latents=latents)


def words_of(runner: Runner) -> dict[str, str]:
    """What the words in braces of the parts stand for."""
    plan = runner.plan
    words = {"device": plan.device, "tree": runner._environment["LAYERWISE_COMFYUI"], "pack": str(runner.pack)}
    words["files"] = str(_place_for_files(plan))
    if plan.smoke:
        small = {"size": "tiny", "pair": "flux2-tiny", "model": "tiny", "gib": "0.02", "pixels": "64,96"}
        small |= {"steps": "1", "rounds": "1", "row_seconds": "1", "repeats": "2", "peer_pixels": "64"}
        return {**words, **small, "app_pixels": "64,96", "app_steps": "2"}
    words |= {"size": _size(plan, runner.common()), "pair": "flux2-pair", "model": "flux", "gib": "1"}
    words |= {"pixels": "1024,1536,2048", "steps": "4", "rounds": "3", "row_seconds": "4", "repeats": "6"}
    return {**words, "peer_pixels": "1024,1536", "app_pixels": "1024,1536", "app_steps": "4"}


def _size(plan: Plan, common: Mapping[str, Any]) -> str:
    """The size of the core bench's model: what was asked for, else the largest that the free memory takes."""
    free = common.get("device", {}).get("free_bytes")
    if plan.size != "auto" or free is None:
        return "full" if plan.size == "auto" else plan.size
    return "full" if free > FULL_GB * 1e9 else "half" if free > HALF_GB * 1e9 else "tiny"


def _place_for_files(plan: Plan) -> Path:
    """Memory where there is enough of it, else beside the kit's work."""
    memory = Path("/dev/shm")
    if not plan.smoke and memory.is_dir() and shutil.disk_usage(memory).free > FILES_GB * 1e9:
        return memory / "layerwise-kit"
    return plan.work / "files"
