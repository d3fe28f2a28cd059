"""What becomes of streamed layers that a LoRA has changed: kept on the host, or changed again on each arrival."""

import json

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.app.test_components import encoding, report_of, saved
from tests.support import tiny_models
from tests.support.workflows import CLIP, MODEL, NEGATIVE, POSITIVE, build, node, with_our_loaders

pytestmark = pytest.mark.app

STREAMED = {"placement": "layerwise", "budget_gb": 0.03}


def patched(lora_mode: str = "auto", seed: int = 1, by: str = "node") -> dict:
    """Flux with a LoRA under our loader, two passes; `by`: who says the mode."""
    prompt = build("flux", "layerwise", lora=0.8, seed=seed, **STREAMED)
    if by == "node":
        prompt[MODEL]["inputs"]["lora_mode"] = lora_mode
    elif by == "options":
        prompt["90"] = node("LayerwiseOffloadOptions", lora_mode=lora_mode)
        prompt[MODEL]["inputs"]["options"] = ["90", 0]
    else:
        graph = {"components": {"dit": {"lora_mode": lora_mode}}}
        prompt[MODEL]["inputs"]["graph_options"] = json.dumps({"schema": 1, "graph": graph})
    return prompt


def run_twice(server, **how) -> list[dict]:
    """The reports of two runs of two passes; the first one's picture is the app's."""
    reports = []
    for seed in (1, 2):
        found = outcome(server, patched(seed=seed, **how))
        if seed == 1:
            assert found == run_twice.reference
        reports.append(dit_report(server))
    return reports


def counts(reports: list[dict], name: str) -> list[int]:
    first, second = (report["summary"][name] for report in reports)
    return [first, second - first]


@pytest.fixture
def reference(sim):
    run_twice.reference = outcome(sim, build("flux", lora=0.8))
    sim.free()
    return sim


@pytest.mark.parametrize("by", ["node", "options", "graph"])
def test_on_arrival_keeps_nothing_and_changes_layers_each_time(reference, by):
    reports = run_twice(reference, lora_mode="on_arrival", by=by)
    layers = reports[0]["plan"]["layers"]
    streamed = sum(layer["placement"] == "streamed" for layer in layers)
    assert counts(reports, "copied_back") == [0, 0], "nothing is kept"
    first, second = counts(reports, "revised_layers")
    assert second >= 2 * streamed and first >= 2 * streamed, "each streamed layer, in each of two passes"
    assert any(line.startswith("as lora_mode asks: patches") for line in reports[1]["warnings"])
    assert reports[0]["settings"]["lora_mode"] == reports[0]["settings"]["lora_mode"] | {
        "value": "on_arrival",
        "source": by,
    }
    assert reference.sim_stats()["races"] == 0


@pytest.mark.parametrize("lora_mode", ["auto", "host"])
def test_kept_layers_are_changed_once(reference, lora_mode):
    reports = run_twice(reference, lora_mode=lora_mode)
    first, second = counts(reports, "copied_back")
    assert first > 0 and second <= reports[0]["plan"]["resident_bytes"], "those that stayed and then no longer did"
    residents = sum(layer["placement"] == "resident" for layer in reports[0]["plan"]["layers"])
    assert counts(reports, "revised_layers")[1] <= residents
    assert reports[1]["warnings"] == []


def test_what_was_kept_is_given_back_when_it_is_no_longer_to_be(sim):
    """Another word from an Apply node over the same model."""

    def applied(lora_mode: str, seed: int = 1) -> dict:
        prompt = build("flux", "apply", lora=0.8, seed=seed, **STREAMED)
        next(e for e in prompt.values() if "Apply" in e["class_type"])["inputs"]["lora_mode"] = lora_mode
        return prompt

    expected = outcome(sim, build("flux", lora=0.8))
    sim.free()
    assert outcome(sim, applied("host")) == expected
    kept = dit_report(sim)["summary"]["copied_back"]
    pinned = sim.sim_stats()["pinned"]
    assert kept > 0
    assert outcome(sim, applied("on_arrival")) == expected
    assert dit_report(sim)["summary"]["copied_back"] == kept
    assert sim.sim_stats()["pinned"] <= pinned - kept, "the versions, which were page-locked as their layers are"
    assert outcome(sim, applied("host")) == expected
    assert dit_report(sim)["summary"]["copied_back"] > kept
    assert sim.sim_stats()["races"] == 0


def test_an_encoder_with_a_lora_obeys_as_well(sim):
    tiny_models.ensure("lora_clip_l_tiny")

    def with_lora(prompt: dict) -> dict:
        prompt["30"] = node("UNETLoader", unet_name="flux_tiny.safetensors", weight_dtype="default")
        prompt["31"] = node(
            *("LoraLoader",),
            **{"model": ["30", 0], "clip": [CLIP, 0], "lora_name": tiny_models.file_name("lora_clip_l_tiny")},
            **{"strength_model": 0.0, "strength_clip": 0.7},
        )
        for consumer in (POSITIVE, NEGATIVE):
            if consumer in prompt:
                prompt[consumer]["inputs"]["clip"] = ["31", 1]
        return prompt

    expected = saved(sim, with_lora(encoding()))
    sim.free()
    ours = with_our_loaders(encoding(), {CLIP: {"placement": "layerwise", "lora_mode": "on_arrival"}})
    assert saved(sim, with_lora(ours)) == expected
    report = report_of(sim, "text_encoder")
    assert report["summary"]["copied_back"] == 0 and report["summary"]["revised_layers"] > 0
    assert report["settings"]["lora_mode"]["source"] == "node"


def test_a_lora_while_host_memory_is_short(faulty):
    """Patched layers find no room: changed on each arrival, said in the report, the same picture; with
    lora_mode = host, an error that says how much is missing."""
    run_twice.reference = outcome(faulty, build("flux", lora=0.8))
    faulty.free()
    faulty.sim_reset()
    faulty.post("/fault", {"name": "little_memory"})
    reports = run_twice(faulty)
    assert counts(reports, "copied_back") == [0, 0]
    streamed = sum(layer["placement"] == "streamed" for layer in reports[0]["plan"]["layers"])
    assert counts(reports, "revised_layers")[1] >= 2 * streamed > 0
    assert any(line.startswith("system memory is short: patches") for line in reports[1]["warnings"])
    refused = faulty.run(patched("host", seed=3))
    assert not refused.ok and "lora_mode = host" in refused.message and "0.00 GB are available" in refused.message
    assert faulty.sim_stats()["races"] == 0
    faulty.post("/fault", {"name": ""})
    assert outcome(faulty, patched("host")) == run_twice.reference, "and once there is memory again, it is kept"
    assert dit_report(faulty)["summary"]["copied_back"] > 0
