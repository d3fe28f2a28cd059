"""A case as prompts in the app's API form: one list for the app's own loaders, one for ours, run in their order."""

import json
from dataclasses import dataclass

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.tiny_models import RECIPES
from tests.support.workflows import (
    CLIP,
    DECODE,
    FAMILIES,
    MODEL,
    NEGATIVE,
    POSITIVE,
    SAMPLER,
    VAE,
    behind,
    build,
    from_checkpoint,
    node,
    with_controlnet,
    with_our_loaders,
)

from .case import Case

APPLY, APPLY_OUTPUTS = "LayerwiseOffloadApply", {"model": 0, "clip": 1, "vae": 2}
CHECKPOINT, GGUF = "sd15_checkpoint", "flux_gguf"
TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
TWIN, TWIN_LOADER, MERGE, OPTIONS, SAVE = "50", "53", "60", "90", "95"
SAVED_PREFIX = "random"
ROLES = {"dit": MODEL, "text_encoder": CLIP, "vae": VAE}


@dataclass(frozen=True)
class Numbers:
    """Sizes in GB that are asked for: the diffusion model's budget, and those of the whole workflow; 0 = auto."""

    budget: float = 0.0
    workflow: float = 0.0
    workflow_host: float = 0.0


def numbers_of(case: Case) -> Numbers:
    """As people guess them, by the size of the diffusion model's file."""
    name = CHECKPOINT if case.family == CHECKPOINT else FAMILIES[_architecture(case.family)].model
    tiny_models.ensure(name)
    file_gb = (paths.MODELS / RECIPES[name].path).stat().st_size / 1e9
    return Numbers(case.budget_share * file_gb, case.workflow_share * file_gb, case.workflow_host_gb)


def app_prompts(case: Case) -> list[dict]:
    """What the case runs, one prompt after the other, with the app's loaders."""
    return [_decorated(case, _base(case, text), loras, _saves(case, number)) for number, text, loras in _runs(case)]


def our_prompts(case: Case, numbers: Numbers) -> list[dict]:
    """The same graphs with our loaders, or with Apply nodes, in the place of the app's loaders."""
    built = []
    for number, text, loras in _runs(case):
        prompt, saves = _base(case, text), _saves(case, number)
        if case.loader == "layerwise":
            prompt = _decorated(case, _loaded_by_us(case, prompt, numbers), loras, saves)
        elif case.apply_last:
            prompt = _decorated(case, _applied(case, prompt, numbers), loras, saves)
        else:
            prompt = _applied(case, _decorated(case, prompt, loras, saves), numbers)
        built.append(prompt)
    return built


def _architecture(family: str) -> str:
    """The family of `tests.support.workflows` that it is built from."""
    return {CHECKPOINT: "sd15", GGUF: "flux"}.get(family, family)


def _runs(case: Case) -> list[tuple[int, str, tuple[float, ...]]]:
    """(number, text, LoRAs on the model) of each prompt."""
    runs = [("a lighthouse at dusk", case.loras)]
    if case.then_loras is not None:
        runs.append((runs[0][0], case.then_loras))
    if case.new_text:
        runs.append(("a forest in the rain", case.loras))
    return [(number, *run) for number, run in enumerate(runs)]


def _saves(case: Case, number: int) -> bool:
    return bool(case.save) and number == 0


def _base(case: Case, text: str) -> dict:
    """The graph with the app's loaders: one for each role, and one more for a second sampler of its own."""
    checkpoint = case.family == CHECKPOINT
    prompt = build(_architecture(case.family), steps=case.steps, text=text)
    if case.family == GGUF:
        prompt[MODEL] = node("GGUFDoubleLoader", unet_name=prompt[MODEL]["inputs"]["unet_name"])
    prompt["7"]["inputs"]["batch_size"] = case.batch
    if case.tiled:
        prompt[DECODE] = node("VAEDecodeTiled", **prompt[DECODE]["inputs"], **TILES)
    if case.twin_loader:
        prompt[TWIN_LOADER] = node(prompt[MODEL]["class_type"], **prompt[MODEL]["inputs"])
    return from_checkpoint(prompt, CHECKPOINT) if checkpoint else prompt


# ---------------------------------------------------------------------- what other nodes do


def _decorated(case: Case, prompt: dict, loras: tuple[float, ...], saves: bool) -> dict:
    """LoRAs, hooks, merge, ControlNet, a second sampler over a clone; and a file that is saved."""
    if case.sampling:
        prompt = behind(prompt, MODEL, "ModelSamplingFlux", "model", max_shift=1.3, base_shift=0.6, width=64, height=64)
    if case.twin_loras is not None:
        prompt = _with_twin(prompt, case)
    if case.merge:
        prompt = _with_merge(prompt, case)
    prompt = _with_loras(prompt, MERGE if case.merge else SAMPLER, "model1" if case.merge else "model", loras, "7")
    if case.clip_lora:
        prompt = _with_clip_lora(prompt, case.clip_lora)
    if case.hook:
        prompt = _with_hook(prompt, case)
    if case.controlnet:
        prompt = with_controlnet(prompt, f"controlnet_{case.family}")
    return _with_save(prompt, case) if saves else prompt


def _rewired(prompt: dict, node_id: str, **inputs) -> dict:
    """The prompt with other inputs of one node."""
    entry = prompt[node_id]
    return {**prompt, node_id: node(entry["class_type"], **(entry["inputs"] | inputs))}


def _with_loras(prompt: dict, consumer: str, slot: str, loras: tuple[float, ...], prefix: str) -> dict:
    """The prompt with LoRAs in front of one input of one node."""
    file = tiny_models.file_name("lora_flux_tiny")
    for number, strength in enumerate(loras):
        added = f"{prefix}{number}00"
        source = prompt[consumer]["inputs"][slot]
        lora = node("LoraLoaderModelOnly", model=source, lora_name=file, strength_model=strength)
        prompt = _rewired({**prompt, added: lora}, consumer, **{slot: [added, 0]})
    return prompt


def _with_twin(prompt: dict, case: Case) -> dict:
    """A second sampler over the same loader's model, or its own loader's, with LoRAs of its own, saved on its own."""
    inputs = prompt[SAMPLER]["inputs"] | {"seed": 2}
    if case.twin_loader:
        inputs["model"] = _source_of_twin(prompt)
    saved = node("SaveLatent", samples=[TWIN, 0], filename_prefix="latents/twin")
    return _with_loras({**prompt, TWIN: node("KSampler", **inputs), "51": saved}, TWIN, "model", case.twin_loras, "8")


def _source_of_twin(prompt: dict) -> list:
    """The second loader's output, behind the Apply node that may stand there."""
    applied = (key for key, entry in prompt.items() if entry["class_type"] == APPLY)
    behind_it = next((key for key in applied if prompt[key]["inputs"].get("model") == [TWIN_LOADER, 0]), TWIN_LOADER)
    return [behind_it, 0]


def _with_merge(prompt: dict, case: Case) -> dict:
    source = prompt[SAMPLER]["inputs"]["model"]
    other = _source_of_twin(prompt) if case.merge_other and case.twin_loader else source
    weight = {"ModelMergeSimple": {"ratio": case.merge}, "ModelMergeSubtract": {"multiplier": case.merge}}
    merged = node(case.merge_node, model1=source, model2=other, **weight.get(case.merge_node, {}))
    return _rewired({**prompt, MERGE: merged}, SAMPLER, model=[MERGE, 0])


def _with_clip_lora(prompt: dict, strength: float) -> dict:
    """A LoRA on the text encoder that both conditionings come from."""
    source = prompt[POSITIVE]["inputs"]["clip"]
    name = tiny_models.file_name("lora_clip_l_tiny")
    tiny_models.ensure("lora_clip_l_tiny")
    widgets = {"lora_name": name, "strength_model": 0.0, "strength_clip": strength}
    prompt = {**prompt, "65": node("LoraLoader", model=[MODEL, 0], clip=source, **widgets)}
    for consumer in (POSITIVE, NEGATIVE):
        prompt = _rewired(prompt, consumer, clip=["65", 1])
    return prompt


def _with_hook(prompt: dict, case: Case) -> dict:
    """The positive conditioning under a LoRA of its own; the negative one, which then matters, without."""
    name = tiny_models.file_name("lora_flux_tiny")
    prompt = {**prompt, "40": node("CreateHookLoraModelOnly", lora_name=name, strength_model=case.hook)}
    hooks = ["40", 0]
    if case.keyframes:
        prompt["41"] = node("CreateHookKeyframe", strength_mult=0.5, start_percent=0.0)
        prompt["42"] = node("CreateHookKeyframe", strength_mult=1.5, start_percent=0.5, prev_hook_kf=["41", 0])
        prompt["43"] = node("SetHookKeyframes", hooks=hooks, hook_kf=["42", 0])
        hooks = ["43", 0]
    for sampler in (SAMPLER, TWIN):
        if sampler in prompt:
            prompt = _rewired(prompt, sampler, cfg=3.0)
    return behind(
        prompt, POSITIVE, "ConditioningSetProperties", "cond_NEW", strength=1.0, set_cond_area="default", hooks=hooks
    )


def _with_save(prompt: dict, case: Case) -> dict:
    model = prompt[SAMPLER]["inputs"]["model"]
    if case.save == "model" or not FAMILIES[_architecture(case.family)].clip:
        return {**prompt, SAVE: node("ModelSave", model=model, filename_prefix=f"diffusion_models/{SAVED_PREFIX}")}
    wires = {"clip": prompt[POSITIVE]["inputs"]["clip"], "vae": prompt[DECODE]["inputs"]["vae"]}
    saved = node("CheckpointSave", model=model, **wires, filename_prefix=f"checkpoints/{SAVED_PREFIX}")
    return {**prompt, SAVE: saved}


# ---------------------------------------------------------------------- what our nodes are told


def _said(case: Case, numbers: Numbers) -> tuple[dict[str, dict], dict | None, str]:
    """What is said about the components by (the nodes' widgets by role, an options node's widgets, the graph)."""
    values: dict[str, dict] = {"dit": {"placement": case.dit, "budget_gb": numbers.budget}}
    said_once = {} if case.lora_mode == "auto" else {"lora_mode": case.lora_mode}
    values["dit"] |= said_once if case.said_by != "options" else {}
    if FAMILIES[_architecture(case.family)].clip:
        values["text_encoder"] = {"placement": case.clip}
    values["vae"] = {"placement": case.vae}
    nothing: dict[str, dict] = {role: {} for role in values}
    workflow = {"workflow_budget_gb": numbers.workflow, "workflow_host_gb": numbers.workflow_host}
    in_gb = {"pin_budget_gb": case.pin_gb, **workflow}
    for_all = {} if case.host_tier == "auto" else {"host_tier": case.host_tier}
    for_all |= {name: value for name, value in in_gb.items() if value}
    if case.said_by == "graph":
        said = {"mode": case.mode, "components": values | ({"all": for_all} if for_all else {})}
        return nothing, None, json.dumps({"schema": 1, "graph": said})
    options = {"mode": case.mode, **for_all, **(said_once if case.said_by == "options" else {})}
    if case.said_by == "options":
        for role, widgets in values.items():
            options |= {f"{role}_{name}": value for name, value in widgets.items()}
        return nothing, options, ""
    return values, options, ""


def _loaded_by_us(case: Case, prompt: dict, numbers: Numbers) -> dict:
    widgets, options, text = _said(case, numbers)
    if case.family == CHECKPOINT:
        short = {"text_encoder": "clip_placement", "vae": "vae_placement"}
        mine = dict(widgets["dit"])
        mine |= {short[role]: widgets[role]["placement"] for role in short if "placement" in widgets[role]}
        settings = {MODEL: mine}
    else:
        settings = {ROLES[role]: mine for role, mine in widgets.items()}
    if case.twin_loader:
        settings[TWIN_LOADER] = _twin_widgets(case, numbers.budget)
    if text:
        settings = {node_id: {**mine, "graph_options": text} for node_id, mine in settings.items()}
    return with_our_loaders(prompt, settings, options)


def _twin_widgets(case: Case, budget: float) -> dict:
    """The second loader's own: the first one's budget, unless its placement says all."""
    return {"placement": case.twin_loader} | (
        {"budget_gb": budget} if case.twin_loader not in ("resident", "whole") and case.said_by == "node" else {}
    )


def _applied(case: Case, prompt: dict, numbers: Numbers) -> dict:
    """Apply nodes right behind the app's loaders, or, for the model, in front of each sampler."""
    widgets, options, text = _said(case, numbers)
    common: dict = {"graph_options": text} if text else {}
    if options is not None:
        prompt = {**prompt, OPTIONS: node("LayerwiseOffloadOptions", **options)}
        common["options"] = [OPTIONS, 0]
    for role, slot in (("text_encoder", "clip"), ("vae", "vae")):
        if role in widgets:
            said = {f"{slot}_{name}": value for name, value in widgets[role].items()}
            prompt = _apply_behind(prompt, ROLES[role], slot, **common, **said)
    mine = {"placement": "auto", **widgets["dit"], **common}
    if case.apply_last:
        prompt = behind(prompt, MODEL, APPLY, "model", **mine)
        if case.twin_loader:
            prompt[f"{TWIN_LOADER}0"] = node(
                APPLY, model=[TWIN_LOADER, 0], **_twin_widgets(case, numbers.budget), **common
            )
        return prompt
    own = {**mine, **_twin_widgets(case, numbers.budget)} if case.twin_loader and not case.merge_other else mine
    for number, (sampler, said) in enumerate(((SAMPLER, mine), (TWIN, own))):
        if sampler in prompt:
            applied = node(APPLY, model=prompt[sampler]["inputs"]["model"], **said)
            prompt = _rewired({**prompt, f"apply{number}": applied}, sampler, model=[f"apply{number}", 0])
    return prompt


def _apply_behind(prompt: dict, loader: str, slot: str, **widgets) -> dict:
    added = behind(prompt, loader, APPLY, slot, **{"placement": "auto", **widgets})
    new = next(reversed(added))
    for node_id, entry in added.items():
        wires = {
            name: [new, APPLY_OUTPUTS[slot]] if value == [new, 0] else value for name, value in entry["inputs"].items()
        }
        added[node_id] = node(entry["class_type"], **wires)
    return added
