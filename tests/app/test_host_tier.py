"""Where streamed layers are kept on the host: `host_tier` and `pin_budget_gb`, set in every way."""

import json

import pytest

from tests.app.test_before_the_run import expect
from tests.app.test_bit_identity import dit_report, outcome
from tests.support.workflows import APPLY, CLIP, MODEL, VAE, build, node, with_our_loaders

pytestmark = pytest.mark.app

STREAMED = {"placement": "layerwise", "budget_gb": 0.03}
ROADS = ("options", "graph", "settings")


def said(road: str, prompt: dict, **values) -> dict:
    """The prompt with `values` said for all components, by an options node, the graph's options or the settings."""
    prompt = json.loads(json.dumps(prompt))
    mine = [entry for entry in prompt.values() if entry["class_type"].startswith("LayerwiseOffload")]
    for entry in mine:
        if road == "options":
            entry["inputs"]["options"] = ["90", 0]
        else:
            components = {"components": {"all": values}}
            entry["inputs"]["graph_options"] = json.dumps({"schema": 1, road: components})
    if road == "options":
        prompt["90"] = node("LayerwiseOffloadOptions", **values)
    return prompt


def flux(lora: float | None = None, **widgets) -> dict:
    patch = {} if lora is None else {"lora": lora}
    return build("flux", "layerwise", **patch, **{**STREAMED, **widgets})


def streamed(plan: dict) -> list[dict]:
    return [layer for layer in plan["layers"] if layer["placement"] == "streamed"]


def tiers(plan: dict) -> set[str]:
    return {layer["host_tier"] for layer in streamed(plan)}


@pytest.fixture
def reference(sim):
    found = outcome(sim, build("flux"))
    sim.free()
    sim.sim_reset()
    return found


@pytest.mark.parametrize(
    ("tier", "road"), [*(("pageable", road) for road in ROADS), ("pinned", "options"), ("mapped", "graph")]
)
def test_the_tier_that_was_asked_for_is_had_and_the_picture_is_the_same(sim, reference, road, tier):
    prompt = said(road, flux(seed=1), host_tier=tier)
    (before,) = expect(sim, prompt)["components"]
    assert outcome(sim, prompt) == reference
    report = dit_report(sim)
    assert tiers(report["plan"]) == tiers(before["plan"]) == {tier}
    setting = report["settings"]["host_tier"]
    assert (setting["value"], setting["source"]) == (tier, road) and "for all" in setting["reason"]
    assert before["settings"]["host_tier"] == setting
    assert f"host_tier = {tier}, as asked" in report["plan_text"]
    nbytes = sum(layer["bytes"] for layer in streamed(report["plan"]))
    assert report["summary"]["host_bytes"][tier] >= nbytes and report["host"][f"{tier}_bytes"] >= nbytes
    assert report["summary"]["host_bytes"]["pageable"] == (nbytes if tier == "pageable" else 0)
    assert report["summary"]["prefetch_hits"] > 0 and sim.sim_stats()["races"] == 0


@pytest.mark.parametrize("road", ["options", "settings"])
def test_a_budget_of_page_locked_memory_is_kept(sim, reference, road):
    prompt = said(road, flux(seed=1), pin_budget_gb=0.02)
    (before,) = expect(sim, prompt)["components"]
    assert outcome(sim, prompt) == reference
    report = dit_report(sim)
    assert tiers(report["plan"]) == tiers(before["plan"]) == {"pinned", "pageable"}
    assert 10_000_000 < report["summary"]["pinned_bytes"] <= 20_000_000
    assert report["settings"]["pin_budget_bytes"]["source"] == road
    assert "0.02 GB page-locked, as asked" in report["plan_text"] and sim.sim_stats()["races"] == 0


@pytest.mark.parametrize("tier", ["pinned", "pageable", "mapped"])
def test_with_a_lora_the_picture_is_the_same_too(sim, tier):
    expected = outcome(sim, build("flux", lora=0.8))
    sim.free()
    assert outcome(sim, said("options", flux(lora=0.8, seed=1), host_tier=tier)) == expected
    assert tiers(dit_report(sim)["plan"]) == {tier}


@pytest.mark.parametrize("road", ROADS)
def test_mapped_is_refused_for_what_lies_in_no_file_and_who_asked_is_named(sim, road):
    who = {"options": "the connected options node", "graph": "the graph's options", "settings": "ComfyUI settings"}
    prompt = said(road, build("flux", "apply", **STREAMED), host_tier="mapped")
    assert prompt[APPLY]["class_type"] == "LayerwiseOffloadApply"
    told = expect(sim, prompt)
    result = sim.run(prompt)
    assert not result.ok
    for message in (result.message, told["error"]):
        assert "asked dit.host_tier = mapped" in message and who[road] in message
        assert "layers of" in message and "lie in no file" in message and "choose pageable, pinned or auto" in message
    assert sim.run(said(road, build("flux", "apply", **STREAMED), host_tier="pageable")).ok


def test_pinned_beyond_the_budget_of_page_locked_memory_is_refused(sim):
    prompt = said("graph", flux(), host_tier="pinned", pin_budget_gb=0.02)
    result = sim.run(prompt)
    assert not result.ok
    for message in (result.message, expect(sim, prompt)["error"]):
        assert "asked dit.host_tier = pinned (the graph's options)" in message and "20.0 MB" in message
        assert "page-locked" in message and "choose pageable or auto" in message
    enough = said("graph", flux(), host_tier="pinned", pin_budget_gb=0.1)
    assert sim.run(enough).ok and tiers(dit_report(sim)["plan"]) == {"pinned"}


@pytest.mark.parametrize(
    ("tier", "left_mb", "words"),
    [
        ("pinned", 100, ("found that 52.4 MB may be page-locked", "choose pageable or auto")),
        ("pageable", 10, ("found 10.5 MB of", "memory for", "choose mapped or auto")),
    ],
)
def test_more_host_memory_than_there_is_is_refused_and_what_is_there_already_counts(faulty, tier, left_mb, words):
    """The second run of a loaded model takes no more memory than the first one took."""
    prompt = said("options", flux(), host_tier=tier)
    faulty.run(prompt).check()
    faulty.post("/fault", {"name": "little_memory", "at": left_mb})
    again = said("options", flux(seed=5), host_tier=tier)
    assert "error" not in expect(faulty, again)
    faulty.run(again).check()
    assert tiers(dit_report(faulty)["plan"]) == {tier}
    faulty.free()
    told, result = expect(faulty, prompt), faulty.run(prompt)
    assert not result.ok
    for message in (result.message, told["error"]):
        assert f"dit.host_tier = {tier} (the connected options node)" in message
        assert all(part in message for part in words)
    faulty.post("/fault", {"name": ""})
    faulty.run(prompt).check()


def test_page_locks_beyond_the_memory_there_is_are_refused(sim):
    result = sim.run(said("graph", flux(), pin_budget_gb=1000))
    assert not result.ok
    assert "dit.pin_budget_bytes = 1000.00 GB (the graph's options)" in result.message
    assert "of memory available; do lower it" in result.message


@pytest.mark.parametrize("road", ROADS)
def test_an_unknown_tier_is_refused_with_those_there_are(sim, road):
    result = sim.run(said(road, flux(), host_tier="disk"))
    assert not result.ok and "disk" in result.message
    assert all(tier in result.message for tier in ("auto", "pinned", "pageable", "mapped"))


def test_a_word_for_all_says_nothing_to_what_is_left_to_the_app(sim):
    widgets = {MODEL: STREAMED, CLIP: {"placement": "whole"}, VAE: {"placement": "resident"}}
    prompt = said("graph", with_our_loaders(build("flux", vae="vae_flux"), widgets), host_tier="mapped")
    assert sim.run(prompt).ok
    (dit, vae) = sim.report()["components"]
    assert dit["component"] == "dit" and tiers(dit["plan"]) == {"mapped"}
    assert not any("host_tier" in line for line in vae["warnings"])


def test_on_the_cpu_there_is_no_tier_to_choose(cpu):
    expected = outcome(cpu, build("flux"))
    for road, lines in (("graph", 0), ("options", 1)):
        cpu.free()
        assert outcome(cpu, said(road, flux(budget_gb=0.05), host_tier="pinned", pin_budget_gb=0.01)) == expected
        report = dit_report(cpu)
        assert tiers(report["plan"]) == {"mapped"}
        said_of_it = [line for line in report["warnings"] if "dit.host_tier and dit.pin_budget_bytes have" in line]
        assert len(said_of_it) == lines, report["warnings"]


def test_a_budget_of_page_locked_memory_is_above_the_apps_ceiling(faulty):
    """What the user says replaces the app's own limit, as long as there is memory."""
    expected = outcome(faulty, build("flux"))
    faulty.free()
    faulty.post("/fault", {"name": "pin_ceiling", "at": 1})
    assert outcome(faulty, flux(seed=1)) == expected
    assert dit_report(faulty)["summary"]["pinned_bytes"] <= 2 << 20
    faulty.free()
    assert outcome(faulty, said("options", flux(seed=1), pin_budget_gb=0.1)) == expected
    assert tiers(dit_report(faulty)["plan"]) == {"pinned"}
    assert dit_report(faulty)["summary"]["pinned_bytes"] > 50_000_000
    faulty.free()
    refused = faulty.run(said("options", flux(seed=2), host_tier="pinned"))
    assert not refused.ok and "the app's own ceiling for page-locked memory" in refused.message


def test_what_a_node_has_loaded_and_nothing_has_run_is_planned_with_it(sim):
    prompt = said("options", {MODEL: flux()[MODEL]}, host_tier="pageable")
    sim.run({**prompt, "80": node("PreviewAny", source=[MODEL, 0])}).check()
    (dit,) = sim.report()["expected"]
    assert tiers(dit["plan"]) == {"pageable"} and "host_tier = pageable, as asked" in dit["plan_text"]
