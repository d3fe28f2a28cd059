"""A case as prompts in the app's API form: one list for the app's own loaders, one for ours, run in their order."""

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.tiny_models import RECIPES
from tests.support.workflows import (
    CLIP,
    DECODE,
    FAMILIES,
    MODEL,
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
CHECKPOINT = "sd15_checkpoint"
TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}


def app_prompts(case: Case) -> list[dict]:
    """What the case runs, one prompt after the other, with the app's loaders."""
    return [_decorated(case, _base(case, text), loras) for text, loras in _runs(case)]


def our_prompts(case: Case, budget_gb: float) -> list[dict]:
    """The same graphs with our loaders, or with Apply nodes, in the place of the app's loaders."""
    built = []
    for text, loras in _runs(case):
        prompt = _base(case, text)
        if case.loader == "layerwise":
            prompt = _decorated(case, _loaded_by_us(case, prompt, budget_gb), loras)
        elif case.apply_last:
            prompt = _decorated(case, _applied(case, prompt, budget_gb), loras)
        else:
            prompt = _applied(case, _decorated(case, prompt, loras), budget_gb)
        built.append(prompt)
    return built


def budget_gb(case: Case) -> float:
    """The share of the file's bytes, in GB; for people a budget is a guess as well."""
    name = CHECKPOINT if case.family == CHECKPOINT else FAMILIES[case.family].model
    tiny_models.ensure(name)
    return case.budget_share * (paths.MODELS / RECIPES[name].path).stat().st_size / 1e9


def _runs(case: Case) -> list[tuple[str, tuple[float, ...]]]:
    runs = [("a lighthouse at dusk", case.loras)]
    if case.then_loras is not None:
        runs.append((runs[0][0], case.then_loras))
    if case.new_text:
        runs.append(("a forest in the rain", case.loras))
    return runs


def _base(case: Case, text: str) -> dict:
    checkpoint = case.family == CHECKPOINT
    prompt = build("sd15" if checkpoint else case.family, steps=case.steps, text=text)
    prompt["7"]["inputs"]["batch_size"] = case.batch
    if case.tiled:
        prompt[DECODE] = node("VAEDecodeTiled", **prompt[DECODE]["inputs"], **TILES)
    return from_checkpoint(prompt, CHECKPOINT) if checkpoint else prompt


def _decorated(case: Case, prompt: dict, loras: tuple[float, ...]) -> dict:
    """LoRAs, merge, ControlNet and a second sampler over a clone."""
    last = SAMPLER  # the chain ends there
    if case.twin_loras is not None:
        prompt = _with_twin(prompt, case)
    if case.merge:
        source = prompt[last]["inputs"]["model"]
        merged = node("ModelMergeSimple", model1=source, model2=source, ratio=case.merge)
        prompt = {**prompt, "60": merged}
        prompt[last] = node(prompt[last]["class_type"], **(prompt[last]["inputs"] | {"model": ["60", 0]}))
    prompt = _with_loras(prompt, "60" if case.merge else last, "model1" if case.merge else "model", loras, "7")
    return with_controlnet(prompt, f"controlnet_{case.family}") if case.controlnet else prompt


def _with_loras(prompt: dict, consumer: str, slot: str, loras: tuple[float, ...], prefix: str) -> dict:
    """The prompt with LoRAs in front of one input of one node."""
    prompt = dict(prompt)
    for number, strength in enumerate(loras):
        added = f"{prefix}{number}00"
        source = prompt[consumer]["inputs"][slot]
        file = tiny_models.file_name("lora_flux_tiny")
        prompt[added] = node("LoraLoaderModelOnly", model=source, lora_name=file, strength_model=strength)
        prompt[consumer] = node(prompt[consumer]["class_type"], **(prompt[consumer]["inputs"] | {slot: [added, 0]}))
    return prompt


def _with_twin(prompt: dict, case: Case) -> dict:
    """A second sampler over the same loader's model, with LoRAs of its own, saved on its own."""
    twin = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"seed": 2}))
    saved = node("SaveLatent", samples=["50", 0], filename_prefix="latents/twin")
    return _with_loras({**prompt, "50": twin, "51": saved}, "50", "model", case.twin_loras, "8")


def _placements(case: Case, budget: float) -> dict[str, dict]:
    settings = {MODEL: {"placement": case.dit, "budget_gb": budget}}
    if case.family == CHECKPOINT:
        return {MODEL: settings[MODEL] | {"clip_placement": case.clip, "vae_placement": case.vae}}
    if FAMILIES[case.family].clip:
        settings[CLIP] = {"placement": case.clip}
    settings[VAE] = {"placement": case.vae}
    return settings


def _loaded_by_us(case: Case, prompt: dict, budget: float) -> dict:
    return with_our_loaders(prompt, _placements(case, budget), {"mode": case.mode})


def _applied(case: Case, prompt: dict, budget: float) -> dict:
    """Apply nodes right behind the app's loaders, or, for the model, in front of each sampler."""
    options = {**prompt, "90": node("LayerwiseOffloadOptions", mode=case.mode)}
    prompt = options
    if FAMILIES[case.family].clip:
        prompt = _apply_behind(prompt, CLIP, "clip", clip_placement=case.clip)
    prompt = _apply_behind(prompt, VAE, "vae", vae_placement=case.vae)
    widgets = {"placement": case.dit, "budget_gb": budget, "options": ["90", 0]}
    if case.apply_last:
        return behind(prompt, MODEL, APPLY, "model", **widgets)
    prompt = dict(prompt)
    for number, sampler in enumerate(("8", "50")):
        if sampler in prompt:
            inputs = prompt[sampler]["inputs"]
            prompt[f"apply{number}"] = node(APPLY, model=inputs["model"], **widgets)
            prompt[sampler] = node("KSampler", **(inputs | {"model": [f"apply{number}", 0]}))
    return prompt


def _apply_behind(prompt: dict, loader: str, slot: str, **widgets) -> dict:
    added = behind(prompt, loader, APPLY, slot, **{"placement": "auto", "options": ["90", 0], **widgets})
    new = next(reversed(added))
    for node_id, entry in added.items():
        wires = {
            name: [new, APPLY_OUTPUTS[slot]] if value == [new, 0] else value for name, value in entry["inputs"].items()
        }
        added[node_id] = node(entry["class_type"], **wires)
    return added
