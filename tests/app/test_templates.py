"""The example workflows run, with small models in place, and give ComfyUI's latents. More in tests/web."""

import numpy
import pytest

from tests.support.templates import NAMES, TEMPLATES, with_the_apps_loaders
from tests.support.workflows import node

pytestmark = pytest.mark.app


def result_of(server, prompt: dict):
    """The run, with what the decoder got saved as a latent."""
    (decode,) = [entry for entry in prompt.values() if entry["class_type"] == "VAEDecode"]
    latent = node("SaveLatent", samples=decode["inputs"]["samples"], filename_prefix="latents/template")
    result = server.run({**prompt, "99": latent}).check()
    (samples,) = server.latents(result, node="99")
    return result, samples


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_a_template_gives_what_the_apps_loaders_give(sim, weights_mb, template):
    prompt = template.small_prompt(template.prompt)
    _, expected = result_of(sim, with_the_apps_loaders(prompt))
    sim.free()
    weights_mb(30)  # so that something must be streamed
    result, found = result_of(sim, prompt)
    assert numpy.isfinite(found).all() and found.std() > 0
    assert numpy.array_equal(found, expected)
    (saver,) = [name for name, entry in prompt.items() if entry["class_type"] in ("SaveImage", "SaveVideo")]
    (file,) = sim.files(result, node=saver)
    assert file.stat().st_size > 1000
    components = {entry["component"]: entry for entry in sim.report()["components"]}
    assert any(entry["plan"]["ring_bytes"] for entry in components.values()), "nothing was streamed"
    experts = sum(entry["class_type"] == "LayerwiseOffloadDiffusionModelLoader" for entry in prompt.values()) or 1
    assert len([name for name in components if name.startswith("dit")]) == experts


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_the_app_serves_a_template_and_its_picture(sim, template):
    assert template.name in sim.get("/workflow_templates")["layerwise-offload"]
    address = f"/api/workflow_templates/layerwise-offload/{template.name}".replace(" ", "%20")
    nodes = sim.get(f"{address}.json")["nodes"]
    assert len(nodes) == len(template.prompt) + 1
    assert template.thumbnail.stat().st_size < 100_000
