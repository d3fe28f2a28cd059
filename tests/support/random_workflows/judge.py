"""Runs a case and judges it: the same as the app bit for bit, or refused with a reason; and nothing left behind."""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field, replace

from tests.support import pixels, saved_weights
from tests.support.app_server import APP_RESERVE_MB, AppServer, Result
from tests.support.devkit import paths

from .case import Case
from .prompts import SAVE, SAVED_PREFIX, Numbers, app_prompts, numbers_of, our_prompts

PACKS = (paths.SUPPORT / "fault_pack", paths.SUPPORT / "gguf_pack")
"""What a judge's server has beside ours."""

SLOW_LINK = 300_000_000
PLENTY_MB = 8192
RAN, REFUSED, APP_CANNOT = "ran", "refused", "the app cannot"
_OURS = ("OffloadError", "SettingsError", "BudgetError", "PlanError", "StateError")
_TOO_SMALL = re.compile(r"at least ([0-9.]+) GB")


@dataclass
class Verdict:
    """`problem` is empty if all is well; `detail` is the reason of a refusal."""

    case: Case
    outcome: str
    problem: str = ""
    detail: str = ""
    streamed: bool = False


class Refused(Exception):
    """One of ours, with its message."""


@dataclass
class Judge:
    """One server, with the app's results by prompt: many cases share them. The server has the fault pack.

    `engine_fault` is in the engine while our prompts run: for the test that looks at the judge.
    """

    server: AppServer
    engine_fault: str = ""
    known: dict[str, str] = field(default_factory=dict)
    clean: bool = False
    """Whether the last case left the server empty: emptying it is a good part of what a case costs."""

    def __call__(self, case: Case) -> Verdict:
        if not self.clean:
            self._clean()
        if self._simulated:
            self.server.sim_reset()
        self.clean = False
        expected = self._expected(case)
        if isinstance(expected, str):
            return Verdict(case, APP_CANNOT, detail=expected)
        self.server.free()
        before = self._held()
        numbers = numbers_of(case)
        verdict = self._run(case, expected, numbers)
        while (enough := _after_reading(verdict.detail, numbers)) is not None:
            self.server.free()  # the refused run's model may lie in no file, and stay in memory until it is dropped
            numbers, verdict = enough, self._run(case, expected, enough)
        self.server.post("/fault", {"name": ""})
        self._configure(mb=PLENTY_MB, bandwidth=0)
        self.server.free()
        if self._simulated and (stats := self.server.sim_stats())["races"]:
            verdict.problem = verdict.problem or f"{stats['races']} races: {stats['race_message']}"
        held = self._held_after_a_moment(before)
        self.clean = held == before
        if not self.clean:
            verdict.problem = verdict.problem or f"left behind: {held} instead of {before}"
        return verdict

    def _clean(self) -> None:
        self.server.post("/fault", {"name": ""})
        self._configure(mb=PLENTY_MB, bandwidth=0, poison=1, race=1)
        self.server.free()

    @property
    def _simulated(self) -> bool:
        """Else the app computes on the CPU, whose memory is the machine's: as much as there is, and no link to it."""
        return self.server.device == "sim"

    def _configure(self, **simulated: int) -> None:
        if self._simulated:
            self.server.sim_configure(**simulated)

    def _held_after_a_moment(self, before: dict[str, int]) -> dict[str, int]:
        """Masters that stay to the end of a prompt go when a thread has noticed that it ended (decision 111)."""
        held = self._held()
        for _ in range(20):
            if held == before:
                break
            time.sleep(0.1)
            held = self._held()
        return held

    def _held(self) -> dict[str, int]:
        """Live components; of a simulated device its bytes and what is page-locked for it."""
        held = {"components": len(self.server.report()["components"])}
        if self._simulated:
            stats = self.server.sim_stats()
            held |= {"device": stats["used"], "pinned": stats["pinned"]}
        return held

    def _expected(self, case: Case) -> list[str] | str:
        """What the app saves, per prompt; or, if it cannot run one of them, its error."""
        digests = []
        for prompt in app_prompts(case):
            key = json.dumps(prompt, sort_keys=True)
            if key not in self.known:
                self.known[key] = self._apps_own(prompt)
            if self.known[key].startswith("error"):
                return self.known[key]
            digests.append(self.known[key])
        return digests

    def _apps_own(self, prompt: dict) -> str:
        result = self.server.run(prompt)
        if not result.ok:
            return f"error: {result.message}"
        try:
            return digest(self.server, result, prompt)
        except AssertionError as error:  # a merge, say, that gives no picture without us either
            return f"error: {error}"

    def _run(self, case: Case, expected: list[str], numbers: Numbers) -> Verdict:
        server = self.server
        self._configure(
            mb=APP_RESERVE_MB + case.weights_mb if case.weights_mb else PLENTY_MB,
            bandwidth=SLOW_LINK if case.slow_link else 0,
        )
        try:
            prompts = our_prompts(case, numbers)
            if case.fault:
                server.post("/fault", {"name": case.fault, "at": case.at})
                ended = server.run(prompts[0])
                if not ended.ok and not _seeded(ended):
                    refuse_or_fail(ended)
            server.post("/fault", {"name": self.engine_fault})
            streamed = False
            for number, (prompt, digest_) in enumerate(zip(prompts, expected)):
                result = server.run(prompt)
                if not result.ok:
                    refuse_or_fail(result)
                if digest(server, result, prompt) != digest_:
                    return Verdict(case, RAN, f"prompt {number} of {len(prompts)} differs from the app's")
                if over := self._over(numbers):
                    return Verdict(case, RAN, f"prompt {number} of {len(prompts)}: {over}")
                streamed = streamed or self._streams()
            return Verdict(case, RAN, streamed=streamed)
        except Refused as refusal:
            return Verdict(case, REFUSED, detail=str(refusal))
        except AssertionError as error:
            return Verdict(case, RAN, str(error))

    def _over(self, numbers: Numbers) -> str:
        """What is held beyond the numbers for the workflow; "" if nothing."""
        report = self.server.report()
        held = sum(device[f"{kind}_bytes"] for device in report["devices"] for kind in ("ring", "resident", "loose"))
        said = {notice["code"] for component in report["components"] for notice in component["notices"]}
        own = numbers.budget if "own_beyond_workflow" in said else 0.0  # it counts where it is more than the number
        if numbers.workflow and held > round(max(numbers.workflow, own) * 1e9):
            return f"{held} bytes of weights on the device, within {numbers.workflow} GB or its own {own} GB"
        copies = report["host"]["pinned_bytes"] + report["host"]["pageable_bytes"]
        if self._simulated and numbers.workflow_host and copies > round(numbers.workflow_host * 1e9):
            return f"{copies} bytes of copies of layers, within {numbers.workflow_host} GB"
        return ""

    def _streams(self) -> bool:
        components = self.server.report()["components"]
        return any(layer["placement"] == "streamed" for one in components for layer in one["plan"]["layers"])


def digest(server: AppServer, result: Result, prompt: dict) -> str:
    """Of all latents, all pictures, and the weights in the file that the prompt may have saved."""
    arrays = server.latents(result) + server.images(result)
    pixels.assert_sane(arrays)
    seen = pixels.sha256(arrays)
    if SAVE not in prompt:
        return seen
    weights = sorted(saved_weights.take(server.base / "output", SAVED_PREFIX).items())
    return hashlib.sha256(repr((seen, weights)).encode()).hexdigest()


def refuse_or_fail(result: Result) -> None:
    """Raise Refused for an error of ours that says what was asked and why not; AssertionError for others."""
    kind = result.error.get("exception_type", "")
    if result.status == "error" and kind.split(".")[-1] in _OURS and "asked" in result.message:
        raise Refused(result.message)
    trace = "".join(result.error.get("traceback", []))
    raise AssertionError(f"ended as {result.status}: {result.message}\n{trace[-3000:]}")


def _after_reading(refusal: str, numbers: Numbers) -> Numbers | None:
    """The numbers as a person would change them who reads the error; None if it names none that is more."""
    if not (named := _TOO_SMALL.search(refusal)):
        return None
    if "for the weights of the workflow" in refusal:
        name = "workflow"
    else:
        name = "workflow_host" if "of system memory for the layers" in refusal else "budget"
    least = float(named.group(1))
    return replace(numbers, **{name: least}) if 0 < getattr(numbers, name) < least else None


def _seeded(result: Result) -> bool:
    return result.status == "interrupted" or "seeded" in result.message
