"""Who holds what on the device, and for how long: measured on the device's allocator and in the app's own log."""

import pytest

from tests.app.test_components import decoding, encoding, report_of, saved
from tests.support import workflows
from tests.support.app_server import APP_RESERVE_MB
from tests.support.workflows import CLIP, MODEL, VAE, all_in_one, build, with_controlnet, with_our_loaders

pytestmark = pytest.mark.app

ROOM_MIB = 100 + 20
"""For the diffusion model, which takes 100 MiB of the device, and a ring of the encoder's, which takes 100 if whole."""


def sampled(text: str, settings: dict, options: dict | None = None, family: str = "flux", **changes) -> dict:
    """Encode a text and sample, without VAE: our loaders for model and encoder."""
    prompt = with_our_loaders(build(family, text=text, **changes), settings, options)
    for role in (workflows.VAE, workflows.DECODE, workflows.SAVE_IMAGE):
        del prompt[role]
    return prompt


def held(server, name: str) -> int:
    return report_of(server, name)["summary"]["device_bytes"]


def test_a_new_prompt_does_not_evict_a_resident_diffusion_model(sim, weights_mb):
    """Encode, sample, encode again, with room for the model and a ring, not for the model and all of the encoder."""
    weights_mb(ROOM_MIB)
    ours = {MODEL: {}, CLIP: {}}
    sim.run(sampled("one", ours)).check()
    model = held(sim, "dit")
    copied = report_of(sim, "dit")["summary"]["bytes_copied"]
    assert not any(layer["placement"] == "streamed" for layer in report_of(sim, "dit")["plan"]["layers"])
    log = len(sim.log())
    sim.run(sampled("two", ours)).check()
    assert held(sim, "dit") == model
    assert report_of(sim, "dit")["summary"]["bytes_copied"] == copied, "not a byte of it moved again"
    assert "nloading" not in sim.log()[log:] and "unloaded" not in sim.log()[log:]
    report = report_of(sim, "text_encoder")
    assert report["summary"]["bytes_copied"] > 0
    assert sim.sim_stats()["races"] == 0


def test_the_apps_own_encoder_does_evict_it(sim, weights_mb):
    """The same, with the app's encoder: the test above could fail."""
    weights_mb(ROOM_MIB)
    prompts = [sampled(text, {MODEL: {}}) for text in ("one", "two")]
    sim.run(prompts[0]).check()
    before = report_of(sim, "dit")["summary"]["bytes_copied"]
    sim.run(prompts[1]).check()
    assert report_of(sim, "dit")["summary"]["bytes_copied"] > before


def test_a_second_prompt_with_idle_vram_streams_nothing(sim):
    ours = {MODEL: {}, CLIP: {}}
    sim.run(sampled("one", ours)).check()
    before = {name: report_of(sim, name)["summary"]["bytes_copied"] for name in ("dit", "text_encoder")}
    assert before["text_encoder"] > 0
    sim.run(sampled("two", ours)).check()
    assert {name: report_of(sim, name)["summary"]["bytes_copied"] for name in before} == before


def test_an_encoders_residents_are_given_back_on_demand(sim, weights_mb):
    weights_mb(ROOM_MIB)
    sim.run(with_our_loaders(encoding(), {CLIP: {}})).check()
    resident = held(sim, "text_encoder")
    sim.run(sampled("another", {MODEL: {}, CLIP: {}})).check()
    assert held(sim, "text_encoder") < resident
    assert held(sim, "dit") > 98_000_000
    assert sim.sim_stats()["reserved"] <= (APP_RESERVE_MB + ROOM_MIB) * 2**20


@pytest.mark.parametrize("tile_size", [64, 128])
def test_a_tiled_decode_moves_each_byte_at_most_twice(sim, tile_size):
    tiles = {"tile_size": tile_size, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    prompt = decoding(decode="VAEDecodeTiled", size=256, **tiles)
    del prompt["12"], prompt["13"]
    saved(sim, with_our_loaders(prompt, {VAE: {"placement": "layerwise"}}))
    report = report_of(sim, "vae")
    assert report["summary"]["passes"] >= 4
    assert 0 < report["summary"]["bytes_copied"] <= 2 * sum(layer["bytes"] for layer in report["plan"]["layers"])


def test_a_tiled_decode_within_a_small_budget_keeps_what_it_can(sim):
    """Too small for all layers: those that stay are copied once, whatever the number of tiles; others every time."""
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    prompt = decoding(decode="VAEDecodeTiled", size=256, **tiles)
    del prompt["12"], prompt["13"]
    saved(sim, with_our_loaders(prompt, {VAE: {"placement": "layerwise", "budget_gb": 0.07}}))
    report = report_of(sim, "vae")
    layers = {placement: [] for placement in ("resident", "streamed")}
    for layer in report["plan"]["layers"]:
        layers[layer["placement"]].append(layer["bytes"])
    kept, streamed, passes = sum(layers["resident"]), sum(layers["streamed"]), report["summary"]["passes"]
    assert passes >= 4 and kept > 20_000_000 and streamed > 0
    assert report["summary"]["peak_device_bytes"] <= 70_000_000
    ahead = report["plan"]["ring_bytes"]  # the next pass is fetched ahead, and may not come
    assert report["summary"]["bytes_copied"] <= kept + passes * streamed + ahead


def test_memory_mode_keeps_an_encoder_to_a_ring(sim):
    sim.run(sampled("one", {MODEL: {}, CLIP: {}}, {"mode": "memory"})).check()
    for name in ("dit", "text_encoder"):
        report = report_of(sim, name)
        total = sum(layer["bytes"] for layer in report["plan"]["layers"]) + report["plan"]["loose_bytes"]
        assert report["summary"]["device_bytes"] < 0.85 * total
        assert report["settings"]["placement"]["value"] == "layerwise"


def test_speed_mode_keeps_half_as_much_free_as_auto_and_streams_nothing_where_auto_does(faulty):
    """On a card of which a tenth is more than the app itself keeps free, and which another program has all but filled:
    less one tenth of the card there is no room for the diffusion model, less one twentieth there is for everything."""
    card_mib, beside_a_tenth_mib, steps = 14_000, 85, 4
    reference = saved(faulty, build("flux", steps=steps))
    reports = {}
    for mode in ("auto", "speed"):
        faulty.free()
        faulty.sim_configure(mb=card_mib)
        faulty.post("/fault", {"name": "little_device_memory", "at": card_mib // 10 + beside_a_tenth_mib})
        prompt = with_our_loaders(build("flux", steps=steps), {MODEL: {}, CLIP: {}}, {"mode": mode})
        assert saved(faulty, prompt) == reference
        reports[mode] = {name: report_of(faulty, name) for name in ("dit", "text_encoder")}
        faulty.post("/fault", {"name": ""})
    for mode, placement, headroom in (("auto", "layerwise", "1.47 GB"), ("speed", "resident", "734.0 MB")):
        for report in reports[mode].values():
            chosen = report["settings"]["placement"]
            assert (chosen["value"], chosen["source"]) == (placement, "policy")
            assert chosen["why"]["values"]["sum"]["values"]["headroom"] == headroom
    auto, speed = reports["auto"]["dit"], reports["speed"]["dit"]
    whole_bytes = speed["plan"]["resident_bytes"] + speed["plan"]["loose_bytes"]
    assert auto["summary"]["peak_device_bytes"] <= auto["settings"]["budget_bytes"]["value"] < whole_bytes
    assert any(layer["placement"] == "streamed" for layer in auto["plan"]["layers"])
    assert speed["summary"]["device_bytes"] == whole_bytes
    assert speed["summary"]["bytes_copied"] == sum(layer["bytes"] for layer in speed["plan"]["layers"])
    assert auto["summary"]["bytes_copied"] > speed["summary"]["bytes_copied"], "what is streamed comes again"


def test_manual_mode_leaves_what_was_not_placed_to_the_app(sim):
    reference = saved(sim, build("flux"))
    sim.free()
    prompt = with_our_loaders(
        build("flux"), {MODEL: {"placement": "layerwise", "budget_gb": 0.03}, CLIP: {}, VAE: {}}, {"mode": "manual"}
    )
    assert saved(sim, prompt) == reference
    names = {component["component"] for component in sim.report()["components"]}
    assert names == {"dit"}, "the others have never been streamed"


def test_what_a_widget_says_is_never_overridden_by_options(sim):
    prompt = with_our_loaders(
        build("flux"), {MODEL: {"placement": "layerwise"}}, {"mode": "speed", "dit_placement": "resident"}
    )
    sim.run(prompt).check()
    placement = report_of(sim, "dit")["settings"]["placement"]
    assert placement["value"] == "layerwise" and placement["source"] == "node"
    assert "resident" in placement["reason"], "what the options asked for is shown"


def test_a_partly_resident_model_leaves_room_for_the_ring_of_the_encoder(sim, weights_mb):
    """With less room than the model wants: it does not take what a new prompt would have to take back."""
    weights_mb(60)
    sim.sim_configure(bandwidth=60_000_000)  # so slow that measured times want what is allowed to be used
    ours = {MODEL: {}, CLIP: {}}
    for text in ("one", "two", "three"):  # until its layers have been measured and it has been planned again
        sim.run(sampled(text, ours)).check()
    model = held(sim, "dit")
    log = len(sim.log())
    sim.run(sampled("four", ours)).check()
    sim.run(sampled("five", ours)).check()
    assert held(sim, "dit") == model
    assert "given back" not in sim.log()[log:] and "nloading" not in sim.log()[log:]
    assert any(layer["placement"] == "resident" for layer in report_of(sim, "dit")["plan"]["layers"])


def test_a_selection_is_complete(sim):
    """What it names is streamed, and says so; what it does not name goes the app's way; a placement beats it."""
    reference = saved(sim, build("flux"))
    sim.free()
    settings = {MODEL: {}, CLIP: {}, VAE: {"placement": "resident"}}
    assert saved(sim, with_our_loaders(build("flux"), settings, {"selection": " Text-Encoder, "})) == reference
    reports = {component["component"]: component["settings"] for component in sim.report()["components"]}
    assert set(reports) == {"text_encoder", "vae"}
    assert reports["text_encoder"]["placement"]["value"] == "layerwise"
    assert reports["text_encoder"]["placement"]["source"] == "selection"
    assert reports["vae"]["placement"]["source"] == "node"


def test_options_reach_apply_nodes_and_the_loader_of_all(sim):
    prompt = all_in_one(build("flux"), options=["90", 0])
    prompt["90"] = workflows.node("LayerwiseOffloadOptions", dit_budget_gb=0.03, text_encoder_placement="resident")
    sim.run(prompt).check()
    assert held(sim, "dit") <= 30_000_000
    for name, setting in (("dit", "budget_bytes"), ("text_encoder", "placement")):
        assert report_of(sim, name)["settings"][setting]["source"] == "options"


def test_all_components_share_one_ring(sim):
    """Every component counts its ring as its own; on the device there is only one, as long as the longest."""
    prompt = with_controlnet(build("flux", vae="vae_flux"), "controlnet_flux")
    settings = {MODEL: {}, CLIP: {}, VAE: {}, workflows.CONTROL_NET: {"placement": "layerwise", "budget_gb": 0.02}}
    sim.run(with_our_loaders(prompt, settings, {"mode": "memory"})).check()
    reports = sim.report()["components"]
    assert len(reports) == 4 and all(report["loaded"] for report in reports)
    rings = [report["plan"]["ring_bytes"] for report in reports]
    assert sum(ring > 0 for ring in rings) >= 3
    kept = sum(report["summary"]["device_bytes"] - report["plan"]["ring_bytes"] for report in reports)
    assert sim.sim_stats()["used"] <= kept + max(rings) + 2_000_000
    assert kept + sum(rings) > kept + max(rings) + 2_000_000, "otherwise this shows nothing"
