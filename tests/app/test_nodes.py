"""The nodes as the app shows them: ids, inputs and defaults are public names for ever."""

import json

import pytest

from offload_core.settings import node_table
from tests.app.test_before_the_run import by_name, expect
from tests.support.devkit import paths
from tests.support.workflows import MODEL, SAMPLER, all_in_one, build, node, with_our_loaders

pytestmark = pytest.mark.app

NODE_IDS = sorted((*node_table.NODES, node_table.OPTIONS, "LayerwiseOffloadReport"))
CHOICES_OF_THE_APP = ("model_name", "ckpt_name", "vae_name", "control_net_name", "clip_vision_name", "clip_name")
CHOICES_OF_THE_APP += ("type", "clip_type")
"""Widgets whose choices are this machine's files, or what this version of the app knows."""
OUTPUTS = {
    "dit": "MODEL",
    "text_encoder": "CLIP",
    "vae": "VAE",
    "image_encoder": "CLIP_VISION",
    "controlnet": "CONTROL_NET",
    "model_patch": "MODEL_PATCH",
    "audio_encoder": "AUDIO_ENCODER",
    "upscaler": "UPSCALE_MODEL",
    "latent_upscaler": "LATENT_UPSCALE_MODEL",
    "frame_interpolator": "INTERP_MODEL",
}
GOLDEN = paths.ROOT / "tests" / "golden" / "nodes.json"


def schema(server, node_id: str) -> dict:
    """What a saved workflow or an API prompt depends on."""
    info = server.object_info(node_id)[node_id]
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            kind, options = spec[0], dict(spec[1]) if len(spec) > 1 else {}
            options.pop("tooltip", None)
            if name.rstrip("1234") in CHOICES_OF_THE_APP:
                kind = "COMBO"
                options.pop("options", None)
            inputs[name] = [group, kind, options]
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "inputs": inputs,
        "order": info["input_order"],
        "outputs": info["output"],
        "output_names": info["output_name"],
    }


def test_schemas_are_the_golden_ones(sim):
    """On purpose changed? Delete the golden file, run this test once, and look at the difference."""
    found = {node_id: schema(sim, node_id) for node_id in NODE_IDS}
    if not GOLDEN.is_file():
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"there was no {GOLDEN.name}; it has been written: check it in")
    assert found == json.loads(GOLDEN.read_text())


SHARED = {"mode", "options", "graph_options"}
"""Widgets that speak of all components of a node."""
OF_THE_WORKFLOW = "workflow_budget_gb"
"""A widget that speaks of all components of a node, and of the workflow."""
OF_THE_LOADER = {"weight_dtype", "type", "clip_type"}
"""Widgets that say how a file is read, which the node's loading function knows."""


@pytest.mark.parametrize("node_id", node_table.NODES)
def test_the_table_of_nodes_is_what_the_schemas_say(sim, node_id):
    info = sim.object_info(node_id)[node_id]
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    slots = node_table.NODES[node_id]
    assert info["output"] == [OUTPUTS[slot.kind] for slot in slots]
    for slot in slots:
        assert slot.widgets["placement"] in inputs and set(slot.files) <= set(inputs)
        assert not slot.needs or slot.needs in info["input"]["optional"]
        on_cpu = "cpu" in inputs[slot.widgets["placement"]][1]["options"]
        assert on_cpu == (slot.kind in node_table.COMPUTED_ON_CPU and slot.folder not in ("", "checkpoints"))
        assert ("weight_dtype" in inputs and slot.kind == "dit") <= (slot.folder == "diffusion_models")
    known = {name for slot in slots for name in (*slot.widgets.values(), *slot.files, slot.needs)}
    assert set(inputs) - known <= SHARED | OF_THE_LOADER, "no slot reads it"
    assert {slot.workflow for slot in slots} == {OF_THE_WORKFLOW in inputs}
    for name in set(inputs) - SHARED - {"lora_mode", OF_THE_WORKFLOW} - {name for slot in slots for name in slot.files}:
        of = [slot.kind for slot in slots if name in (*slot.widgets.values(), slot.needs)]
        assert len(of) == 1 or name in OF_THE_LOADER, f"{name} speaks of {of}"


def test_the_options_node_has_the_widgets_of_the_table(sim):
    info = sim.object_info(node_table.OPTIONS)[node_table.OPTIONS]
    assert set(info["input"]["optional"]) == {*node_table.OPTIONS_WIDGETS, "mode", "selection"}


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        ("npu:7", "asked all.host_tier = npu:7 (the connected options node); found no second device that ComfyUI sees"),
        ("disk", "choose one of: auto, pinned, pageable, mapped, or another device such as cuda:1"),
    ],
)
def test_a_host_tier_of_another_machine_is_refused_in_our_words(sim, tier, words):
    """The app would say that the value is not in its list."""
    prompt = with_our_loaders(build("flux"), {MODEL: {}}, {"host_tier": tier})
    result = sim.run(prompt)
    assert not result.ok and words in result.message and "value_not_in_list" not in result.message


def test_on_the_cpu_a_device_of_another_machine_has_no_effect(cpu):
    cpu.run(with_our_loaders(build("flux"), {MODEL: {}}, {"host_tier": "npu:7"})).check()


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_everything_is_explained(sim, node_id):
    info = sim.object_info(node_id)[node_id]
    assert len(info["description"]) > 40
    groups = [info["input"].get(group, {}) for group in ("required", "optional")]
    for group in groups:
        for name, spec in group.items():
            assert len(spec[1].get("tooltip", "")) > 10, f"{name} has no tooltip"
    assert all(info["output_tooltips"])
    assert (paths.ROOT / "web" / "docs" / f"{node_id}.md").is_file()
    page = sim.text(f"/extensions/layerwise-offload/docs/{node_id}.md")
    for group in groups:
        for name in group:
            assert name in page, f"the help page does not speak of {name}"


def test_no_other_node_of_ours_is_there(sim):
    ours = [name for name, info in sim.object_info().items() if "layerwise-offload" in info.get("python_module", "")]
    assert sorted(ours) == sorted(NODE_IDS)


def test_the_report_is_plain_data_and_empty_at_first(sim):
    report = sim.report()
    assert (report["schema"], report["components"], report["expected"], report["bystanders"]) == (1, [], [], [])
    assert report["devices"][0]["ring_bytes"] == 0 and report["host"]["pinned_bytes"] == 0


def test_prompts_of_the_first_release_still_run(sim):
    """Apply as it was in 0.1.0: a model, a placement and two numbers, no more."""
    prompt = build("flux")
    prompt["3"] = node("LayerwiseOffloadApply", model=["1", 0], placement="layerwise", budget_gb=0.03, ring_gb=0.0)
    prompt["8"]["inputs"]["model"] = ["3", 0]
    sim.run(prompt).check()
    (report,) = sim.report()["components"]
    assert report["settings"]["budget_bytes"]["value"] == 30_000_000


def test_the_report_node_passes_its_input_on_and_tells_who_set_what(sim):
    prompt = with_our_loaders(
        build("flux"), {"1": {"placement": "layerwise", "budget_gb": 0.03}, "4": {}, "9": {"placement": "whole"}}
    )
    prompt["40"] = node("LayerwiseOffloadReport", value=["8", 0])
    prompt["10"]["inputs"]["samples"] = ["40", 0]
    for slot in (1, 2):
        prompt[f"4{slot}"] = node("PreviewAny", source=["40", slot])
    result = sim.run(prompt).check()
    text, document = (result.outputs[node_id]["text"][0] for node_id in ("41", "42"))
    assert "placement = layerwise: set by the node's own widget" in text
    assert "text_encoder: clip_l_tiny" in text and "GB copied" in text
    assert "vae: taef1_tiny.safetensors: ComfyUI's own way: set by the node's own widget" in text
    assert {component["component"] for component in json.loads(document)["components"]} == {"dit", "text_encoder"}
    assert result.outputs["40"]["text"][0] == text, "shown on the node too"


def test_the_loader_of_all_loads_the_largest_file_first(sim):
    log = len(sim.log())
    sim.run(all_in_one(build("flux", vae="vae_flux"))).check()
    text = sim.log()[log:]
    lines = ("CLIP/text encoder model load device", "model weight dtype", "VAE load device")
    marks = [text.index(line) for line in lines]
    assert marks == sorted(marks), "99 MB of encoder, 81 MB of diffusion model, 75 MB of VAE"


def test_a_workflow_budget_typed_on_the_loader_of_all_reaches_the_plans(sim):
    """Also past an Apply node, which has no such widget. Without a number all is as it was without the widget."""

    def prompt(**widgets) -> dict:
        changed = all_in_one(build("flux", vae="vae_flux"), **widgets)
        changed["30"] = node(node_table.APPLY, model=[MODEL, 0], placement="layerwise")
        changed[SAMPLER]["inputs"]["model"] = ["30", 0]
        return changed

    told = expect(sim, prompt(workflow_budget_gb=0.06))["components"]
    sim.run(prompt(workflow_budget_gb=0.06)).check()
    for components in (told, sim.report()["components"]):
        assert by_name(components).keys() == {"dit", "text_encoder", "vae"}
        for component in components:
            settings = component["settings"]
            number = settings["workflow_budget_bytes"]
            assert (number["value"], number["source"]) == (60_000_000, "node")
            assert settings["budget_bytes"]["why"]["code"] == "part_of_workflow"
            assert component["budget_bytes"] <= 60_000_000
    refused = expect(sim, prompt(workflow_budget_gb=0.001))["budget"]
    assert refused["widgets"] == [{"node": MODEL, "widget": "workflow_budget_gb"}]
    without, zero = (expect(sim, changed)["components"] for changed in (prompt(), prompt(workflow_budget_gb=0.0)))
    assert [component["settings"] for component in without] == [component["settings"] for component in zero]
    assert {component["settings"]["workflow_budget_bytes"]["value"] for component in without} == {None}
