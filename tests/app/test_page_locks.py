"""Page-locked memory in the real app: what a refused lock does to a picture, and when memory is locked at all."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.support.workflows import build

pytestmark = pytest.mark.app

MIB = 2**20
STREAMED = {"placement": "layerwise", "budget_gb": 0.03}


@pytest.mark.parametrize("allocator", ["native", "cudaMallocAsync"])
@pytest.mark.parametrize("lora", [None, 0.8])
def test_refused_locks_give_the_app_s_picture(sim, allocator, lora):
    """A refused lock leaves an error for the next launch, or the next allocation: another place for each allocator."""
    patch = {} if lora is None else {"lora": lora}
    sim.sim_configure(allocator=allocator)
    expected = outcome(sim, build("flux", **patch))
    sim.free()
    sim.sim_configure(pin_limit_mb=sim.sim_stats()["pinned"] / MIB)
    assert outcome(sim, build("flux", "layerwise", seed=1, **patch, **STREAMED)) == expected
    report = dit_report(sim)
    assert any("could not be page-locked" in line for line in report["warnings"]), report["warnings"]
    assert report["summary"]["prefetch_hits"] > 0
    sim.free()
    sim.sim_configure(pin_limit_mb=-1)
    assert outcome(sim, build("flux", "layerwise", seed=1, **patch, **STREAMED)) == expected
    assert not any("could not be page-locked" in line for line in dit_report(sim)["warnings"])
    assert sim.sim_stats()["races"] == 0


def test_another_strength_page_locks_nothing(sim):
    locks, plans = [], []
    for strength in (0.8, 0.7, 0.6, 0.4, 0.2):
        assert sim.run(build("flux", "layerwise", lora=strength, **STREAMED)).ok
        locks.append(sim.sim_stats()["registrations"])
        plans.append([layer["placement"] for layer in dit_report(sim)["plan"]["layers"]])
    assert dit_report(sim)["summary"]["revised_layers"] > 0
    # Once, when the layers have been measured, there may be another plan, and what it streams is page-locked.
    assert plans[1:] == [plans[1]] * 4
    assert locks[0] > 0 and len(set(locks if plans[0] == plans[1] else locks[1:])) == 1, locks
    assert sim.sim_stats()["races"] == 0
