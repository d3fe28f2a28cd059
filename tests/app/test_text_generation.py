"""Text that an encoder generates: the app's own text, and what crosses the link for it.

Each token is a pass over the layers. The output projection is the embedding table, which stays on the host while only
rows of it are used, or a weight of its own, which the app may use without calling its module.
"""

import dataclasses
import os
import shutil

import pytest

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import CLIP, node, with_our_loaders

pytestmark = pytest.mark.app

GENERATE, IMAGE = "20", "30"
TABLE_BYTES = 262_208 * 128 * 2
ROOM_GB = 0.1
"""For the table of 67 MB, a ring of three layers of 3.4 MB, and what must stay."""
NO_ROOM_GB = 0.05

GREEDY = {"sampling_mode": "off"}
SAMPLED = {
    **{"sampling_mode": "on", "temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05},
    **{"repetition_penalty": 1.05, "presence_penalty": 0.0, "seed": 3},
}
WILD = {**SAMPLED, "temperature": 1.3, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.5, "presence_penalty": 0.5}
TOKENS = 12


@dataclasses.dataclass(frozen=True)
class Talker:
    """A small encoder that generates text. `budget_gb`: enough for all that stays and a ring, not for all layers."""

    file: str
    clip_type: str
    budget_gb: float
    sees: bool = False


TALKERS = {
    "Gemma 3": Talker("gemma3_tiny", "lumina2", 0.075),
    "Qwen 3": Talker("qwen3_8b_tiny", "flux2", 0.02),
    "Gemma 3 with an image": Talker("gemma3_vision_tiny", "lumina2", 0.0085, sees=True),
}


def talking(talker: Talker, sampling: dict, tokens: int = TOKENS) -> dict:
    """A prompt that has the encoder go on from a text, and from an image if it sees."""
    tiny_models.ensure(talker.file)
    mode = {key if key == "sampling_mode" else f"sampling_mode.{key}": value for key, value in sampling.items()}
    seen = {"image": [IMAGE, 0]} if talker.sees else {}
    text = "see <image_soft_token> at dusk" if talker.sees else "a lighthouse at dusk"
    inputs = {"clip": [CLIP, 0], "prompt": text, "max_length": tokens, "use_default_template": False}
    return {
        CLIP: node("CLIPLoader", clip_name=tiny_models.file_name(talker.file), type=talker.clip_type),
        IMAGE: node("EmptyImage", width=64, height=64, batch_size=1, color=0x336699),
        GENERATE: node("TextGenerate", **inputs, **mode, **seen),
        "21": node("PreviewAny", source=[GENERATE, 0]),
        "31": node("PreviewImage", images=[IMAGE, 0]),
    }


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


def counted(server, prompt: dict) -> tuple[str, dict]:
    """The text of a prompt, and how far it moved the counters of the encoder."""
    known = [component for component in server.report()["components"] if component["component"] == "text_encoder"]
    before = known[0]["summary"] if known else {}
    (text,) = server.run(prompt).check().outputs["21"]["text"]
    after = encoder_report(server)["summary"]
    names = ("passes", "visits", "demand_loads", "copies", "bytes_copied", "prefetch_hits", "unplaced_visits")
    return text, {name: after[name] - before.get(name, 0) for name in names}


@pytest.mark.parametrize("name", TALKERS)
def test_each_token_is_a_pass_that_waits_for_no_copy(sim, name):
    talker = TALKERS[name]
    settings = (GREEDY, SAMPLED, WILD) if name == "Gemma 3" else (GREEDY, SAMPLED)
    expected = [generated(sim, talking(talker, sampling)) for sampling in settings]
    assert len(set(expected)) == len(settings)
    sim.free()
    sim.sim_reset()
    widgets = {CLIP: {"placement": "layerwise", "budget_gb": talker.budget_gb}}
    first = counted(sim, with_our_loaders(talking(talker, GREEDY, tokens=1), widgets))[1]
    assert first["passes"] == 1
    for sampling, text in zip(settings, expected):
        streamed, moved = counted(sim, with_our_loaders(talking(talker, sampling), widgets))
        assert streamed == text, sampling
        assert moved["passes"] == TOKENS
        assert moved["demand_loads"] <= talker.sees, "only an image's first layer was not to be foreseen"
        assert moved["prefetch_hits"] and moved["bytes_copied"] and not moved["unplaced_visits"]
    report = encoder_report(sim)
    layers = report["plan"]["layers"]
    streamed_bytes = sum(layer["bytes"] for layer in layers if layer["placement"] == "streamed")
    assert streamed_bytes and moved["bytes_copied"] <= (TOKENS + 1) * streamed_bytes
    assert report["warnings"] == [], "no weight was lent outside its layer's call"
    assert sim.sim_stats()["races"] == 0


def test_an_interrupted_text_leaves_the_next_one_right(sim):
    talker = TALKERS["Gemma 3"]
    expected = generated(sim, talking(talker, SAMPLED))
    sim.free()
    sim.sim_reset()
    widgets = {CLIP: {"placement": "layerwise", "budget_gb": talker.budget_gb}}
    before = len(sim.log())
    number = sim.submit(with_our_loaders(talking(talker, WILD, tokens=5000), widgets))
    sim.wait_for_log(" 3/5000", after=before)
    sim.interrupt()
    assert sim.wait(number).status == "interrupted"
    assert any(layer["placement"] == "streamed" for layer in encoder_report(sim)["plan"]["layers"])
    text, moved = counted(sim, with_our_loaders(talking(talker, SAMPLED), widgets))
    assert text == expected
    assert moved["passes"] == TOKENS
    assert moved["demand_loads"] <= 1
    assert sim.sim_stats()["races"] == 0


def test_a_projection_whose_weight_is_used_without_a_call_goes_through_the_ring(faulty):
    """Qwen 3.5 (9B). In full size its lm_head is a layer because it has more than 64 MB; here a lower limit is set."""
    talker = Talker("qwen35_9b_tiny", "flux2", 0.0095)
    expected = generated(faulty, talking(talker, GREEDY))
    faulty.free()
    faulty.sim_reset()
    faulty.post("/fault", {"name": "single_layers_from", "at": 4})
    widgets = {CLIP: {"placement": "layerwise", "budget_gb": talker.budget_gb}}
    text, first = counted(faulty, with_our_loaders(talking(talker, GREEDY), widgets))
    assert text == expected
    assert first["demand_loads"] <= 3, "it is called after a pass: where, is known after three tokens"
    moved = counted(faulty, with_our_loaders(talking(talker, SAMPLED), widgets))[1]
    report = encoder_report(faulty)
    layers = {layer["name"].rpartition(".")[2]: layer["placement"] for layer in report["plan"]["layers"]}
    assert layers["lm_head"] == "streamed"
    assert moved["visits"] == TOKENS * len(layers) and moved["passes"] == TOKENS
    assert moved["demand_loads"] == 0
    assert report["warnings"] == [], "no weight was lent outside its layer's call"
    assert faulty.sim_stats()["races"] == 0
