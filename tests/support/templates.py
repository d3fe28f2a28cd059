"""What the example workflows say, in the app's API form, with their layout; and the same with small models in place.

The shipped files are made from this by tests/web/test_templates.py, which also checks that they still say it. File
names are those under which the models are published.
"""

import dataclasses

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.workflows import node

FOLDER = paths.ROOT / "example_workflows"
SMALL_INPUTS = {"width": 64, "height": 64, "length": 5, "steps": 2, "end_at_step": 1, "start_at_step": 1}


@dataclasses.dataclass(frozen=True)
class Template:
    """One example. `places`: x, y and perhaps the width of each node; `small`: the model of tiny_models by file."""

    name: str  # the file's, and the title in the app's template browser
    prompt: dict
    places: dict[str, tuple[int, ...]]
    note: str  # Markdown, on the canvas
    note_place: tuple[int, int, int, int]  # x, y, width, height
    small: dict[str, str]

    @property
    def path(self):
        return FOLDER / f"{self.name}.json"

    @property
    def thumbnail(self):
        return FOLDER / f"{self.name}.jpg"

    def small_prompt(self, prompt: dict) -> dict:
        """`prompt` with small models, pictures and step counts."""
        tiny_models.ensure(*self.small.values())
        return {node_id: node(entry["class_type"], **self._small(entry["inputs"])) for node_id, entry in prompt.items()}

    def _small(self, inputs: dict) -> dict:
        files = {file: tiny_models.file_name(name) for file, name in self.small.items()}
        small = {name: files.get(value, value) if isinstance(value, str) else value for name, value in inputs.items()}
        for name, value in SMALL_INPUTS.items():
            # the first expert starts at 0, the second ends past the last step: these stay
            if isinstance(small.get(name), int) and small[name] not in (0, 10000):
                small[name] = value
        return small


def _note(about: str, files: dict[str, dict[str, str]]) -> str:
    """The text of a note: what to look at, and where each file comes from and goes."""
    lines = [about, "", "## Models", ""]
    for folder, names in files.items():
        lines += [f"`models/{folder}`", *(f"- [{name}](https://huggingface.co/{repo})" for name, repo in names.items())]
        lines.append("")
    return "\n".join(lines).rstrip()


_SAMPLING = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "seed": 1}
_FLUX_ENCODERS = "comfyanonymous/flux_text_encoders"
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI"
_WAN = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"

FLUX = Template(
    "Flux, layerwise offload",
    {
        "1": node(
            "LayerwiseOffloadLoader",
            **{"model_name": "flux1-dev.safetensors", "clip_name1": "clip_l.safetensors"},
            **{"clip_name2": "t5xxl_fp16.safetensors", "clip_type": "flux", "vae_name": "ae.safetensors"},
        ),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a lighthouse at dusk, long exposure, film grain"),
        "3": node("FluxGuidance", conditioning=["2", 0], guidance=3.5),
        "4": node("ConditioningZeroOut", conditioning=["2", 0]),
        "5": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
        "6": node(
            "KSampler",
            **{"model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]},
            **_SAMPLING,
            steps=20,
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="layerwise-flux"),
        "9": node("LayerwiseOffloadReport", value=["7", 0]),
    },
    {
        **{"1": (460, 60, 380), "2": (880, 60), "3": (880, 320), "4": (880, 440, 280), "5": (880, 540)},
        **{"6": (1320, 60), "7": (1320, 400, 270), "8": (1640, 60), "9": (1640, 400, 560)},
    },
    _note(
        "# Flux, one loader for everything\n\n"
        "Everything is on `auto`: what fits stays in VRAM, the rest is streamed, the text encoders first. A new prompt "
        "does not throw the diffusion model out of VRAM.\n\n"
        "Set `workflow_budget_gb` to what all weights together may take. The report says what was chosen, why, and "
        "what it cost.",
        {
            "diffusion_models": {"flux1-dev.safetensors": "black-forest-labs/FLUX.1-dev"},
            "text_encoders": {"clip_l.safetensors": _FLUX_ENCODERS, "t5xxl_fp16.safetensors": _FLUX_ENCODERS},
            "vae": {"ae.safetensors": "black-forest-labs/FLUX.1-dev"},
        },
    ),
    (40, 60, 380, 400),
    {
        **{"flux1-dev.safetensors": "flux_tiny_ctx64", "ae.safetensors": "taef1"},
        **{"clip_l.safetensors": "clip_l_tiny", "t5xxl_fp16.safetensors": "t5xxl_tiny"},
    },
)

QWEN_IMAGE = Template(
    "Qwen-Image, layerwise offload",
    {
        "1": node(
            "LayerwiseOffloadDiffusionModelLoader",
            **{"model_name": "qwen_image_fp8_e4m3fn.safetensors", "weight_dtype": "default", "placement": "auto"},
            options=["4", 0],
        ),
        "2": node(
            "LayerwiseOffloadCLIPLoader",
            **{"clip_name1": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image", "placement": "auto"},
            options=["4", 0],
        ),
        "3": node(
            "LayerwiseOffloadVAELoader",
            **{"vae_name": "qwen_image_vae.safetensors", "precision": "auto", "placement": "auto", "options": ["4", 0]},
        ),
        "4": node("LayerwiseOffloadOptions", mode="auto", text_encoder_placement="layerwise"),
        "5": node("ModelSamplingAuraFlow", model=["1", 0], shift=3.1),
        "6": node("CLIPTextEncode", clip=["2", 0], text='a shop window at night, a neon sign that reads "OPEN LATE"'),
        "7": node("CLIPTextEncode", clip=["2", 0], text="blurry, low quality"),
        "8": node("EmptySD3LatentImage", width=1328, height=1328, batch_size=1),
        "9": node(
            "KSampler",
            **{"model": ["5", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0]},
            **{**_SAMPLING, "cfg": 2.5},
            steps=20,
        ),
        "10": node("VAEDecode", samples=["9", 0], vae=["3", 0]),
        "11": node("SaveImage", images=["10", 0], filename_prefix="layerwise-qwen-image"),
        "12": node("LayerwiseOffloadReport", value=["10", 0]),
    },
    {
        **{"4": (460, 60, 340), "1": (840, 60, 400), "2": (840, 310, 400), "3": (840, 640, 400), "5": (1280, 60)},
        **{"6": (1280, 180), "7": (1280, 420), "8": (1280, 660), "9": (1720, 60), "10": (1720, 400, 270)},
        **{"11": (2040, 60), "12": (2040, 400, 560)},
    },
    _note(
        "# Qwen-Image, large text encoder\n\n"
        "The text encoder has 7 billion parameters and is used twice a prompt. One *Layerwise Offload Options* node "
        "says `layerwise` for it: it asks ComfyUI for a small ring only, so the diffusion model stays where it is "
        "while you try prompts.",
        {
            "diffusion_models": {"qwen_image_fp8_e4m3fn.safetensors": _QWEN},
            "text_encoders": {"qwen_2.5_vl_7b_fp8_scaled.safetensors": _QWEN},
            "vae": {"qwen_image_vae.safetensors": _QWEN},
        },
    ),
    (40, 60, 380, 400),
    {
        "qwen_image_fp8_e4m3fn.safetensors": "qwen_image_tiny",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors": "qwen25vl_tiny",
        "qwen_image_vae.safetensors": "vae_wan21",
    },
)


def _expert(noise: str) -> dict:
    file = f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors"
    return node(
        "LayerwiseOffloadDiffusionModelLoader", model_name=file, weight_dtype="default", placement="auto", budget_gb=8.0
    )


def _half(model: str, latent: str, first: bool) -> dict:
    """The sampler of one expert."""
    return node(
        "KSamplerAdvanced",
        **{"model": [model, 0], "positive": ["7", 0], "negative": ["8", 0], "latent_image": [latent, 0]},
        **{"steps": 20, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "noise_seed": 1 if first else 0},
        **{"start_at_step": 0 if first else 10, "end_at_step": 10 if first else 10000},
        add_noise="enable" if first else "disable",
        return_with_leftover_noise="enable" if first else "disable",
    )


WAN = Template(
    "Wan 2.2 two experts, layerwise offload",
    {
        "1": _expert("high"),
        "2": _expert("low"),
        "3": node(
            "LayerwiseOffloadCLIPLoader",
            **{"clip_name1": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan", "placement": "auto"},
        ),
        "4": node("LayerwiseOffloadVAELoader", vae_name="wan_2.1_vae.safetensors", precision="auto", placement="auto"),
        "5": node("ModelSamplingSD3", model=["1", 0], shift=8.0),
        "6": node("ModelSamplingSD3", model=["2", 0], shift=8.0),
        "7": node("CLIPTextEncode", clip=["3", 0], text="waves roll onto a pebble beach below a lighthouse, slow pan"),
        "8": node("CLIPTextEncode", clip=["3", 0], text="static, overexposed, blurry, low quality"),
        "9": node("EmptyHunyuanLatentVideo", width=832, height=480, length=81, batch_size=1),
        "10": _half("5", "9", first=True),
        "11": _half("6", "10", first=False),
        "12": node("VAEDecode", samples=["11", 0], vae=["4", 0]),
        "13": node("CreateVideo", images=["12", 0], fps=16.0),
        "14": node("SaveVideo", video=["13", 0], filename_prefix="video/layerwise-wan", format="auto", codec="auto"),
        "15": node("LayerwiseOffloadReport", value=["12", 0]),
    },
    {
        **{"1": (460, 60, 420), "2": (460, 310, 420), "3": (460, 560, 420), "4": (460, 890, 420), "5": (920, 60)},
        **{"6": (920, 310), "7": (920, 560), "8": (920, 800), "9": (1360, 460), "10": (1360, 60), "11": (1720, 60)},
        **{"12": (1720, 460, 270), "13": (1720, 570), "14": (2080, 60), "15": (2080, 460, 560)},
    },
    _note(
        "# Wan 2.2, two experts\n\n"
        "Each expert has a loader, and 8 GB of VRAM for its weights: the first gives its layers back, one by one, as "
        "the second needs the room. Where a step computes longer than its copies take, as with long videos, streaming "
        "costs next to nothing; the report says how it was.",
        {
            "diffusion_models": {
                f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors": _WAN for noise in ("high", "low")
            },
            "text_encoders": {"umt5_xxl_fp8_e4m3fn_scaled.safetensors": _WAN},
            "vae": {"wan_2.1_vae.safetensors": _WAN},
        },
    ),
    (40, 60, 380, 400),
    {
        "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": "wan_tiny",
        "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": "wan_tiny_low",
        # of the small encoders the one that is as wide as these two want it
        **{"umt5_xxl_fp8_e4m3fn_scaled.safetensors": "clip_l_tiny", "wan_2.1_vae.safetensors": "vae_wan21"},
    },
)

TEMPLATES = (FLUX, QWEN_IMAGE, WAN)
NAMES = [template.name.split(",")[0] for template in TEMPLATES]


def with_the_apps_loaders(prompt: dict) -> dict:
    """The prompt as it would be without us: no report, no options, ComfyUI's loaders."""
    changed, wires = {}, {}
    for node_id, entry in prompt.items():
        kind, inputs = entry["class_type"].removeprefix("LayerwiseOffload"), entry["inputs"]
        if kind == "Loader":
            changed |= {f"{node_id}.{index}": loader for index, loader in enumerate(_pipeline(inputs))}
            wires |= {(node_id, index): [f"{node_id}.{index}", 0] for index in range(3)}
        elif kind == entry["class_type"]:
            changed[node_id] = entry
        elif kind not in ("Options", "Report"):
            changed[node_id] = _LOADERS[kind](inputs)
    for node_id, entry in changed.items():
        inputs = {
            name: wires.get(tuple(value), value) if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }
        changed[node_id] = node(entry["class_type"], **inputs)
    return changed


_LOADERS = {
    "DiffusionModelLoader": lambda i: node("UNETLoader", unet_name=i["model_name"], weight_dtype=i["weight_dtype"]),
    "CLIPLoader": lambda i: node("CLIPLoader", clip_name=i["clip_name1"], type=i["type"]),
    "VAELoader": lambda i: node("VAELoader", vae_name=i["vae_name"]),
}


def _pipeline(inputs: dict) -> tuple[dict, dict, dict]:
    names = {name: inputs[name] for name in ("clip_name1", "clip_name2")}
    return (
        node("UNETLoader", unet_name=inputs["model_name"], weight_dtype="default"),
        node("DualCLIPLoader", **names, type=inputs["clip_type"]),
        node("VAELoader", vae_name=inputs["vae_name"]),
    )
