"""Every seeded fault is caught, and in the way it should be. `test_race_check` shows that nothing else is.

SHOW_FAULTS=1 prints the table of docs/proofs.md.
"""

from __future__ import annotations

import os
import re
import traceback

import pytest
import torch

from offload_core.runtime import OffloadController
from tests.runtime import faults, faults_hand_over, faults_patched, faults_replan, faults_walks
from tests.runtime.faults import FAULTS, Fault, before
from tests.runtime.world import World
from tests.runtime.zoo import ZOO
from tests.support.race_port import Race

BROKEN = "broken"
MODULES = (faults, faults_hand_over, faults_patched, faults_replan, faults_walks)
SEEDS = {f"{module.__name__.rpartition('.')[2]}.py" for module in MODULES}


def caught_by(scenario, world: World | None = None) -> set[str]:
    """How a scenario fails: empty if it does not."""
    world = world or World()
    kinds: set[str] = set()
    try:
        with torch.no_grad(), world:
            scenario(world)
    except Race as race:
        if race.__context__ is not None:
            kinds.add(_kind(race.__context__))
    except BaseException as error:
        kinds.add(_kind(error))
    if world.port.races:
        kinds.add("race")
    return kinds


def _kind(error: BaseException) -> str:
    """ "race", "value", "state" or "slow"; BROKEN for a seed that no longer fits the engine's functions."""
    text = str(error)
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    misused = isinstance(error, TypeError | AttributeError | NameError) and os.path.basename(place) in SEEDS
    if misused or (isinstance(error, TypeError) and re.search(r"(positional|keyword-only|keyword) argument", text)):
        return BROKEN
    if "demand loads" in text:
        return "slow"
    if "saw the tags" in text or "another output" in text or "another value" in text:
        return "value"
    return "state"


@pytest.mark.parametrize("seeded", FAULTS, ids=lambda seeded: seeded.name)
def test_caught(seeded: Fault, monkeypatch, capsys):
    seeded.put_in(monkeypatch)
    show = bool(os.environ.get("SHOW_FAULTS"))
    found: set[str] = set()
    scenarios = 0
    for scenario in ZOO:
        kinds = caught_by(scenario)
        found |= kinds
        scenarios += bool(kinds)
        if found >= seeded.kinds and not show:
            break
    monkeypatch.undo()
    if show:
        name = seeded.name.replace("_", " ")
        with capsys.disabled():
            print(f"\n| {name} | {', '.join(sorted(found))} | {scenarios} of {len(ZOO)} |")
    assert BROKEN not in found, "the seed itself fails"
    assert found >= seeded.kinds, f"caught only as {found}"


def test_a_seed_that_does_not_fit_the_engine_is_not_taken_for_a_caught_fault(monkeypatch):
    with monkeypatch.context() as patch:
        before(patch, OffloadController, "load", lambda self: None)  # it lacks the plan
        assert caught_by(ZOO[0]) == {BROKEN}
    monkeypatch.setattr(OffloadController, "load", lambda self: None)
    assert caught_by(ZOO[0]) == {BROKEN}


def test_there_are_enough_of_them():
    assert len(FAULTS) >= 73 and len({seeded.name for seeded in FAULTS}) == len(FAULTS)
