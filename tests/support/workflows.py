"""Workflows in the app's API form, one per model family: conditioning, sampler, VAE decode, saved image and latent.

`build("flux", loader="layerwise", budget_gb=0.02)` gives the same graph as `build("flux")` with another loader, so that
whatever comes out can be compared bit for bit. The app caches results: a prompt that equals the last one is not run
again. To run the same thing twice, call the server's `free()` in between, or change the seed.
"""

import dataclasses
from collections.abc import Callable

from tests.support import tiny_models
from tests.support.tiny_models.pictures import HIDREAM_LLAMA_LAYERS, TEXT_WIDTH
from tests.support.tiny_models.video import (
    COSMOS_TEXT_WIDTH,
    HUNYUAN_TEXT_WIDTH,
    LTXAV_TEXT_WIDTH,
    QWEN_TEXT_WIDTH,
    WAN_VACE_TEXT_WIDTH,
)

LOADERS = ("app", "layerwise", "apply")
LOADER_NODE = "LayerwiseOffloadDiffusionModelLoader"
APPLY_NODE = "LayerwiseOffloadApply"
PROMPT_TEXT = "a lighthouse at dusk"

# Node ids by role, the same in every workflow: tests look results up by them.
MODEL, LORA, APPLY, CLIP, POSITIVE, NEGATIVE, LATENT, SAMPLER = "1", "2", "3", "4", "5", "6", "7", "8"
VAE, DECODE, SAVE_IMAGE, SAVE_LATENT = "9", "10", "11", "12"


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between model families. Names are those of tiny_models."""

    model: str
    vae: str
    latent: Callable[[int, int, int], dict]  # width, height, frames -> node
    clip: str = ""  # a text encoder, or none for random conditioning of the widths below
    second_clip: str = ""  # of an encoder in two files
    clip_type: str = "stable_diffusion"
    audio_vae: str = ""  # of a model that makes sound as well
    text_width: int = 0
    pooled_width: int = 0
    llama_layers: int = 0
    cfg: float = 1.0
    frames: int = 1
    lora: str = ""
    size: int = 64
    weight_dtype: str = "default"
    latent_has_conditioning: bool = False
    """The latent's node takes conditioning and VAE in, and puts out positive, negative and latent."""


def _image_latent(class_type: str):
    return lambda width, height, frames: node(class_type, width=width, height=height, batch_size=1)


def _video_latent(class_type: str):
    return lambda width, height, frames: node(class_type, width=width, height=height, length=frames, batch_size=1)


def _vace_latent(width: int, height: int, frames: int) -> dict:
    return node("WanVaceToVideo", width=width, height=height, length=frames, batch_size=1, strength=1.0)


_FLUX = Family("flux_tiny", "taef1", _image_latent("EmptySD3LatentImage"), clip="clip_l_tiny", lora="lora_flux_tiny")
_LTXAV = Family(
    *("ltxav_tiny", "vae_ltx", _video_latent("EmptyLTXVLatentVideo")),
    **{"audio_vae": "vae_ltx_audio", "text_width": LTXAV_TEXT_WIDTH, "frames": 9, "cfg": 4.0},
)
_SD15 = Family("sd15_unet", "taesd", _image_latent("EmptyLatentImage"), clip="clip_l_tiny", cfg=4.0)

FAMILIES: dict[str, Family] = {
    "flux": _FLUX,
    "flux_fp8": dataclasses.replace(_FLUX, model="flux_tiny_fp8", weight_dtype="fp8_e4m3fn"),
    "flux_fp8_scaled": dataclasses.replace(_FLUX, model="flux_tiny_fp8_scaled"),
    "flux_int8": dataclasses.replace(_FLUX, model="flux_tiny_int8"),
    "flux_nvfp4": dataclasses.replace(_FLUX, model="flux_tiny_nvfp4"),
    "flux_mxfp8": dataclasses.replace(_FLUX, model="flux_tiny_mxfp8"),
    "flux_mid": dataclasses.replace(_FLUX, model="flux_mid", lora=""),
    "flux_large": dataclasses.replace(_FLUX, model="flux_large", lora=""),
    "flux2": Family("flux2_tiny", "vae_flux2", _image_latent("EmptyFlux2LatentImage"), text_width=768),
    "wan": Family("wan_tiny", "vae_wan21", _video_latent("EmptyHunyuanLatentVideo"), text_width=768, frames=5),
    "wan_t5": Family(
        *("wan_tiny_ctx64", "vae_wan21", _video_latent("EmptyHunyuanLatentVideo")),
        **{"clip": "umt5xxl_tiny", "clip_type": "wan", "frames": 5},
    ),
    "ltxv": Family(
        *("ltxv_tiny", "vae_ltx", _video_latent("EmptyLTXVLatentVideo")),
        **{"clip": "t5xxl_tiny", "clip_type": "ltxv", "frames": 9},
    ),
    "ltxav": _LTXAV,
    "ltxav_gemma": dataclasses.replace(
        _LTXAV, clip="gemma3_12b_tiny", second_clip="ltxav_projection_tiny", clip_type="ltxv"
    ),
    "qwen_image": Family(
        "qwen_image_tiny", "vae_wan21", _image_latent("EmptySD3LatentImage"), text_width=QWEN_TEXT_WIDTH
    ),
    "qwen_image_vl": Family(
        *("qwen_image_tiny", "vae_wan21", _image_latent("EmptySD3LatentImage")),
        **{"clip": "qwen25vl_tiny", "clip_type": "qwen_image"},
    ),
    "cosmos1": Family(
        *("cosmos1_tiny", "vae_wan21", _video_latent("EmptyCosmosLatentVideo")),
        **{"text_width": COSMOS_TEXT_WIDTH, "frames": 9},
    ),
    "sd15": _SD15,
    "sdxl": Family(
        *("sdxl_unet", "taesd", _image_latent("EmptyLatentImage")),
        **{"text_width": 2048, "pooled_width": 1280, "cfg": 4.0},
    ),
    "z_image": Family("z_image_tiny", "taef1", _image_latent("EmptySD3LatentImage"), text_width=TEXT_WIDTH),
    "wan_vace": Family(
        *("wan_vace_tiny", "vae_wan21", _vace_latent),
        **{"text_width": WAN_VACE_TEXT_WIDTH, "frames": 5, "latent_has_conditioning": True},
    ),
    "hunyuan_video": Family(  # with Wan's VAE, for latents of the same shape: the app's own has no small form
        *("hunyuan_video_tiny", "vae_wan21", _video_latent("EmptyHunyuanLatentVideo")),
        **{"text_width": HUNYUAN_TEXT_WIDTH, "pooled_width": 768, "frames": 5},
    ),
    "sd35": Family(
        *("sd35_tiny", "taef1", _image_latent("EmptySD3LatentImage")),
        **{"text_width": TEXT_WIDTH, "pooled_width": 2048, "cfg": 4.0},
    ),
    "hidream": Family(
        *("hidream_tiny", "taef1", _image_latent("EmptySD3LatentImage")),
        **{"text_width": TEXT_WIDTH, "pooled_width": 2048, "llama_layers": HIDREAM_LLAMA_LAYERS},
    ),
}
# One of each architecture that the engine must find and stream.
ARCHITECTURES = ("flux", "flux2", "wan", "ltxv", "ltxav", "qwen_image", "cosmos1", "sd15", "sdxl")
# More of them, which a shorter test goes through.
MORE_ARCHITECTURES = ("z_image", "wan_vace", "hunyuan_video", "sd35", "hidream")


def build(
    family: str,
    loader: str = "app",
    *,
    placement: str = "auto",
    budget_gb: float = 0.0,
    ring_gb: float = 0.0,
    lora: float | None = None,
    seed: int = 1,
    steps: int = 2,
    size: int | None = None,
    text: str = PROMPT_TEXT,
    model: str | None = None,
    clip: str | None = None,
    vae: str | None = None,
    weight_dtype: str | None = None,
) -> dict:
    """The family's workflow. `lora` is a strength: the LoRA sits right behind the loader, before Apply. `model`,
    `clip` and `vae` name other files of tiny_models. Files that set-up has not made are made now."""
    chosen = FAMILIES[family]
    chosen = dataclasses.replace(
        chosen,
        model=model or chosen.model,
        clip=clip or chosen.clip,
        vae=vae or chosen.vae,
        weight_dtype=weight_dtype or chosen.weight_dtype,
    )
    files = (chosen.model, chosen.vae, chosen.audio_vae, chosen.clip, chosen.second_clip, chosen.lora)
    tiny_models.ensure(*filter(None, files))
    side = size or chosen.size
    prompt = _model_nodes(chosen, loader, {"placement": placement, "budget_gb": budget_gb, "ring_gb": ring_gb}, lora)
    prompt.update(_conditioning_nodes(chosen, text))
    prompt[LATENT] = chosen.latent(side, side, chosen.frames)
    prompt[SAMPLER] = node(
        "KSampler",
        **{"model": _model_output(prompt), "positive": [POSITIVE, 0], "negative": [NEGATIVE, 0]},
        **{"latent_image": [LATENT, 0], "seed": seed, "steps": steps, "cfg": chosen.cfg, "denoise": 1.0},
        **{"sampler_name": "euler", "scheduler": "simple"},
    )
    if chosen.latent_has_conditioning:
        prompt[LATENT]["inputs"] |= {"positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "vae": [VAE, 0]}
        names = ("positive", "negative", "latent_image")
        prompt[SAMPLER]["inputs"] |= {name: [LATENT, output] for output, name in enumerate(names)}
    prompt[VAE] = node("VAELoader", vae_name=tiny_models.file_name(chosen.vae))
    prompt[DECODE] = node("VAEDecode", samples=[SAMPLER, 0], vae=[VAE, 0])
    prompt[SAVE_IMAGE] = node("SaveImage", images=[DECODE, 0], filename_prefix=f"{family}-{loader}")
    prompt[SAVE_LATENT] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix=f"latents/{family}-{loader}")
    return _with_sound(prompt, chosen) if chosen.audio_vae else prompt


SOUND_VAE, SOUND, BOTH, PARTED, SAVE_SOUND = "16", "17", "18", "19", "20"


def _with_sound(prompt: dict, family: Family) -> dict:
    """The prompt with a latent for sound beside the one for pictures, and both saved."""
    sound = {"frames_number": family.frames, "frame_rate": 25, "batch_size": 1, "audio_vae": [SOUND_VAE, 0]}
    added = {
        SOUND_VAE: node("VAELoader", vae_name=tiny_models.file_name(family.audio_vae)),
        SOUND: node("LTXVEmptyLatentAudio", **sound),
        BOTH: node("LTXVConcatAVLatent", video_latent=[LATENT, 0], audio_latent=[SOUND, 0]),
        PARTED: node("LTXVSeparateAVLatent", av_latent=[SAMPLER, 0]),
        SAVE_SOUND: node("SaveLatent", samples=[PARTED, 1], filename_prefix="latents/sound"),
    }
    sampler = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"latent_image": [BOTH, 0]}))
    parted = {
        name: node(prompt[name]["class_type"], **(prompt[name]["inputs"] | {"samples": [PARTED, 0]}))
        for name in (DECODE, SAVE_LATENT)
    }
    return {**prompt, **added, **parted, SAMPLER: sampler}


def _model_nodes(family: Family, loader: str, settings: dict, lora: float | None) -> dict:
    if loader not in LOADERS:
        raise ValueError(f"loader must be one of {LOADERS}, not {loader!r}")
    name = tiny_models.file_name(family.model)
    if loader == "layerwise":
        nodes = {MODEL: node(LOADER_NODE, model_name=name, weight_dtype=family.weight_dtype, **settings)}
    else:
        nodes = {MODEL: node("UNETLoader", unet_name=name, weight_dtype=family.weight_dtype)}
    if lora is not None:
        file = tiny_models.file_name(family.lora)
        nodes[LORA] = node("LoraLoaderModelOnly", model=[MODEL, 0], lora_name=file, strength_model=lora)
    if loader == "apply":
        nodes[APPLY] = node(APPLY_NODE, model=_model_output(nodes), **settings)
    return nodes


def _model_output(nodes: dict) -> list:
    """The last node of the model chain."""
    return [max((role for role in (MODEL, LORA, APPLY) if role in nodes), key=int), 0]


def _conditioning_nodes(family: Family, text: str) -> dict:
    if not family.clip:
        widths = {"width": family.text_width, "pooled": family.pooled_width, "tokens": 16}
        if family.llama_layers:
            widths["llama_layers"] = family.llama_layers
        return {
            POSITIVE: node("TinyRandomConditioning", **widths, seed=11),
            NEGATIVE: node("TinyRandomConditioning", **widths, seed=12),
        }
    files = [tiny_models.file_name(name) for name in (family.clip, family.second_clip) if name]
    names = dict(zip(("clip_name1", "clip_name2"), files)) if family.second_clip else {"clip_name": files[0]}
    return {
        CLIP: node("DualCLIPLoader" if family.second_clip else "CLIPLoader", **names, type=family.clip_type),
        POSITIVE: node("CLIPTextEncode", clip=[CLIP, 0], text=text),
        NEGATIVE: node("CLIPTextEncode", clip=[CLIP, 0], text=""),
    }


CONTROL_NET, CONTROL_IMAGE, CONTROL = "13", "14", "15"


def with_controlnet(prompt: dict, control_net: str) -> dict:
    """The prompt with a ControlNet of tiny_models over a flat picture, between conditioning and sampler."""
    tiny_models.ensure(control_net)
    size = prompt[LATENT]["inputs"]["width"]
    added = {
        CONTROL_NET: node("ControlNetLoader", control_net_name=tiny_models.file_name(control_net)),
        CONTROL_IMAGE: node("EmptyImage", width=size, height=size, batch_size=1, color=0x4080C0),
        CONTROL: node(
            "ControlNetApplyAdvanced",
            **{"positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "control_net": [CONTROL_NET, 0]},
            **{"image": [CONTROL_IMAGE, 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
        ),
    }
    sampler = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"positive": [CONTROL, 0], "negative": [CONTROL, 1]}))
    return {**prompt, **added, SAMPLER: sampler}


OUR_LOADERS = {
    "UNETLoader": (LOADER_NODE, {"unet_name": "model_name", "weight_dtype": "weight_dtype"}),
    "CLIPLoader": ("LayerwiseOffloadCLIPLoader", {"clip_name": "clip_name1", "type": "type"}),
    "DualCLIPLoader": (
        "LayerwiseOffloadCLIPLoader",
        {"clip_name1": "clip_name1", "clip_name2": "clip_name2", "type": "type"},
    ),
    "VAELoader": ("LayerwiseOffloadVAELoader", {"vae_name": "vae_name"}),
    "CLIPVisionLoader": ("LayerwiseOffloadCLIPVisionLoader", {"clip_name": "clip_name"}),
    "ControlNetLoader": ("LayerwiseOffloadControlNetLoader", {"control_net_name": "control_net_name"}),
    "CheckpointLoaderSimple": ("LayerwiseOffloadCheckpointLoader", {"ckpt_name": "ckpt_name"}),
}
OPTIONS = "90"


def behind(prompt: dict, node_id: str, class_type: str, slot: str, output: int = 0, **inputs) -> dict:
    """The prompt with one more node behind output `output` of node `node_id`: it takes it in as `slot`, and its first
    output goes wherever the other went."""
    added = f"{node_id}{len(prompt)}"
    changed = {}
    for other, entry in prompt.items():
        wires = {name: [added, 0] if value == [node_id, output] else value for name, value in entry["inputs"].items()}
        changed[other] = node(entry["class_type"], **wires)
    changed[added] = node(class_type, **{slot: [node_id, output], **inputs})
    return changed


def applied(prompt: dict, loader_id: str, slot: str, output: int, **widgets) -> dict:
    """The prompt with our Apply node, "30", behind a loader: what goes in as `slot` comes out at `output`."""
    changed = {}
    for node_id, entry in prompt.items():
        wires = {
            name: ["30", output] if isinstance(value, list) and value[0] == loader_id else value
            for name, value in entry["inputs"].items()
        }
        changed[node_id] = node(entry["class_type"], **wires)
    changed["30"] = node(APPLY_NODE, **{"placement": "auto", slot: [loader_id, 0], **widgets})
    return changed


def looking() -> dict:
    """A prompt that encodes a picture, and saves the features."""
    tiny_models.ensure("clip_vision_tiny")
    return {
        "1": node("CLIPVisionLoader", clip_name=tiny_models.file_name("clip_vision_tiny")),
        "2": node("EmptyImage", width=224, height=224, batch_size=1, color=0x4080C0),
        "3": node("CLIPVisionEncode", clip_vision=["1", 0], image=["2", 0], crop="center"),
        "20": node("ProbeTensors", value=["3", 0]),
        "21": node("SaveLatent", samples=["20", 0], filename_prefix="latents/vision"),
    }


def from_checkpoint(prompt: dict, checkpoint: str) -> dict:
    """The prompt with the app's checkpoint loader in place of its loaders of model, encoder and VAE."""
    tiny_models.ensure(checkpoint)
    loader = node("CheckpointLoaderSimple", ckpt_name=tiny_models.file_name(checkpoint))
    return _from_one_node(prompt, loader)


def _from_one_node(prompt: dict, loader: dict) -> dict:
    """The prompt with one node at MODEL that puts out model, encoder and VAE, in this order."""
    outputs = {MODEL: 0, CLIP: 1, VAE: 2}
    changed = {MODEL: loader}
    for node_id, entry in prompt.items():
        if node_id not in outputs:
            wires = {
                name: [MODEL, outputs[value[0]]] if isinstance(value, list) and value[0] in outputs else value
                for name, value in entry["inputs"].items()
            }
            changed[node_id] = node(entry["class_type"], **wires)
    return changed


def with_our_loaders(prompt: dict, settings: dict[str, dict], options: dict | None = None) -> dict:
    """The prompt with our loader in place of the app's at each node id in `settings`, whose values are our widgets'.

    `options`: the widgets of an options node that is connected to all of them.
    """
    changed = {node_id: {**entry, "inputs": dict(entry["inputs"])} for node_id, entry in prompt.items()}
    for node_id, widgets in settings.items():
        entry = prompt[node_id]
        class_type, names = OUR_LOADERS[entry["class_type"]]
        inputs = {ours: entry["inputs"][theirs] for theirs, ours in names.items()}
        if class_type == "LayerwiseOffloadVAELoader":
            inputs["precision"] = "auto"
        changed[node_id] = node(class_type, **{"placement": "auto", **inputs, **widgets})
    if options is not None:
        changed[OPTIONS] = node("LayerwiseOffloadOptions", **options)
        for node_id in settings:
            changed[node_id]["inputs"]["options"] = [OPTIONS, 0]
    return changed


def all_in_one(prompt: dict, **widgets) -> dict:
    """The prompt with the Layerwise Offload Loader in place of the loaders of model, encoder and VAE."""
    inputs = {
        "model_name": prompt[MODEL]["inputs"]["unet_name"],
        "weight_dtype": prompt[MODEL]["inputs"]["weight_dtype"],
        "clip_name1": prompt[CLIP]["inputs"]["clip_name"],
        "clip_type": prompt[CLIP]["inputs"]["type"],
        "vae_name": prompt[VAE]["inputs"]["vae_name"],
        **widgets,
    }
    return _from_one_node(prompt, node("LayerwiseOffloadLoader", **inputs))
