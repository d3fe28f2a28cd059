"""Every seeded fault is caught, and in the way it should be. `test_race_check` shows that nothing else is.

SHOW_FAULTS=1 prints the table of docs/proofs.md.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.runtime import faults_patched, faults_replan, faults_walks  # noqa: F401 - they add to FAULTS
from tests.runtime.faults import FAULTS, Fault
from tests.runtime.world import World
from tests.runtime.zoo import ZOO
from tests.support.race_port import Race


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
    text = str(error)
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
    assert found >= seeded.kinds, f"caught only as {found}"


def test_there_are_enough_of_them():
    assert len(FAULTS) >= 73 and len({seeded.name for seeded in FAULTS}) == len(FAULTS)
