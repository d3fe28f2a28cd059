"""A component that was asked to be streamed and has nothing to stream says so on its node."""

import pytest

from tests.support import pixels, workflows
from tests.support.workflows import build

pytestmark = pytest.mark.app


def vae_report(server) -> dict:
    return next(component for component in server.report()["components"] if component["component"] == "vae")


def picture(server, prompt) -> str:
    return pixels.sha256(server.images(server.run(prompt).check()))


def test_a_model_without_blocks_says_so_and_is_right_all_the_same(sim):
    prompt = build("sd15")  # its VAE, TAESD, has blocks of 0.3 MB
    expected = picture(sim, prompt)
    sim.free()
    ours = workflows.with_our_loaders(prompt, {workflows.VAE: {"placement": "layerwise"}})
    assert picture(sim, ours) == expected
    report = vae_report(sim)
    assert not any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    (line,) = (line for line in report["warnings"] if "layer by layer" in line)
    assert "asked to stream" in line and "found no repeated blocks" in line and "choose the placement" in line
    sim.free()
    ours = workflows.with_our_loaders(prompt, {workflows.VAE: {"placement": "auto"}})
    assert picture(sim, ours) == expected
    assert vae_report(sim)["warnings"] == []


def test_a_model_with_blocks_has_nothing_to_say(sim):
    prompt = build("cosmos1", "layerwise", placement="layerwise")
    sim.run(prompt).check()
    report = next(component for component in sim.report()["components"] if component["component"] == "dit")
    assert report["warnings"] == [] and len(report["plan"]["layers"]) == 12
