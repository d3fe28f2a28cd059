"""What the server says of a prompt before it has run: the plan as things stand, which a run then carries out."""

import json
import shutil

import pytest

from tests.support import tiny_models
from tests.support.app_server import HttpError
from tests.support.tiny_models import models_folder
from tests.support.workflows import (
    APPLY,
    CLIP,
    LORA,
    MODEL,
    SAMPLER,
    VAE,
    all_in_one,
    build,
    from_checkpoint,
    node,
    with_our_loaders,
)

pytestmark = pytest.mark.app

BUDGET_GB = 0.03


def expect(server, prompt: dict) -> dict:
    return server.post("/layerwise_offload/expect", {"prompt": prompt})


def by_name(components: list[dict]) -> dict[str, dict]:
    return {one["component"]: one for one in components}


def placed(component: dict) -> tuple:
    setting = component["settings"]["placement"]
    return setting["value"], setting["source"]


def flux(**widgets) -> dict:
    model = {"placement": "layerwise", "budget_gb": BUDGET_GB, **widgets}
    return with_our_loaders(build("flux", vae="vae_flux"), {MODEL: model, CLIP: {}, VAE: {}})


SAME = {
    "three loaders": lambda: flux(),
    "a node for all": lambda: all_in_one(build("flux", vae="vae_flux"), mode="memory"),
    "a checkpoint": lambda: with_our_loaders(from_checkpoint(build("sd15", steps=1), "sd15_checkpoint"), {MODEL: {}}),
    "two encoders' kind": lambda: with_our_loaders(build("wan_t5"), {MODEL: {}, CLIP: {}, VAE: {}}, {"mode": "memory"}),
}


@pytest.mark.parametrize("prompt", SAME.values(), ids=SAME)
def test_what_is_said_before_is_what_the_run_does(sim, prompt):
    prompt = prompt()
    used = sim.sim_stats()["used"]
    told = expect(sim, prompt)
    assert sim.report()["components"] == [] and sim.sim_stats()["used"] == used, "nothing is loaded for it"
    assert "error" not in told and told["devices"][0]["total_bytes"] > 0
    sim.run(prompt).check()
    ran, before = by_name(sim.report()["components"]), by_name(told["components"])
    assert before.keys() == ran.keys()
    for name, one in before.items():
        assert placed(one) == placed(ran[name]) and one["nodes"] == ran[name]["nodes"]
        assert one["model"] == ran[name]["model"]
        planned, real = one["plan"], ran[name]["plan"]
        apart = abs(one["device_bytes"] - ran[name]["summary"]["peak_device_bytes"])
        assert apart <= 0.04 * total(real) + 2 * real["segment_bytes"], (name, apart)
        assert abs(large(planned) - large(real)) <= 1, name
        assert abs(total(planned) - total(real)) <= 0.02 * total(real) + real["segment_bytes"], name
        assert one["plan_text"] and one["settings"]["budget_bytes"]["reason"]
        assert [each["delta_bytes"] for each in one["what_if"]] == [-(10**9), 0, 10**9]
        kinds = {event[0] for event in one["events"]}
        assert "visit" in kinds and {event[1] for event in one["events"]} == {one["id"]}
        assert planned["predicted"]["pass_ns"] > 0


def large(plan: dict) -> int:
    """Layers of 1 MB and more: smaller ones are none to the engine, and kept ones to who sees names only."""
    return sum(layer["bytes"] >= 1 << 20 for layer in plan["layers"])


def total(plan: dict) -> int:
    return sum(layer["bytes"] for layer in plan["layers"]) + plan["loose_bytes"]


def test_what_stands_behind_other_loaders_and_other_nodes(sim):
    prompt = build("flux", "apply", lora=0.5, placement="layerwise", budget_gb=BUDGET_GB)
    assert prompt[APPLY]["inputs"]["model"] == [LORA, 0]
    (dit,) = expect(sim, prompt)["components"]
    assert placed(dit) == ("layerwise", "node") and dit["nodes"] == [APPLY]
    assert dit["model"] == prompt[MODEL]["inputs"]["unet_name"]
    assert dit["device_bytes"] <= BUDGET_GB * 1e9

    again = flux(placement="auto", budget_gb=0)
    again["30"] = node("LayerwiseOffloadApply", model=[MODEL, 0], placement="resident")
    dit = by_name(expect(sim, again)["components"])["dit"]
    assert placed(dit) == ("resident", "node") and dit["nodes"] == [MODEL, "30"], "the Apply node's word is the last"
    assert len(dit["plan"]["layers"]) == sum(layer["placement"] == "resident" for layer in dit["plan"]["layers"])


def test_what_is_left_to_the_app_is_said_and_why(sim):
    told = expect(sim, flux(placement="whole"))
    assert "dit" not in by_name(told["components"])
    (dit,) = told["bystanders"]
    assert dit["component"] == "dit" and "widget" in dit["reason"] and dit["nodes"] == [MODEL]
    loose_end = {"3": node("LayerwiseOffloadApply", model=["77", 0], placement="layerwise")}
    (dit,) = expect(sim, loose_end)["bystanders"]
    assert "seen only when" in dit["reason"]


def test_the_graphs_options_and_the_users_settings_count(sim):
    said = {"schema": 1, "graph": {"components": {"dit": {"budget_gb": 0.05}}}, "settings": {"mode": "memory"}}
    prompt = flux(placement="auto", budget_gb=0, graph_options=json.dumps(said))
    dit = by_name(expect(sim, prompt)["components"])["dit"]
    assert dit["settings"]["budget_bytes"]["source"] == "graph" and dit["budget_bytes"] == 50_000_000
    options = with_our_loaders(build("flux"), {MODEL: {}}, {"dit_placement": "resident"})
    (dit,) = expect(sim, options)["components"]
    assert placed(dit) == ("resident", "options")


def test_every_placement_and_budget_widget_of_our_loaders_counts(sim):
    """The table of nodes against the nodes' own schemas, by what comes of each widget."""
    tiny_models.ensure("clip_vision_tiny", "controlnet_flux", "sd15_checkpoint", "vae_flux", "flux_tiny", "clip_l_tiny")
    seen = 0
    for class_type, info in sim.object_info().items():
        if not class_type.startswith("LayerwiseOffload") or not class_type.endswith("Loader"):
            continue
        slots = {**info["input"]["required"], **info["input"].get("optional", {})}
        files = {name: choice(class_type, name, spec) for name, spec in slots.items() if is_file(spec)}
        for name in slots:
            value = {"workflow_budget_gb": 0.6}
            value |= {"placement": "resident", "budget_gb": 0.5, "ring_gb": 0.4, "lora_mode": "host"}
            key = next((key for key in value if name.endswith(key)), None)
            if key is None:
                continue
            placement = {"placement": "layerwise"} if key == "ring_gb" else {}
            told = expect(sim, {"1": node(class_type, **files, **placement, **{name: value[key]})})
            setting = key.replace("_gb", "_bytes")
            found = [one["settings"][setting].get("source") for one in told.get("components", [])]
            both = key == "lora_mode" and "clip_placement" in slots
            of_all = key == "workflow_budget_gb"
            spoken_to = len(found) if of_all else 1 + both
            assert found and found.count("node") == spoken_to, (class_type, name, told.get("error"), found)
            seen += 1
    assert seen >= 7 + 12, "loaders of one, and the others' rows of widgets"


def is_file(spec: list) -> bool:
    options = spec[1].get("options", spec[0]) if isinstance(spec[1], dict) else spec[0]
    return isinstance(options, list) and any(str(one).endswith(".safetensors") for one in options)


def choice(class_type: str, name: str, spec: list) -> str:
    options = spec[1].get("options") or spec[0]
    wanted = {
        "model_name": "flux_tiny.",
        "vae_name": "vae_flux_tiny.",
        "ckpt_name": "sd15",
        "clip_name1": "clip_l_tiny.",
    }
    if name in ("clip_name2", "clip_name3", "clip_name4"):
        return "none"
    return next(one for one in options if str(one).startswith(wanted.get(name, "")) and one != "none")


@pytest.mark.parametrize(
    "name",
    ["gone.safetensors", "../../etc/passwd", "/etc/passwd", "..\\x", "", "x" * 3000, "a\x00b", "put_unet_here"],
)
def test_a_name_that_is_not_in_the_apps_list_is_one_clear_error_and_nothing_else(sim, name):
    prompt = flux()
    prompt[MODEL]["inputs"]["model_name"] = name
    told = expect(sim, prompt)
    if not name:
        assert [one["component"] for one in told["bystanders"]] == ["dit"]
        return
    assert told.keys() == {"schema", "error"}
    assert "models/diffusion_models" in told["error"] and "(dit)" in told["error"] and len(told["error"]) < 500


def test_what_a_run_would_refuse_is_refused_before(sim):
    small = expect(sim, flux(budget_gb=0.001))
    assert small.keys() == {"schema", "error", "budget"}
    assert "1000000 bytes" in small["error"] and "give at least" in small["error"]
    wrong = flux()
    wrong[VAE]["inputs"]["vae_name"] = wrong[MODEL]["inputs"]["model_name"]
    assert "no such file in models/vae" in expect(sim, wrong)["error"]
    assert "placement" in expect(sim, flux(placement="sideways"))["error"]
    unknown = json.dumps({"schema": 1, "graph": {"components": {"dit_9": {"placement": "whole"}}}})
    assert "dit_9" in expect(sim, flux(graph_options=unknown))["error"]


def test_a_broken_file_is_named_without_its_folder(sim, model_files):
    prompt = flux()
    prompt[MODEL]["inputs"]["model_name"] = name = model_files.put(
        "diffusion_models", "broken.safetensors", b"\xff" * 100
    )
    error = expect(sim, prompt)["error"]
    assert name in error and str(models_folder()) not in error


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"prompt": None}, {"prompt": []}, {"prompt": {"1": 3}}, {"prompt": {"1": {"class_type": "x"}}}),
        {"prompt": {"1": {"class_type": 3, "inputs": {}}}},
        {"prompt": {"1": {"class_type": "LayerwiseOffloadApply", "inputs": {"model": [1]}}}},
        {"prompt": {"1": {"class_type": "LayerwiseOffloadApply", "inputs": {"model": ["2", "x"]}}}},
        {"prompt": {str(n): {"class_type": "x", "inputs": {}} for n in range(4001)}},
        {"prompt": {"1": {"class_type": "x", "inputs": {"a": "b" * (1 << 20)}}}},
    ],
)
def test_what_is_no_prompt_is_refused(sim, body):
    with pytest.raises(HttpError) as refused:
        sim.post("/layerwise_offload/expect", body)
    assert refused.value.code == 400


def test_nodes_in_a_circle_end(sim):
    prompt = {
        "1": node("LayerwiseOffloadApply", model=["2", 0], placement="auto"),
        "2": node("LayerwiseOffloadApply", model=["1", 0], placement="auto"),
        "3": node("LoraLoaderModelOnly", model=["3", 0]),
        "4": node("LayerwiseOffloadApply", model=["3", 0], placement="auto"),
    }
    told = expect(sim, prompt)
    assert "error" in told or told["components"] == []


@pytest.mark.parametrize("node_id", ["\u00b2", "9" * 4400, "\u0663"])
def test_a_nodes_id_may_be_any_text(sim, node_id):
    prompt = {node_id: flux()[MODEL], "1": node("LayerwiseOffloadApply", model=[node_id, 0], placement="auto")}
    (dit,) = expect(sim, prompt)["components"]
    assert sorted(dit["nodes"]) == sorted(["1", node_id])


@pytest.mark.parametrize("loader", [MODEL, "20"], ids=["ours", "the app's"])
def test_an_output_that_no_node_has_is_no_connection(sim, loader):
    prompt = {
        MODEL: flux()[MODEL],
        "20": node("UNETLoader", unet_name=flux()[MODEL]["inputs"]["model_name"], weight_dtype="default"),
        "21": node("LayerwiseOffloadApply", model=[loader, -99], placement="auto"),
    }
    (loose_end,) = expect(sim, prompt)["bystanders"]
    assert loose_end["nodes"] == ["21"] and "seen only when" in loose_end["reason"]


def test_many_apply_nodes_one_behind_the_other_are_each_worked_out_once(sim):
    """Else a chain of so many is not answered in the minute that the request may take."""
    prompt = {MODEL: flux()[MODEL]}
    before = MODEL
    for number in range(20, 210):
        prompt[str(number)] = node("LayerwiseOffloadApply", model=[before, 0], placement="auto")
        before = str(number)
    (dit,) = expect(sim, prompt)["components"]
    assert len(dit["nodes"]) == 191


def test_a_folder_that_is_gone_since_the_app_listed_it_is_one_clear_error(sim, model_files, tmp_path):
    tiny_models.ensure("clip_vision_tiny")
    drive, link = tmp_path / "drive", model_files.path("clip_vision", "drive")
    drive.mkdir()
    shutil.copy(models_folder() / "clip_vision" / tiny_models.file_name("clip_vision_tiny"), drive / "own.safetensors")
    link.symlink_to(drive, target_is_directory=True)
    prompt = {"1": node("LayerwiseOffloadCLIPVisionLoader", clip_name=f"{link.name}/own.safetensors")}
    (encoder,) = expect(sim, prompt)["components"]
    assert encoder["model"] == "own.safetensors"
    shutil.rmtree(drive)
    told = expect(sim, prompt)
    assert told.keys() == {"schema", "error"}
    assert "models/clip_vision cannot be read" in told["error"] and str(tmp_path) not in told["error"]


def test_the_events_of_the_last_run_are_there_for_a_page_that_comes_later(sim):
    sim.sim_configure(bandwidth=3e8)
    sim.run(flux()).check()
    told = sim.get("/layerwise_offload/events")
    (dit,) = [one for one in sim.report()["components"] if one["component"] == "dit"]
    mine = [event for event in told["events"] if event[1] == dit["id"]]
    assert {event[0] for event in told["events"]} == {"visit", "copy", "stall"}
    visits = [layer for kind, _, layer, start, end, _ in mine if kind == "visit" and end > start]
    assert set(visits) == set(range(len(dit["plan"]["layers"]))), "every layer of the last pass"
    assert len(told["events"]) <= 4000 and all(len(event) == 6 for event in told["events"])
    sim.free()
    assert sim.get("/layerwise_offload/events")["events"] == [], "nothing of what is gone"
    assert SAMPLER in flux()
