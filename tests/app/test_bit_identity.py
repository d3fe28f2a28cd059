"""The promise: latent and picture with our loader equal the app's, bit for bit, on the device that forgives nothing.

Poison is on, copies are slow, and the race check watches every byte. `tests/app/test_faults.py` shows that these tests
can fail.
"""

import re

import pytest

from tests.support import pixels, workflows
from tests.support.workflows import ARCHITECTURES, MORE_ARCHITECTURES, build

pytestmark = pytest.mark.app

SLOW_LINK = 300_000_000
"""Bytes per second: a layer of a few MB takes many milliseconds, so that a missing wait is seen."""


def outcome(server, prompt, timeout_s: float = 120) -> tuple[str, str]:
    """Digests of the decoded pixels and of the latents. (The saved file carries the prompt, so it always differs.)"""
    result = server.run(prompt, timeout_s).check()
    images, latents = server.images(result), server.latents(result)
    pixels.assert_sane(images)
    pixels.assert_sane(latents)
    return pixels.sha256(images), pixels.sha256(latents)


def smallest_budget_gb(server, family: str) -> float:
    """Found as a user finds it: by asking for too little and reading the error."""
    result = server.run(build(family, "layerwise", budget_gb=0.000001))
    assert not result.ok
    return float(re.search(r"at least ([0-9.]+) GB", result.message).group(1))


def dit_report(server) -> dict:
    return next(component for component in server.report()["components"] if component["component"] == "dit")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_equals_the_app_at_three_budgets_twice(sim, family):
    reference = outcome(sim, build(family, "app"))
    smallest = smallest_budget_gb(sim, family)
    sim.free()
    sim.sim_configure(bandwidth=SLOW_LINK)
    whole = None
    for share in (0.0, 0.4, 0.8):
        budget = smallest if whole is None else smallest + share * (whole - smallest)
        for _ in range(2):
            sim.sim_reset()
            assert outcome(sim, build(family, "layerwise", placement="layerwise", budget_gb=budget)) == reference
            report = dit_report(sim)
            plan, summary = report["plan"], report["summary"]
            assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]
            assert plan["ring_bytes"] + plan["resident_bytes"] + plan["loose_bytes"] <= round(budget * 1e9)
            assert any(layer["placement"] == "streamed" for layer in plan["layers"])
            assert summary["bytes_copied"] > 0
            assert report["warnings"] == []
            sim.free()
        whole = (sum(layer["bytes"] for layer in plan["layers"]) + plan["loose_bytes"]) / 1e9


@pytest.mark.parametrize("family", MORE_ARCHITECTURES)
def test_equals_the_app_at_the_smallest_budget(sim, family):
    """Our loader twice over a model that stays loaded, with another seed in between; then Apply."""
    reference = outcome(sim, build(family, "app"))
    budget = smallest_budget_gb(sim, family)
    sim.free()
    sim.sim_configure(bandwidth=SLOW_LINK)
    streamed = {"loader": "layerwise", "placement": "layerwise", "budget_gb": budget}
    assert outcome(sim, build(family, **streamed)) == reference
    first = dit_report(sim)["summary"]
    assert outcome(sim, build(family, **streamed, seed=2)) != reference
    assert outcome(sim, build(family, **streamed)) == reference
    report = dit_report(sim)
    plan, summary = report["plan"], report["summary"]
    assert plan["ring_bytes"] + plan["resident_bytes"] + plan["loose_bytes"] <= round(budget * 1e9)
    assert any(layer["placement"] == "streamed" for layer in plan["layers"])
    assert summary["passes"] == 3 * first["passes"]
    assert summary["demand_loads"] == first["demand_loads"], "the order is known after the first run"
    assert report["warnings"] == []
    sim.free()
    assert outcome(sim, build(family, "apply", budget_gb=budget)) == reference
    assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_apply_equals_the_app(sim, family):
    reference = outcome(sim, build(family, "app"))
    sim.free()
    budget = smallest_budget_gb(sim, family)
    sim.free()
    assert outcome(sim, build(family, "apply", budget_gb=budget)) == reference
    assert sim.sim_stats()["races"] == 0


def test_the_second_pass_has_no_demand_loads(sim):
    sim.run(build("flux", "layerwise", placement="layerwise", budget_gb=0.03, steps=4)).check()
    summary = dit_report(sim)["summary"]
    assert summary["passes"] == 4
    assert summary["demand_loads"] <= 1
    assert summary["prefetch_hits"] + summary["resident_visits"] >= summary["visits"] - 1


def test_connectors_that_run_before_the_steps_do_not_wait(sim):
    """The app sends each conditioning through LTX-2's connectors before the first step, outside of any pass."""
    late = []
    for seed in (1, 2, 3):
        before = dit_report(sim)["summary"]["demand_loads"] if late else 0
        sim.run(build("ltxav", "layerwise", placement="layerwise", budget_gb=0.015, steps=4, seed=seed)).check()
        late.append(dit_report(sim)["summary"]["demand_loads"] - before)
    layers = [layer["name"] for layer in dit_report(sim)["plan"]["layers"]]
    assert sum("embeddings_connector" in name for name in layers) == 4
    assert late[0] == 0 and max(late) <= 1, "where a run begins another step was expected"


def test_lora_equals_the_app_loaded_whole(sim):
    reference = outcome(sim, build("flux", "app", lora=0.8))
    plain = outcome(sim, build("flux", "app"))
    assert reference != plain
    sim.free()
    for loader in ("layerwise", "apply"):
        assert outcome(sim, build("flux", loader, lora=0.8, budget_gb=0.03)) == reference
        assert outcome(sim, build("flux", loader, lora=0.4, budget_gb=0.03)) != reference
        assert outcome(sim, build("flux", loader, budget_gb=0.03)) == plain, "a LoRA that was taken out leaves no trace"
        sim.free()


def test_the_picture_does_not_depend_on_how_much_memory_was_free(sim, weights_mb):
    """With a LoRA on, the app's partial load rounds patched weights otherwise than its full load, and ours as that."""
    whole = outcome(sim, build("flux", "app", lora=0.8))
    for megabytes in (30, 45, 60):
        sim.free()
        weights_mb(megabytes)
        assert outcome(sim, build("flux", "layerwise", lora=0.8)) == whole
    sim.free()
    weights_mb(30)
    assert outcome(sim, build("flux", "app", lora=0.8)) != whole, "README says that the app's differs: no longer true"


def test_placements_that_do_not_stream_equal_the_app(sim):
    reference = outcome(sim, build("flux", "app"))
    for placement in ("auto", "resident", "whole"):
        sim.free()
        assert outcome(sim, build("flux", "layerwise", placement=placement)) == reference


def test_a_plain_fp8_file_is_streamed_and_equals_the_app(sim):
    reference = outcome(sim, build("flux_fp8", "app"))
    sim.free()
    assert outcome(sim, build("flux_fp8", "layerwise", budget_gb=0.03)) == reference
    assert any(layer["placement"] == "streamed" for layer in dit_report(sim)["plan"]["layers"])


@pytest.mark.parametrize("family", ["flux_fp8_scaled", "flux_int8", "flux_nvfp4", "flux_mxfp8"])
def test_quantised_weights_are_streamed_as_bytes_and_equal_the_app(sim, family):
    """The app wraps these weights in a type of its own."""
    reference = outcome(sim, build(family, "app"))
    assert reference != outcome(sim, build("flux", "app"))
    sim.free()
    sim.sim_configure(bandwidth=SLOW_LINK)
    smallest = smallest_budget_gb(sim, family)
    for budget in (smallest, 1.6 * smallest):
        sim.free()
        sim.sim_reset()
        assert outcome(sim, build(family, "layerwise", budget_gb=budget)) == reference
        assert sim.sim_stats()["races"] == 0, sim.sim_stats()["race_message"]
        report = dit_report(sim)
        plan = report["plan"]
        streamed = [layer for layer in plan["layers"] if layer["placement"] == "streamed"]
        assert streamed and report["summary"]["bytes_copied"] > sum(layer["bytes"] for layer in streamed)
        assert not any("QuantizedTensor" in decision for decision in plan["decisions"])
        assert report["warnings"] == []


def test_a_model_used_by_the_app_and_by_apply_in_one_graph(sim):
    """Both patchers hold the same module: each must find it as it needs it, again and again."""
    prompt = build("flux", "apply", budget_gb=0.03)
    reference = outcome(sim, build("flux", "app"))
    sim.free()
    sampler = dict(prompt[workflows.SAMPLER]["inputs"], model=[workflows.MODEL, 0])
    prompt["108"] = {"class_type": "KSampler", "inputs": sampler}
    prompt["112"] = {"class_type": "SaveLatent", "inputs": {"samples": ["108", 0], "filename_prefix": "latents/both"}}
    for seed in (1, 2, 1):
        prompt[workflows.SAMPLER]["inputs"]["seed"] = sampler["seed"] = seed
        result = sim.run(prompt).check()
        latents = {pixels.sha256([latent]) for latent in sim.latents(result)}
        assert len(latents) == 1
        assert seed != 1 or latents == {reference[1]}
