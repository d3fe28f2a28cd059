"""Device bytes never pass the budget: measured on the device, by its own allocator, not taken from our books."""

import re

import pytest

from tests.app.test_bit_identity import dit_report, smallest_budget_gb
from tests.support import workflows
from tests.support.workflows import build

pytestmark = pytest.mark.app

MIB = 2**20
VERY_SLOW_LINK = 60_000_000
"""Bytes per second: a pass of the small Flux copies for a second and computes for a fraction of one."""


def sampler_only(family: str, loader: str, **settings) -> dict:
    """The workflow without encoder, VAE and picture: what is on the device is the diffusion model and activations."""
    prompt = build(family, loader, **settings)
    for role in (workflows.VAE, workflows.DECODE, workflows.SAVE_IMAGE):
        del prompt[role]
    return prompt


def measure(server, prompt) -> tuple[int, int]:
    """Peak bytes on the device during a run, and the bytes that stay after it, without what was there before."""
    server.free()
    server.sim_reset()
    server.run(prompt).check()
    stats = server.sim_stats()
    return stats["peak"] - server.idle_bytes, stats["used"] - server.idle_bytes


@pytest.mark.parametrize("family", ["flux2", "wan", "sdxl"])
def test_weights_on_the_device_never_pass_the_budget(sim, family):
    peak, stays = measure(sim, sampler_only(family, "app"))
    activations = peak - stays  # with everything resident, what comes and goes is not weights
    smallest = smallest_budget_gb(sim, family)
    for budget in (smallest, smallest + 0.25 * (stays / 1e9 - smallest), smallest + 0.6 * (stays / 1e9 - smallest)):
        ours, left = measure(sim, sampler_only(family, "layerwise", placement="layerwise", budget_gb=budget))
        assert left <= round(budget * 1e9)
        assert ours - activations <= round(budget * 1e9)
        assert ours < peak
    sim.free()
    assert sim.sim_stats()["used"] == sim.idle_bytes


@pytest.mark.parametrize("family", ["flux2", "sdxl"])
def test_what_is_taken_of_the_device_never_passes_the_budget(sim, family):
    """In segments, with what the allocator keeps. Beside the weights as much is taken as when all of them are there."""

    def in_segments(nbytes: int) -> int:
        return nbytes if nbytes <= MIB else -(-nbytes // (2 * MIB)) * 2 * MIB

    def taken(**settings) -> int:
        sim.free()
        sim.sim_reset()
        before = sim.sim_stats()["reserved"]
        sim.run(sampler_only(family, "layerwise", **settings)).check()
        return sim.sim_stats()["reserved_peak"] - before

    smallest = smallest_budget_gb(sim, family)
    whole = taken(placement="resident")
    plan = dit_report(sim)["plan"]
    weights = in_segments(plan["loose_bytes"]) + sum(in_segments(layer["bytes"]) for layer in plan["layers"])
    assert weights > plan["loose_bytes"] + sum(layer["bytes"] for layer in plan["layers"]), "no layer is over 1 MiB"
    for budget in (smallest, smallest + 0.5 * (weights / 1e9 - smallest)):
        ours = taken(placement="layerwise", budget_gb=budget)
        assert dit_report(sim)["summary"]["device_bytes"] <= round(budget * 1e9)
        assert ours - (whole - weights) <= round(budget * 1e9)
        assert ours < whole


def test_a_larger_budget_is_used(sim):
    """The memory ladder: more budget, more of it resident, fewer bytes copied, never more than allowed.

    On a link so slow that no measured time could say that copies hide.
    """
    held, copied = [], []
    sim.sim_configure(bandwidth=VERY_SLOW_LINK)
    for budget in (0.02, 0.04, 0.06):
        sim.free()
        sim.run(build("flux", "layerwise", placement="layerwise", budget_gb=budget, steps=4)).check()
        report = dit_report(sim)
        held.append(report["summary"]["device_bytes"])
        copied.append(report["summary"]["bytes_copied"])
        assert held[-1] <= round(budget * 1e9)
    assert held == sorted(held) and held[0] < held[-1]
    assert copied == sorted(copied, reverse=True) and copied[0] > copied[-1]


def test_too_small_a_budget_names_the_smallest_that_works(sim):
    result = sim.run(build("flux", "layerwise", budget_gb=0.001))
    assert not result.ok
    smallest = float(re.search(r"at least ([0-9.]+) GB", result.message).group(1))
    assert sim.run(build("flux", "layerwise", budget_gb=smallest)).ok
    assert not sim.run(build("flux", "layerwise", budget_gb=round(smallest - 0.0005, 6))).ok
    assert sim.run(build("flux", "layerwise", budget_gb=smallest)).ok


def test_a_budget_larger_than_the_device_is_clamped_and_said(sim):
    sim.run(build("flux", "layerwise", budget_gb=900.0)).check()
    report = dit_report(sim)
    assert any("clamped" in warning for warning in report["warnings"])
    assert report["summary"]["device_bytes"] <= 8192 * 2**20


def test_resident_in_too_little_is_an_error(sim):
    result = sim.run(build("flux", "layerwise", placement="resident", budget_gb=0.03))
    assert not result.ok
    assert "whole" in result.message and "give at least" in result.message


def test_auto_streams_what_the_app_has_no_room_for(sim, weights_mb):
    weights_mb(110)
    sim.free()
    sim.run(sampler_only("sdxl", "layerwise")).check()
    plan = dit_report(sim)["plan"]
    assert any(layer["placement"] == "streamed" for layer in plan["layers"])
    assert any(layer["placement"] == "resident" for layer in plan["layers"])


def test_residents_give_way_when_another_model_needs_the_room(sim, weights_mb):
    """The VAE and encoder of the app's own ask for memory; our model gives layers back and the picture stays right."""
    from tests.app.test_bit_identity import outcome

    reference = outcome(sim, build("sdxl", "app"))
    sim.free()
    weights_mb(160)
    for _ in range(2):
        assert outcome(sim, build("sdxl", "layerwise")) == reference
        sim.run({"1": workflows.node("PreviewAny", source="x")})
    assert sim.sim_stats()["races"] == 0


def test_the_picture_stays_when_the_plan_is_made_again_by_measured_times(sim):
    """Between two steps of one run, or of the next; which way it turns out depends on the machine's speed."""
    from tests.app.test_bit_identity import outcome

    for seed in (1, 2, 3):
        reference = outcome(sim, build("flux", "app", steps=5, seed=seed))
        ours = outcome(sim, build("flux", "layerwise", placement="layerwise", budget_gb=0.06, steps=5, seed=seed))
        assert ours == reference
    report = dit_report(sim)
    assert report["summary"]["timed_visits"] > 0
    assert report["summary"]["peak_device_bytes"] <= 60_000_000
    assert sim.sim_stats()["races"] == 0
