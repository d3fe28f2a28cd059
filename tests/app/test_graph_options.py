"""Options of the whole graph and the user's settings, as the browser hands them over; and the names they speak of."""

import json

import pytest

from tests.app.test_components import report_of, saved
from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import APPLY, CLIP, MODEL, SAMPLER, VAE, build, looking, node, with_our_loaders

pytestmark = pytest.mark.app

SECOND_MODEL, SECOND_SAMPLER = "50", "51"


def said(graph: dict | None = None, settings: dict | None = None, **modes) -> str:
    """A `graph_options` text; `graph` and `settings`: component settings by name."""
    content: dict = {"schema": 1}
    for key, components in (("graph", graph), ("settings", settings)):
        content[key] = {"components": components or {}, "mode": modes.get(f"{key}_mode", "auto")}
    return json.dumps(content)


def prompt_with(text: str, widgets: dict | None = None, options: dict | None = None) -> dict:
    widgets = {MODEL: {}, CLIP: {}, VAE: {}} | (widgets or {})
    widgets = {node_id: {**mine, "graph_options": text} for node_id, mine in widgets.items()}
    return with_our_loaders(build("flux", vae="vae_flux"), widgets, options)


def two_experts(text: str = "") -> dict:
    """A second diffusion model takes over from the first."""
    prompt = prompt_with(text)
    prompt[SECOND_MODEL] = node(
        "LayerwiseOffloadDiffusionModelLoader",
        **{**prompt[MODEL]["inputs"], "model_name": tiny_models.file_name("flux_mid")},
    )
    tiny_models.ensure("flux_mid")
    second = {**prompt[SAMPLER]["inputs"], "model": [SECOND_MODEL, 0], "latent_image": [SAMPLER, 0], "denoise": 0.6}
    prompt[SECOND_SAMPLER] = node("KSampler", **second)
    for entry in prompt.values():
        if entry["class_type"] in ("VAEDecode", "SaveLatent"):
            entry["inputs"]["samples"] = [SECOND_SAMPLER, 0]
    return prompt


def setting(server, component: str, name: str) -> tuple:
    found = report_of(server, component)["settings"][name]
    return found["value"], found["source"]


def test_the_graph_and_the_settings_are_sources(sim):
    reference = saved(sim, build("flux", vae="vae_flux"))
    sim.free()
    text = said(
        graph={"dit": {"placement": "layerwise", "budget_gb": 0.03, "ring_gb": 0.02}, "text-encoder": {"budget_gb": 0}},
        settings={"dit": {"placement": "resident"}, "default": {"placement": "layerwise", "budget_gb": 0.07}},
    )
    assert saved(sim, prompt_with(text)) == reference
    assert setting(sim, "dit", "placement") == ("layerwise", "graph")
    assert setting(sim, "dit", "budget_bytes") == (30_000_000, "graph")
    assert setting(sim, "dit", "ring_bytes") == (20_000_000, "graph")
    assert "resident" in report_of(sim, "dit")["settings"]["placement"]["reason"], (
        "what the settings asked for is shown"
    )
    assert report_of(sim, "dit")["summary"]["peak_device_bytes"] <= 30_000_000
    for name in ("text_encoder", "vae"):
        assert setting(sim, name, "placement") == ("layerwise", "settings")
        assert setting(sim, name, "budget_bytes") == (70_000_000, "settings")


def test_a_budget_of_another_device_is_told_where_none_is_named(sim):
    text = said(graph={"dit": {"placement": "layerwise", "peer_budget_gb": 2}})
    sim.run(prompt_with(text)).check()
    assert setting(sim, "dit", "peer_budget_bytes") == (2_000_000_000, "graph")
    (line,) = (line for line in report_of(sim, "dit")["warnings"] if "peer_budget_bytes" in line)
    assert "has no effect: host_tier names no other device" in line


def test_widgets_and_options_nodes_are_stronger(sim):
    text = said(graph={"all": {"placement": "layerwise"}, "vae": {"budget_gb": 0.06}})
    widgets = {MODEL: {"placement": "resident"}, CLIP: {}, VAE: {}}
    sim.run(prompt_with(text, widgets, {"text_encoder_placement": "resident"})).check()
    assert setting(sim, "dit", "placement") == ("resident", "node")
    assert setting(sim, "text_encoder", "placement") == ("resident", "options")
    assert setting(sim, "vae", "placement") == ("layerwise", "graph")


@pytest.mark.parametrize(
    ("options", "modes", "streamed"),
    [
        (None, {"graph_mode": "memory", "settings_mode": "manual"}, True),
        (None, {"settings_mode": "manual"}, False),
        ({"mode": "manual"}, {"graph_mode": "memory"}, False),
    ],
)
def test_the_strongest_mode_counts(sim, options, modes, streamed):
    sim.run(prompt_with(said(**modes), options=options)).check()
    assert bool(sim.report()["components"]) == streamed


def test_two_experts_have_two_names(sim):
    plain = two_experts()
    reference = saved(sim, two_experts())
    names = {component["model"]: component["component"] for component in sim.report()["components"]}
    assert names[plain[MODEL]["inputs"]["model_name"]] == "dit"
    assert names[plain[SECOND_MODEL]["inputs"]["model_name"]] == "dit_2"
    sim.free()
    text = said(graph={"dit": {"placement": "layerwise"}, "dit_2": {"placement": "layerwise", "budget_gb": 0.05}})
    assert saved(sim, two_experts(text)) == reference
    assert setting(sim, "dit_2", "budget_bytes") == (50_000_000, "graph")
    assert setting(sim, "dit", "budget_bytes")[1] == "policy"
    assert report_of(sim, "dit_2")["summary"]["peak_device_bytes"] <= 50_000_000
    assert report_of(sim, "dit_2")["plan"]["component"] == "dit_2"


def test_what_apply_takes_over_keeps_its_name(sim):
    prompt = two_experts(said(graph={"dit_2": {"budget_gb": 0.05}}))
    prompt["52"] = node(
        "ModelSamplingFlux", model=[SECOND_MODEL, 0], max_shift=1.15, base_shift=0.5, width=64, height=64
    )
    text = prompt[MODEL]["inputs"]["graph_options"]
    prompt[APPLY] = node("LayerwiseOffloadApply", model=["52", 0], placement="layerwise", graph_options=text)
    prompt[SECOND_SAMPLER]["inputs"]["model"] = [APPLY, 0]
    sim.run(prompt).check()
    assert {component["component"] for component in sim.report()["components"]} >= {"dit", "dit_2"}
    assert setting(sim, "dit_2", "placement") == ("layerwise", "node")
    assert setting(sim, "dit_2", "budget_bytes") == (50_000_000, "graph")


def audio(loader: dict, behind: list | None = None) -> dict:
    """Decodes an empty latent and encodes the sound again."""
    vae = behind or [VAE, 0]
    return {
        "1": node("LTXVEmptyLatentAudio", frames_number=9, frame_rate=25, batch_size=1, audio_vae=vae),
        VAE: loader,
        "2": node("LTXVAudioVAEDecode", samples=["1", 0], audio_vae=vae),
        "3": node("LTXVAudioVAEEncode", audio=["2", 0], audio_vae=vae),
        "4": node("SaveLatent", samples=["3", 0], filename_prefix="latents/audio"),
    }


def test_an_audio_vae_is_streamed_only_under_its_own_name(sim):
    tiny_models.ensure("vae_ltx_audio")
    file = tiny_models.file_name("vae_ltx_audio")
    reference = saved(sim, audio(node("VAELoader", vae_name=file)))
    ours = {"vae_name": file, "placement": "auto", "precision": "auto"}
    for graph, streamed in (
        ({}, False),
        ({"vae": {"placement": "layerwise"}}, False),
        ({"audio-vae": {"placement": "layerwise"}}, True),
    ):
        sim.free()
        prompt = audio(node("LayerwiseOffloadVAELoader", **ours, graph_options=said(graph=graph)))
        assert saved(sim, prompt) == reference
        assert [component["component"] for component in sim.report()["components"]] == ["audio_vae"] * streamed
    sim.free()
    applied = audio(node("VAELoader", vae_name=file), behind=["30", 2])
    applied["30"] = node("LayerwiseOffloadApply", vae=[VAE, 0], placement="auto", vae_placement="layerwise")
    assert saved(sim, applied) == reference
    assert setting(sim, "audio_vae", "placement") == ("layerwise", "node")


@pytest.fixture
def image_encoders(model_files) -> tuple[dict, list[str]]:
    """A prompt that encodes a picture with three models, each in a file of its own; and their loaders' node ids."""
    prompt, loaders = {}, []
    for number in range(3):
        for node_id, entry in looking().items():
            wires = {
                name: [f"{number}0{value[0]}", value[1]] if isinstance(value, list) else value
                for name, value in entry["inputs"].items()
            }
            prompt[f"{number}0{node_id}"] = node(entry["class_type"], **wires)
        loaders.append(f"{number}01")
        inputs = prompt[loaders[-1]]["inputs"]
        file = paths.MODELS / "clip_vision" / inputs["clip_name"]
        inputs["clip_name"] = model_files.put("clip_vision", f"eye_{number}.safetensors", file)
    return prompt, loaders


@pytest.mark.parametrize(
    "road", ["graph", *(pytest.param(road, marks=pytest.mark.long) for road in ("options", "settings"))]
)
def test_the_group_of_image_encoders_reaches_each_clip_vision_model_and_what_names_one_is_stronger(
    sim, image_encoders, road
):
    """The third has a budget of its own: by its widget where an options node speaks of the group, else by its name."""
    prompt, loaders = image_encoders
    reference = saved(sim, prompt)
    sim.free()
    widgets: dict[str, dict] = {loader: {} for loader in loaders}
    group, own = {"placement": "layerwise", "budget_gb": 0.01}, {"budget_gb": 0.02}
    if road == "options":
        widgets[loaders[2]] = own
        options = {f"image_encoder_{key}": value for key, value in group.items()}
        prompt = with_our_loaders(prompt, widgets, options)
    else:
        text = said(**{road: {"image_encoder": group, "image_encoder_3": own}})
        prompt = with_our_loaders(prompt, {loader: {"graph_options": text} for loader in loaders})
    assert saved(sim, prompt) == reference
    for name, budget_bytes, source in (
        ("image_encoder", 10_000_000, road),
        ("image_encoder_2", 10_000_000, road),
        ("image_encoder_3", 20_000_000, "node" if road == "options" else road),
    ):
        assert setting(sim, name, "placement") == ("layerwise", road)
        assert setting(sim, name, "budget_bytes") == (budget_bytes, source)
        report = report_of(sim, name)
        assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
        assert 0 < report["summary"]["peak_device_bytes"] <= budget_bytes


def test_a_selection_of_the_image_encoders_is_of_the_group_and_a_placement_is_stronger(sim, image_encoders):
    prompt, loaders = image_encoders
    reference = saved(sim, prompt)
    sim.free()
    widgets = {**dict.fromkeys(loaders, {}), loaders[2]: {"placement": "resident"}}
    assert saved(sim, with_our_loaders(prompt, widgets, {"selection": "image-encoder"})) == reference
    for name in ("image_encoder", "image_encoder_2"):
        assert setting(sim, name, "placement") == ("layerwise", "selection")
    assert setting(sim, "image_encoder_3", "placement") == ("resident", "node")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "schema"),
        ('{"schema": 2}', "schema"),
        ('{"schema": 1, "page": {}}', "page"),
        ('{"schema": 1, "graph": {"colour": 1}}', "mode and components"),
        ('{"schema": 1, "graph": {"mode": "turbo"}}', "turbo"),
        ('{"schema": 1, "graph": {"components": {"dit": {"speed": 1}}}}', "speed"),
        ('{"schema": 1, "graph": {"components": {"dit": {"placement": "moon"}}}}', "moon"),
        ('{"schema": 1, "graph": {"components": {"dit": {"budget_gb": -1}}}}', "-1"),
        ('{"schema": 1, "graph": {"components": {"vocoder": {"budget_gb": 1}}}}', "vocoder"),
        ('{"schema": 1, "graph": {"components": {"dit_2": {"budget_gb": 1}}}}', "bring dit, text_encoder, vae"),
        ('{"schema": 1, "graph": {"components": {"dit": 3}}}', "dit"),
        (" " * 20 + "x" * 70000, "70020"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(sim, text, words):
    result = sim.run(prompt_with(text))
    assert not result.ok
    assert words in result.message and len(result.message) < 500


def test_the_users_settings_may_speak_of_what_is_not_there(sim):
    text = said(settings={"image_encoder": {"placement": "layerwise"}, "dit_7": {"budget_gb": 1}})
    sim.run(prompt_with(text)).check()


def test_an_empty_text_says_nothing(sim):
    for text in ("", "  \n", '{"schema": 1}'):
        sim.run(prompt_with(text)).check()
        assert {report_of(sim, name)["settings"]["placement"]["source"] for name in ("dit", "vae")} == {"policy"}
        sim.free()
