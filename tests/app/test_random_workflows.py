"""Workflows that no test names: each equals the app's bit for bit, or is refused with a reason, and leaves nothing.

On the simulated accelerator, and fewer in an app that computes on the CPU. A failure shows the seed and the simplest
case that still fails; `python -m tests.support.random_workflows SEED` runs a seed again, with `--device cpu` there, and
`--prompt SEED` shows its workflow.
"""

import pytest

from tests.support.devkit import paths
from tests.support.random_workflows.case import Case, draw, seeds_by_version, shrink
from tests.support.random_workflows.judge import PACKS, RAN, REFUSED, Judge

pytestmark = pytest.mark.app

SEEDS = {"sim": range(300), "cpu": range(100)}
BATCH = 20
FEW = (1, 2, 12, 23, 33)
"""Of every run: two LoRA stacks over one model behind Apply, an interrupt, a quantised type, a checkpoint, a merge."""


def problems(judge: Judge, cases: list[Case]) -> list[str]:
    """What is wrong, with the simplest case for the first one; asserts that a batch runs, most of it, and streams."""
    found = []
    verdicts = [judge(case) for case in cases]
    for verdict in verdicts:
        print(verdict.outcome, verdict.case.text(), verdict.detail)
        if verdict.problem:
            found.append(f"{verdict.case.text()}: {verdict.problem}")
    if found:
        failing = next(verdict.case for verdict in verdicts if verdict.problem)
        simplest = shrink(failing, lambda case: bool(judge(case).problem))
        found.append(f"the first of them at its simplest: {simplest.text()}")
    assert sum(verdict.outcome == RAN for verdict in verdicts) > sum(verdict.outcome == REFUSED for verdict in verdicts)
    assert any(verdict.streamed for verdict in verdicts)
    return found


@pytest.mark.parametrize("server", ["faulty", "cpu"])
def test_a_few_random_workflows(server, request):
    server = request.getfixturevalue(server)
    assert problems(Judge(server), [draw(seed, server.version) for seed in FEW]) == []


def batches():
    """(device, version, seeds), each worth a server."""
    for device, all_seeds in SEEDS.items():
        for version, seeds in seeds_by_version(all_seeds).items():
            for start in range(0, len(seeds), BATCH):
                some = seeds[start : start + BATCH]
                yield pytest.param(device, version, some, id=f"{device}-{version}-{some[0]}")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("device", "version", "seeds"), list(batches()))
def test_random_workflows(device, version, seeds, app_server_factory):
    if not paths.app_tree(version).is_dir():
        pytest.skip(f"python3 dev.py setup --comfyui {version}")
    server = app_server_factory(device, version=version, extra_packs=PACKS)
    assert problems(Judge(server), [draw(seed) for seed in seeds]) == []


def test_the_judge_sees_a_fault_of_the_engine(faulty):
    """Seeded: compute does not wait for copies, on a slow link."""
    judge = Judge(faulty, engine_fault="no_wait_for_the_copy")
    verdict = judge(Case(7, budget_share=0.3, dit="layerwise", slow_link=True))
    assert "differs" in verdict.problem or "races" in verdict.problem or "not finite" in verdict.problem


def test_cases_are_drawn_from_their_seed_and_shrink_towards_the_simplest():
    assert draw(5) == draw(5)
    drawn = [draw(seed) for seed in SEEDS["sim"]]
    assert len({case.text() for case in drawn}) == len(drawn)
    assert {case.version for case in drawn} == {"0.30.0", "0.27.0", "0.24.1", "0.18.2", "0.16.3"}
    assert {case.fault for case in drawn} == {"", "interrupt", "failure", "out_of_memory"}
    case = next(one for one in drawn if one.controlnet and one.loras)
    simplest = shrink(case, lambda one: one.controlnet)
    assert simplest == Case(case.seed, case.version, controlnet=True)
