"""We change no widget: every node of ours, every widget away from its default, built, run, saved, loaded."""

import pytest

from tests.support import tiny_models, workflows
from tests.support.workflows import OPTIONS, SAMPLER, all_in_one, build, node

pytestmark = pytest.mark.web

CARRIED = "graph_options"
"""The one input that is ours to write, when a prompt is queued."""


def every_node() -> dict:
    """A picture by the loader of all, and every other node of ours beside it, each run for a preview."""
    names = {
        name: tiny_models.file_name(name)
        for name in ("clip_vision_tiny", "controlnet_flux", "sd15_checkpoint", "flux_tiny", "clip_l_tiny", "vae_flux")
    }
    tiny_models.ensure(*names)
    widgets = {"mode": "speed", "dit_placement": "layerwise", "dit_budget_gb": 0.1, "clip_placement": "resident"}
    widgets |= {"vae_placement": "layerwise", "vae_precision": "bf16", "clip_vision_name": names["clip_vision_tiny"]}
    widgets["workflow_budget_gb"] = 1.25
    prompt = all_in_one(build("flux", vae="vae_flux", seed=77), **widgets, options=[OPTIONS, 0])
    options = {
        "mode": "auto",
        "selection": "text_encoder, vae",
        "vae_placement": "whole",
        "image_encoder_budget_gb": 0.2,
        "host_tier": "pageable",
        "pin_budget_gb": 0.25,
        "workflow_budget_gb": 1.5,
        "workflow_host_gb": 2.5,
        "peer_budget_gb": 0.75,
    }
    prompt[OPTIONS] = node("LayerwiseOffloadOptions", **options, dit_budget_gb=0.1)
    loaders = {
        "60": node(workflows.LOADER_NODE, model_name=names["flux_tiny"], weight_dtype="fp8_e4m3fn", placement="whole"),
        "61": node(
            *("LayerwiseOffloadCLIPLoader",),
            **{"clip_name1": names["clip_l_tiny"], "type": "flux", "placement": "layerwise", "budget_gb": 0.1},
        ),
        "62": node("LayerwiseOffloadVAELoader", vae_name=names["vae_flux"], precision="fp32", placement="resident"),
        "63": node("LayerwiseOffloadCLIPVisionLoader", clip_name=names["clip_vision_tiny"], placement="layerwise"),
        "64": node("LayerwiseOffloadControlNetLoader", control_net_name=names["controlnet_flux"], placement="whole"),
        "65": node(
            *("LayerwiseOffloadCheckpointLoader",),
            **{"ckpt_name": names["sd15_checkpoint"], "placement": "layerwise", "budget_gb": 0.2, "ring_gb": 0.1},
            **{"clip_placement": "whole", "vae_placement": "resident"},
        ),
        "66": node(
            *("LayerwiseOffloadApply",),
            **{
                "model": ["60", 0],
                "control_net": ["64", 0],
                "placement": "layerwise",
                "control_net_placement": "whole",
            },
        ),
    }
    prompt |= loaders
    prompt["70"] = node("LayerwiseOffloadReport", value=[SAMPLER, 0])
    for number, node_id in enumerate(loaders):
        prompt[f"8{number}"] = node("PreviewAny", source=[node_id, 0])
    return prompt


@pytest.mark.parametrize("renderer", ["canvas", "vue"])
def test_built_run_saved_and_loaded_every_widget_is_what_the_user_set(server, play, renderer):
    server.free()
    prompt = every_node()
    played = play("loader.mjs", f"every-node-{renderer}", prompt=prompt, vueNodes=renderer == "vue")
    assert played["run"]["status"] == "success", played["run"]

    ids = played["ids"]
    for node_id, entry in prompt.items():
        found = played["built"][ids[node_id]]["inputs"]
        widgets = {name: value for name, value in entry["inputs"].items() if not isinstance(value, list)}
        assert {name: found[name] for name in widgets} == widgets, entry["class_type"]
    for form in ("beforeReload", "afterReload"):
        assert _ours(played[form]) == _ours(played["built"]), f"{form}: something was changed"
    assert _widgets(played["uiBuilt"]) == _widgets(played["uiAfterRun"]), (
        "running it changed the workflow that is saved"
    )
    assert _ours(_last_prompt(server)) == _ours(played["built"]), "what ran is not what was built"
    assert len({kind for kind, _ in _ours(played["built"]).values()}) == 10
    assert played["errors"] == [] and played["external"] == []


def _ours(prompt: dict) -> dict:
    """Class and inputs of our nodes, without what is ours to write. Not the sampler: the app draws it a new seed."""
    return {
        node_id: (entry["class_type"], {name: value for name, value in entry["inputs"].items() if name != CARRIED})
        for node_id, entry in prompt.items()
        if entry["class_type"].startswith("LayerwiseOffload")
    }


def _widgets(workflow: dict) -> dict:
    """Widget values of our nodes by node id, as a workflow file has them."""
    ours = [entry for entry in workflow["nodes"] if entry["type"].startswith("LayerwiseOffload")]
    return {entry["id"]: entry.get("widgets_values") or [] for entry in ours}


def _last_prompt(server) -> dict:
    return max(server.get("/history").values(), key=lambda entry: entry["prompt"][0])["prompt"][2]
