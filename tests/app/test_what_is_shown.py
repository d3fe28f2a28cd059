"""What the panel, the node and the report show of a component is what was planned for it, before a run and after."""

import pytest

from offload_core.sentences import TEMPLATES
from tests.app.test_before_the_run import by_name, expect, flux, placed
from tests.app.test_bit_identity import dit_report
from tests.app.test_components import encoding, report_of
from tests.app.test_residency import sampled
from tests.support.workflows import CLIP, MODEL, VAE, build, node, with_our_loaders

pytestmark = pytest.mark.app

ROOM_MIB = 60
"""For weights; the diffusion model has 98 MB of them."""


def streamed(plan: dict) -> int:
    return sum(layer["placement"] == "streamed" for layer in plan["layers"])


def before_and_after(server, prompt: dict) -> tuple[dict, dict]:
    """The diffusion model's report as it is told before the run, and after it."""
    told = expect(server, prompt)
    assert "error" not in told, told
    told = by_name(told["components"])["dit"]
    server.run(prompt).check()
    return told, dit_report(server)


def loaded_by_no_one(**widgets) -> dict:
    """A loader and the report behind it: the model is read, and never goes to the device."""
    return {MODEL: flux(**widgets)[MODEL], "90": node("LayerwiseOffloadReport", value=[MODEL, 0])}


def in_english(data: dict) -> str:
    """What a sentence {code, values} of a document says."""
    values = {name: value if isinstance(value, str) else in_english(value) for name, value in data["values"].items()}
    return TEMPLATES[data["code"]].format_map(values)


def test_what_is_said_is_told_as_data_too(sim):
    prompt = flux(budget_gb=900)
    prompt[VAE]["inputs"]["placement"] = "whole"
    reports = before_and_after(sim, prompt)
    for report in reports:
        (notice,), (line,) = report["notices"], report["warnings"]
        assert (notice["component"], notice["code"]) == ("dit", "budget_beyond_device")
        assert notice["values"]["size"] == "8.59 GB" and notice["do"]["code"] == "do_set_budget_of_device"
        assert f"{in_english(notice)}; {in_english(notice['do'])}" == line
        assert report["settings"]["placement"]["why"]["code"] == "set_by"
        assert report["settings"]["precision"]["why"]["code"] == "precision_of_app"
        for name, setting in report["settings"].items():
            assert in_english(setting["why"]) == setting["reason"], name
    for (vae,) in (expect(sim, prompt)["bystanders"], sim.report()["bystanders"]):
        assert vae["why"]["code"] == "set_by" and in_english(vae["why"]) == vae["reason"]


def test_a_setting_without_effect_is_said(sim):
    for report in before_and_after(sim, flux(placement="resident", budget_gb=0, ring_gb=0.01)):
        (line,) = report["warnings"]
        assert line == "dit.ring_bytes = 10.0 MB (the node's own widget) has no effect: the component is resident"
    assert sim.log().count("dit.ring_bytes = 10.0 MB") == 1
    sim.run(flux(placement="layerwise", budget_gb=0, ring_gb=0.01)).check()
    assert dit_report(sim)["warnings"] == [], "a notice of the load before"


def test_a_budget_beyond_the_device_is_said_before_the_run_too(sim):
    for report in before_and_after(sim, flux(budget_gb=900)):
        (line,) = report["warnings"]
        assert "900.00 GB" in line and "clamped to its 8.59 GB; set a budget that the device has" in line
        assert report["budget_bytes"] == 8192 * 2**20


def test_a_model_that_the_policy_would_keep_and_the_app_has_no_room_for_is_shown_as_streamed(sim, weights_mb):
    weights_mb(ROOM_MIB)
    for report in before_and_after(sim, flux(placement="auto", budget_gb=0, ring_gb=0.02)):
        assert streamed(report["plan"]) > 0
        assert placed(report) == ("layerwise", "policy"), report["settings"]["placement"]
        layers = len(report["plan"]["layers"])
        resident = layers - streamed(report["plan"])
        reason = report["settings"]["placement"]["reason"]
        assert f"room for {resident} of its {layers} layers" in reason, reason
        assert "nothing to decide" not in report["settings"]["budget_bytes"]["reason"]
        assert not any("no effect" in line for line in report["warnings"]), "the ring has one"


def test_a_budget_that_was_not_set_is_enough_for_the_ring_that_was(sim, weights_mb):
    """The ring is smaller than some layers, which then stay: more than the app offers."""
    weights_mb(ROOM_MIB)
    for report in before_and_after(sim, flux(placement="auto", budget_gb=0, ring_gb=0.01)):
        assert report["plan"]["ring_bytes"] == 10_000_000
        (line,) = report["warnings"]
        needed = report["budget_bytes"]
        assert f"less than it needs: it takes {needed / 1e9:.2f} GB" in line


def test_what_the_policy_keeps_is_shown_as_resident(sim):
    """The test above could fail."""
    for report in before_and_after(sim, flux(placement="auto", budget_gb=0)):
        assert streamed(report["plan"]) == 0 and placed(report) == ("resident", "policy")


def test_a_resident_that_is_not_loaded_yet_is_planned_as_one(sim, weights_mb):
    weights_mb(ROOM_MIB)
    sim.run(loaded_by_no_one(placement="resident", budget_gb=0)).check()
    (waiting,) = sim.report()["expected"]
    assert streamed(waiting["plan"]) == 0 and waiting["plan"]["ring_bytes"] == 0
    sim.free()
    sim.run(loaded_by_no_one(placement="auto", budget_gb=0)).check()
    (waiting,) = sim.report()["expected"]
    assert streamed(waiting["plan"]) > 0, "the test could fail"


def test_on_a_device_that_computes_in_host_memory_nothing_is_planned_to_be_page_locked(faulty):
    faulty.post("/fault", {"name": "unified_memory"})
    prompt = flux()
    told, ran = before_and_after(faulty, prompt)
    faulty.free()
    faulty.run(loaded_by_no_one(placement="layerwise", budget_gb=0.03)).check()
    (waiting,) = faulty.report()["expected"]
    for report in (told, ran, waiting):
        tiers = {layer["host_tier"] for layer in report["plan"]["layers"] if layer["placement"] == "streamed"}
        assert tiers == {"mapped"}, tiers


def test_the_budget_is_that_of_the_plan_also_after_some_was_given_back(sim, weights_mb):
    weights_mb(120)  # the encoder alone fits; beside the diffusion model it does not
    sim.run(with_our_loaders(encoding(), {CLIP: {}})).check()
    before = report_of(sim, "text_encoder")
    sim.run(sampled("another", {MODEL: {}, CLIP: {}})).check()
    after = report_of(sim, "text_encoder")
    assert after["id"] == before["id"] and streamed(after["plan"]) > streamed(before["plan"]), "it gave some back"
    plan = after["plan"]
    held = plan["ring_bytes"] + plan["resident_bytes"] + plan["loose_bytes"]
    assert held <= after["budget_bytes"] < before["budget_bytes"] - 5_000_000


def test_the_budget_is_that_of_the_plan_also_where_the_device_turned_out_to_be_full(faulty):
    for name in ("device_filled", "less_than_it_looked"):
        faulty.free()
        faulty.sim_reset()
        faulty.sim_configure(mb=2000)
        faulty.post("/fault", {"name": name, "at": 3 if name == "device_filled" else 0})
        faulty.run(build("flux", "layerwise")).check()
        report = dit_report(faulty)
        faulty.post("/fault", {"name": ""})
        plan = report["plan"]
        assert streamed(plan)
        held = plan["ring_bytes"] + plan["resident_bytes"] + plan["loose_bytes"]
        assert held <= report["budget_bytes"] <= held + plan["segment_bytes"], name


def test_where_the_precision_is_left_to_the_app_that_is_what_is_said(sim):
    sim.run(flux()).check()
    for name in ("dit", "vae"):
        assert "ComfyUI's own choice" in report_of(sim, name)["settings"]["precision"]["reason"]


def test_a_budget_rests_on_the_patcher_and_on_the_component(sim):
    """In the patcher's settings, and in the request that the component is planned by: no third object keeps a budget,
    which might be shown in place of the planned one (docs/architecture.md)."""
    sim.run(flux(placement="layerwise", budget_gb=0.0432)).check()
    assert sim.get("/probe/holders?value=43200000")["holders"] == ["PlanRequest.budget_bytes", "SettingValue.value"]
