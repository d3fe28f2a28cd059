"""When another model of the app needs the room, ours gives layers back one by one, and copies nothing to do so."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.support.workflows import CLIP, MODEL, build, with_our_loaders

pytestmark = pytest.mark.app

ROOM_MB = 150
"""In MiB. The diffusion model takes 94 of the device (98.6 MB, in whole segments of 2 MiB) and the app's text encoder,
with 99 MB of weights, no less: they do not fit together."""


def prompt(text: str, **settings) -> dict:
    return build("flux", "layerwise", text=text, **settings)


def test_layers_are_given_back_and_the_picture_stays(sim, weights_mb):
    first, second = (outcome(sim, build("flux", "app", text=text)) for text in ("a lighthouse", "a harbour"))
    assert first != second
    sim.free()
    weights_mb(ROOM_MB)
    assert outcome(sim, prompt("a lighthouse")) == first
    all_resident = dit_report(sim)["summary"]["device_bytes"]
    loads = sim.log().count("Requested to load Flux")

    sim.sim_reset()
    assert outcome(sim, prompt("a harbour")) == second
    assert sim.log().count("Requested to load Flux") == loads, "it was thrown out whole"
    given_back = all_resident - dit_report(sim)["summary"]["device_bytes"]
    assert given_back > 20_000_000, "no room was needed: nothing was tested"
    stats = sim.sim_stats()
    assert stats["races"] == 0
    # The app copies its own VAE (4.9 MB) back when it unloads it, and latents; of ours nothing may be.
    assert stats["d2h_bytes"] < 8_000_000, "weights were copied back"

    assert outcome(sim, prompt("a lighthouse", seed=1)) == first


def test_all_of_it_is_given_back_when_all_of_it_is_needed(sim, weights_mb):
    reference = outcome(sim, build("flux", "app"))
    sim.free()
    sim.run(prompt("a lighthouse")).check()
    weights_mb(20)  # as if others had taken nearly everything
    assert outcome(sim, build("flux", "layerwise")) == reference
    sim.free()
    assert sim.sim_stats()["used"] == sim.idle_bytes


def decoded(settings: dict, seed: int = 1) -> dict:
    """A whole picture, decoded by a VAE of 75 MB that the app loads in its own way."""
    return with_our_loaders(build("flux", vae="vae_flux", seed=seed), settings)


def held(server, name: str) -> int:
    return next(one for one in server.report()["components"] if one["component"] == name)["summary"]["device_bytes"]


MODEL_BYTES, ENCODER_BYTES = 98_000_000, 27_000_000
"""What ours take with everything resident, in whole segments; the encoder's table of words stays on the host."""
ALMOST_MB = 178
"""Some 15 MB less than these two and the VAE need."""


def test_an_encoder_gives_before_a_diffusion_model_does(sim, weights_mb):
    """A layer of the diffusion model is worth its bytes at every step. The app by itself would not know."""
    reference = outcome(sim, decoded({}))
    sim.free()
    weights_mb(ALMOST_MB)
    sim.sim_reset()
    assert outcome(sim, decoded({MODEL: {}, CLIP: {}})) == reference
    assert held(sim, "dit") > MODEL_BYTES
    assert held(sim, "text_encoder") < ENCODER_BYTES - 5_000_000
    assert sim.sim_stats()["races"] == 0


def test_what_was_asked_to_be_resident_goes_whole_or_stays(sim, weights_mb):
    weights_mb(ALMOST_MB)
    outcome(sim, decoded({MODEL: {}, CLIP: {"placement": "resident"}}))
    assert held(sim, "text_encoder") > ENCODER_BYTES
    assert held(sim, "dit") < MODEL_BYTES - 5_000_000


def test_ours_give_before_a_model_of_the_apps_is_unloaded(sim, weights_mb):
    """Giving back is free; the app would copy its encoder of 99 MB back."""
    weights_mb(210)
    sim.sim_reset()
    outcome(sim, decoded({MODEL: {}}))
    assert held(sim, "dit") < MODEL_BYTES - 20_000_000
    assert sim.sim_stats()["d2h_bytes"] < 8_000_000


def test_three_models_on_a_small_device_do_not_thrash(sim, weights_mb):
    """Two of ours and one of the app's, none of which fits beside the others: a prompt moves each about once."""
    weights_mb(140)
    ours = {MODEL: {}, CLIP: {}}
    moved = []
    for number, text in enumerate(("one", "two", "three", "four")):
        sim.sim_reset()
        sim.run(with_our_loaders(build("flux", vae="vae_flux", text=text, seed=number), ours)).check()
        moved.append(sim.sim_stats()["h2d_bytes"])
    model, encoder, vae = 81e6, 99e6, 75e6
    steps = 2
    assert max(moved[1:]) <= encoder + vae + steps * model + 20e6
    assert moved[-1] <= 1.1 * moved[1] + 5e6
    assert sim.sim_stats()["races"] == 0
