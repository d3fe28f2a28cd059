"""The app's command line switches are obeyed by our loaders as by the app's: a table of all of them.

Each row of `SERVERS` starts a server with some of the switches that change how weights are kept or computed. What
comes out, and every weight's type and strides while it is loaded, equal the app's own loaders'.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.app.conftest import PROBE_PACK
from tests.support import pixels
from tests.support.app_server import AppServer
from tests.support.devkit import apps
from tests.support.workflows import CLIP, DECODE, MODEL, VAE, build, node, with_our_loaders

pytestmark = pytest.mark.app

CHANGE_TYPES = {
    # switch: what the app's loader does with it; ours does the same unless the entry says otherwise
    "--force-fp32": "computes and keeps what has no type of its own in fp32",
    "--force-fp16": "computes and keeps what has no type of its own in fp16",
    "--fp32-unet": "the diffusion model in fp32",
    "--fp64-unet": "the diffusion model in fp64",
    "--bf16-unet": "the diffusion model in bf16",
    "--fp16-unet": "the diffusion model in fp16",
    "--fp8_e4m3fn-unet": "keeps the diffusion model in fp8, computes in a wider type",
    "--fp8_e5m2-unet": "keeps the diffusion model in fp8, computes in a wider type",
    "--fp8_e8m0fnu-unet": "keeps the diffusion model in powers of two, computes in a wider type",
    "--fp16-vae": "the VAE in fp16",
    "--fp32-vae": "the VAE in fp32",
    "--bf16-vae": "the VAE in bf16",
    "--fp8_e4m3fn-text-enc": "keeps text encoders in fp8",
    "--fp8_e5m2-text-enc": "keeps text encoders in fp8",
    "--fp16-text-enc": "text encoders in fp16",
    "--fp32-text-enc": "text encoders in fp32",
    "--bf16-text-enc": "text encoders in bf16",
    "--fp16-intermediates": "what goes from node to node in fp16",
    "--force-channels-last": "builds the diffusion model in channels_last and copies the file's weights into it",
    "--supports-fp8-compute": "takes fp8 matrix products for supported",
    "--fast": "faster sums, products and kernels where the device has them",
    "--deterministic": "torch's slower algorithms that always give the same",
    "--force-upcast-attention": "attention in fp32",
    "--dont-upcast-attention": "attention never in fp32 for its own sake",
}
CHANGE_PLACES = {
    "--cpu": "everything on the CPU; ours streams from the file if asked for a budget",
    "--cpu-vae": "the VAE on the CPU",
    "--gpu-only": "weights that are not used stay on the device; ours keeps their host masters besides",
    "--highvram": "models stay on the device after use",
    "--lowvram": "text encoders on the CPU; ours streams one from its file there if asked for a budget",
    "--novram": "the same, and other weights come to the device one by one",
    "--reserve-vram": "leaves so much of the device free; ours plans with what is left",
    "--disable-smart-memory": "unloads models after use",
    "--disable-pinned-memory": "page-locks nothing; neither does ours",
    "--disable-mmap": "reads safetensors files into memory",
    "--mmap-torch-files": "maps .ckpt and .pt files; their weights are copied, by ours too",
    "--force-non-blocking": "copies without waiting",
    "--async-offload": "copies on streams of its own; ours has its own copy lane",
    "--disable-async-offload": "copies on the compute stream; ours has its own copy lane",
    "--disable-dynamic-vram": "plans loads by estimates",
}
ELSEWHERE = {
    "--enable-dynamic-vram": "tests/app/test_dynamic_vram.py",
    "--vram-headroom": "Dynamic VRAM's, which ours takes no part in",
    "--disable-nvml-pressure": "Dynamic VRAM's",
    "--fast-disk": "tests/app/test_tomorrow.py",
    "--directml": "no such device at hand",
    "--oneapi-device-selector": "no such device at hand",
    "--cuda-device": "which devices there are",
    "--default-device": "tests/app/test_two_devices.py",
    "--cuda-malloc": "an allocator of CUDA's",
    "--disable-cuda-malloc": "an allocator of CUDA's",
    "--enable-triton-backend": "kernels that need a card",
    "--disable-triton-backend": "kernels that need a card",
    **dict.fromkeys(
        (
            *("--use-split-cross-attention", "--use-quad-cross-attention", "--use-pytorch-cross-attention"),
            *("--use-sage-attention", "--use-flash-attention", "--disable-xformers"),
        ),
        "how activations are computed: no weight is touched",
    ),
}
"""Switches that have to do with weights or devices and are not in a row, and why."""

NOT_ABOUT_MODELS = re.compile(
    r"--(listen|port|tls-|enable-cors|max-upload|base-dir|extra-model|\w+-directory|auto-launch|disable-auto-launch|"
    r"preview-|cache-|high-ram|enable-manager|disable-manager|default-hashing|debug-hang|dont-print|quick-test|"
    r"windows-|disable-metadata|disable-all-custom|whitelist|disable-api|enable-compress|user-|multi-user|verbose|"
    r"log-|front-end|comfy-api|database-url|enable-asset|feature-flag|list-feature|extra-|models-directory)"
)

SERVERS = {
    "channels_last": ("cpu", "sd15", "--force-channels-last"),
    "fp8 e4m3": ("sim", "flux", "--fp8_e4m3fn-unet --fp8_e4m3fn-text-enc --bf16-vae --gpu-only --disable-smart-memory"),
    "fp8 e5m2": (
        *("sim", "flux"),
        "--fp8_e5m2-unet --fp8_e5m2-text-enc --fp16-vae --lowvram --disable-pinned-memory --disable-mmap",
    ),
    "fp32": (
        *("sim", "flux"),
        "--fp32-unet --fp32-text-enc --fp32-vae --highvram --force-non-blocking --reserve-vram 2 --deterministic",
    ),
    "bf16": (
        *("sim", "flux"),
        "--bf16-unet --bf16-text-enc --cpu-vae --novram --fast --supports-fp8-compute --disable-dynamic-vram",
    ),
}
MORE_SERVERS = {
    "fp16": ("sim", "flux", "--fp16-unet --fp16-text-enc --fp16-intermediates --async-offload 2 --mmap-torch-files"),
    "all fp16": ("sim", "flux", "--force-fp16 --dont-upcast-attention --disable-async-offload"),
    "all fp32": ("sim", "sd15", "--force-fp32 --force-upcast-attention"),
    "fp64": ("sim", "sd15", "--fp64-unet"),
    "powers of two": ("sim", "flux", "--fp8_e8m0fnu-unet"),
    "fp16 in channels_last": ("cpu", "sd15", "--force-channels-last --fp16-unet --fp16-text-enc"),
}
COMPONENTS = {"dit": MODEL, "text_encoder": CLIP, "vae": VAE}


def switches_of(parser: Path) -> set[str]:
    """All switches that the app's parser is given, from its source text."""
    calls = [call for call in ast.walk(ast.parse(parser.read_text())) if isinstance(call, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {word.value for call in named for word in call.args if isinstance(word, ast.Constant)}


def test_every_switch_of_the_app_is_in_the_table():
    known = {*CHANGE_TYPES, *CHANGE_PLACES, *ELSEWHERE}
    there = switches_of(apps.under_test().tree / "comfy" / "cli_args.py")
    unknown = {switch for switch in there - known if not NOT_ABOUT_MODELS.match(switch)}
    assert not unknown, "new switches: do they change how weights are kept or computed?"
    run = {word for _, _, words in (*SERVERS.values(), *MORE_SERVERS.values()) for word in words.split()} | {"--cpu"}
    assert {*CHANGE_TYPES, *CHANGE_PLACES} == {word for word in run if word.startswith("--")}


def seen(server: AppServer, prompt: dict) -> tuple[tuple[str, str], dict[str, dict]]:
    """Digests of pixels and latents, and type and strides of every weight of each component once all has run."""
    for component, loader in COMPONENTS.items():
        prompt[f"{component}_weights"] = node("ProbeWeights", value=[loader, 0], after=[DECODE, 0])
    result = server.run(prompt).check()
    images, latents = server.images(result), server.latents(result)
    pixels.assert_sane(latents)
    weights = {name: json.loads(result.outputs[f"{name}_weights"]["text"][0]) for name in COMPONENTS}
    return (pixels.sha256(images), pixels.sha256(latents)), weights


def smallest_budgets(server: AppServer, family: str) -> dict[str, dict]:
    """Our loaders' widgets by which each component streams all that it can: found by reading the errors."""
    widgets = {loader: {"placement": "layerwise", "budget_gb": 1e-6} for loader in COMPONENTS.values()}
    for _ in COMPONENTS:
        result = server.run(with_our_loaders(build(family), widgets))
        if result.ok:
            break
        component = next(name for name in COMPONENTS if re.search(rf"\b{name}\b", result.message))
        least = re.search(r"at least ([0-9.]+) GB", result.message)
        assert least, result.message
        widgets[COMPONENTS[component]]["budget_gb"] = 1.05 * float(least.group(1))
    return widgets


@pytest.mark.parametrize("name", [*SERVERS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_SERVERS)])
def test_our_loaders_obey_the_switches_as_the_apps_do(app_server_factory, name):
    device, family, words = (SERVERS | MORE_SERVERS)[name]
    server = app_server_factory(device, extra_packs=(PROBE_PACK,), extra_args=tuple(words.split()))
    reference, apps_weights = seen(server, build(family))
    if "channels_last" in name:
        strides = [stride for _, stride in apps_weights["dit"].values() if len(stride) == 4]
        assert strides and all(stride[1] == 1 for stride in strides), "the app's own are as the switch says"
    auto = {loader: {"placement": "auto"} for loader in COMPONENTS.values()}
    server.free()
    for widgets in (auto, smallest_budgets(server, family)):
        server.free()
        outcome, weights = seen(server, with_our_loaders(build(family), widgets))
        assert outcome == reference, widgets
        for component, theirs in apps_weights.items():
            ours = weights[component]
            on_the_cpu = device == "cpu" or (component == "text_encoder" and re.search("--(low|no)vram", words))
            if on_the_cpu and widgets is not auto:  # shown in the file's type, converted when they are read
                ours, theirs = ({key: value[1] for key, value in side.items()} for side in (ours, theirs))
            assert ours == theirs, component
    streamed = {
        component["component"]
        for component in server.report()["components"]
        if any(layer["placement"] == "streamed" for layer in component["plan"]["layers"])
    }
    assert {"dit", "text_encoder"} <= streamed
