"""Text that an encoder generates: the app's own text, and what crosses the link for it.

The output projection of such a model is its embedding table, which stays on the host while only rows of it are used.
"""

import os
import shutil

import pytest

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import CLIP, node, with_our_loaders

pytestmark = pytest.mark.app

GENERATE = "20"
TABLE_BYTES = 262_208 * 128 * 2
ROOM_GB = 0.1
"""For the table of 67 MB, a ring of three layers of 3.4 MB, and what must stay."""
NO_ROOM_GB = 0.05


def generating(tokens: int, clip: str = "gemma3_tiny.safetensors") -> dict:
    """A prompt that has a text generated and shows it."""
    tiny_models.ensure("gemma3_tiny")
    return {
        CLIP: node("CLIPLoader", clip_name=clip, type="lumina2"),
        GENERATE: node(
            *("TextGenerate",),
            **{"clip": [CLIP, 0], "prompt": "a lighthouse at dusk", "max_length": tokens, "sampling_mode": "off"},
            use_default_template=False,
        ),
        "21": node("PreviewAny", source=[GENERATE, 0]),
    }


def generated(server, prompt: dict) -> str:
    """The text, after a check that there is one."""
    result = server.run(prompt).check()
    (text,) = result.outputs["21"]["text"]
    assert len(text) > 8
    return text


def encoder_report(server) -> dict:
    return next(component for component in server.report()["components"] if component["component"] == "text_encoder")


def beside_the_layers(server) -> int:
    """Bytes that were copied to the device and belong to no layer, since the counts began."""
    return server.sim_stats()["h2d_bytes"] - encoder_report(server)["summary"]["bytes_copied"]


@pytest.mark.parametrize("widgets", [{"placement": "layerwise", "budget_gb": ROOM_GB}, {"placement": "resident"}])
def test_a_table_that_the_budget_has_room_for_is_copied_once(sim, widgets):
    expected = {tokens: generated(sim, generating(tokens)) for tokens in (4, 16)}
    copied = {}
    for tokens in (4, 16):
        sim.free()
        sim.sim_reset()
        assert generated(sim, with_our_loaders(generating(tokens), {CLIP: widgets})) == expected[tokens]
        copied[tokens] = beside_the_layers(sim)
        report = encoder_report(sim)
        assert report["warnings"] == []
        assert len(report["plan"]["tables"]) == 1
        assert min(report["plan"]["loose_bytes"], report["summary"]["device_bytes"]) >= TABLE_BYTES
        assert sim.sim_stats()["races"] == 0
    assert TABLE_BYTES <= copied[4] < 1.5 * TABLE_BYTES
    assert copied[16] - copied[4] < TABLE_BYTES / 50, "something large was copied for each token"
    assert generated(sim, with_our_loaders(generating(4), {CLIP: widgets})) == expected[4]
    assert beside_the_layers(sim) - copied[16] < TABLE_BYTES / 50, "the next prompt finds the table on the device"


def test_a_table_that_the_budget_has_no_room_for_is_copied_for_each_token_and_that_is_said(sim):
    expected = generated(sim, generating(16))
    sim.free()
    sim.sim_reset()
    widgets = {"placement": "layerwise", "budget_gb": NO_ROOM_GB}
    assert generated(sim, with_our_loaders(generating(16), {CLIP: widgets})) == expected
    report = encoder_report(sim)
    assert report["plan"]["tables"] == []
    assert report["summary"]["device_bytes"] <= NO_ROOM_GB * 1e9
    line, touched = report["warnings"]
    assert "used as a whole" in line and "beside the budget" in line
    assert "outside their layer's call" in touched
    assert sim.sim_stats()["h2d_bytes"] >= 16 * TABLE_BYTES
    sim.free()
    widgets["budget_gb"] = float(line.split("set a budget of ")[1].split(" GB")[0])
    assert generated(sim, with_our_loaders(generating(16), {CLIP: widgets})) == expected
    assert len(encoder_report(sim)["plan"]["tables"]) == 1, "the budget that it asks for is enough"


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("budget_gb", [ROOM_GB, NO_ROOM_GB])
def test_a_file_that_is_cut_short_while_text_is_generated_from_it(request, device, budget_gb):
    """An error that names the file; looked at where it was mapped, it would end the server."""
    server = request.getfixturevalue(device)
    tiny_models.ensure("gemma3_tiny")
    sound = paths.MODELS / "text_encoders" / "gemma3_tiny.safetensors"
    own = sound.with_name(f"gemma3_cut_short_{os.getpid()}.safetensors")
    shutil.copy(sound, own)
    try:
        widgets = {"placement": "layerwise", "budget_gb": budget_gb}
        before = len(server.log())
        number = server.submit(with_our_loaders(generating(2000, own.name), {CLIP: widgets}))
        server.wait_for_log("it/s", after=before)
        os.truncate(own, 1 << 20)
        result = server.wait(number, 120)
        assert result.status == "error", "the file was not needed any more"
        assert "truncated from" in result.message and own.name in result.message, result.message
        assert server.alive
    finally:
        own.unlink()
    assert generated(server, with_our_loaders(generating(16), {CLIP: widgets}))
