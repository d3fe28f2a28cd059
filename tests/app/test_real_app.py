"""The test bench itself: the unmodified app on the simulated accelerator, without a node of ours in the workflow.

If these fail, look at the bench first. They also pin what the comparisons elsewhere stand on: the app's own picture
does not depend on how much device memory it has.
"""

import pytest

from tests.support import pixels, workflows

pytestmark = pytest.mark.app

# their text encoders take seconds on a CPU
SLOW = ("wan_t5", "qwen_image_vl", "ltxav_gemma")
FAMILIES = [pytest.param(name, marks=pytest.mark.long if name in SLOW else ()) for name in workflows.FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_apps_partial_load_gives_the_same_picture(sim, weights_mb, family):
    prompt = workflows.build(family)
    plenty = sim.run(prompt).check()
    sim.free()
    weights_mb(8)
    scarce = sim.run(prompt).check()
    pixels.assert_identical(sim.latents(plenty), sim.latents(scarce))
    pixels.assert_identical(sim.images(plenty), sim.images(scarce))
    assert sim.sim_stats()["races"] == 0


def test_vace_blocks_have_a_say(sim):
    prompt = workflows.build("wan_vace")
    strong = sim.run(prompt).check()
    prompt[workflows.LATENT]["inputs"]["strength"] = 0.0
    assert pixels.sha256(sim.latents(sim.run(prompt).check())) != pixels.sha256(sim.latents(strong))


def test_free_gives_the_device_back(sim):
    sim.run(workflows.build("flux")).check()
    assert sim.sim_stats()["used"] > 2**20
    sim.free()
    assert sim.sim_stats()["used"] < 2**20


def test_a_rejected_and_a_failing_workflow_are_told_apart(sim):
    prompt = workflows.build("flux")
    prompt[workflows.MODEL]["inputs"]["unet_name"] = "no such file"
    assert sim.run(prompt).status == "rejected"
    prompt = workflows.build("flux2")
    prompt[workflows.POSITIVE] = workflows.node("TinyRandomConditioning", width=8, pooled=0, tokens=4, seed=0)
    failed = sim.run(prompt)
    assert failed.status == "error" and failed.error["node_id"] == workflows.SAMPLER
    assert sim.run(workflows.build("flux2")).ok, "the server goes on"


def test_the_cpu_server_runs_too(cpu):
    result = cpu.run(workflows.build("flux")).check()
    pixels.assert_sane(cpu.images(result))
