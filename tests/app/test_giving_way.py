"""When another model of the app needs the room, ours gives layers back one by one, and copies nothing to do so."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.support.workflows import build

pytestmark = pytest.mark.app

ROOM_MB = 150
"""The diffusion model (81 MB) and the text encoder (99 MB) do not fit together."""


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
    assert given_back > 20_000_000, "nobody asked for room: nothing was tested"
    stats = sim.sim_stats()
    assert stats["races"] == 0
    # The app copies its own VAE (4.9 MB) back when it unloads it, and latents; of ours nothing may be.
    assert stats["d2h_bytes"] < 8_000_000, "weights were copied back"

    assert outcome(sim, prompt("a lighthouse", seed=1)) == first


def test_all_of_it_is_given_back_when_all_of_it_is_needed(sim, weights_mb):
    reference = outcome(sim, build("flux", "app"))
    sim.free()
    sim.run(prompt("a lighthouse")).check()
    weights_mb(20)  # as if somebody else had taken nearly everything
    assert outcome(sim, build("flux", "layerwise")) == reference
    sim.free()
    assert sim.sim_stats()["used"] == 0
