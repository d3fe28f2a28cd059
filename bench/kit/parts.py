"""The parts of the kit, in the order in which they are run. A table; nothing else knows a part by its name.

The order is that of value: parts are cut from the end when time runs out, but the one that is `kept` is given its time
before anything that comes before it. Words in braces are filled in by the runner: {device}, {size}, {pixels},
{tree}, {pack}, {files}, {steps} and so on, see `runner.words_of`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ASYNC = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
"""The app's default on NVIDIA."""
AIMDO, DIFFUSERS, ACCELERATE = "comfy_aimdo", "diffusers", "accelerate"


@dataclass(frozen=True)
class Part:
    """One process. If it dies, its own rows are lost and no others."""

    name: str
    gives: str
    """What its rows are."""
    words: tuple[str, ...]
    """The command, after the interpreter."""
    at_most_s: float
    least_s: float = 10.0
    """With less time left than this it is not begun."""
    environment: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    """Without one of these it is not begun."""
    free_gb: float = 0.0
    """Of device memory; without as much it is not begun, unless it is rehearsed in small."""
    ballast_gb: float | None = None
    """What is left free by a process that holds all other memory of the card."""
    after: str = ""
    """Not begun unless this part has ended well, if it was to run at all."""
    in_small: bool = True
    """Whether a rehearsal runs it."""
    kept: bool = False


def _app(way: str, model: str = "{model}", ballast_gb: float | None = 12.0, group: str = "app") -> Part:
    """One way of running the app's flow on one model. `group`: what its name begins with."""
    words = ("-m", "bench.kit.app_flow", "--way", way, "--model", model, "--folder", "{files}", "--tree", "{tree}")
    words += ("--device", "{device}", "--pixels", "{app_pixels}", "--steps", "{app_steps}", "--lora")
    modules = (AIMDO,) if way == "dynamic" else ()
    free = 60.0 if ballast_gb is None else ballast_gb + 2
    gives = f"{way}: load, new prompts, the same prompt again, LoRA strengths, steps"
    files = "app-files" if model == "{model}" else f"{model}-files"
    return Part(f"{group}-{way}", gives, words, 100, 40, ASYNC, modules, free, ballast_gb, files, group == "app")


def _files(model: str) -> Part:
    name = "app-files" if model == "{model}" else f"{model}-files"
    words = ("-m", "bench.kit.app_files", "--model", model, "--folder", "{files}", "--tree", "{tree}")
    gives = "files of noise in the shape of full-size models"
    return Part(name, gives, (*words, "--device", "{device}"), 90, 30, in_small=model == "{model}")


def _tests(name: str, gives: str, selected: tuple[str, ...], at_most_s: float) -> Part:
    words = ("-m", "pytest", *selected, "-q", "-rA", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60")
    return Part(name, gives, words, at_most_s, 20, environment={"LAYERWISE_GPU_TESTS": "{device}"})


_CORE = ("-m", "bench.gpu", "--device", "{device}", "--size", "{size}", "--tree", "{tree}", "--pixels", "{pixels}")

PARTS: tuple[Part, ...] = (
    Part("facts", "the machine, the card, what is missing", ("-m", "bench.kit.facts", "--device", "{device}"), 45, 0),
    Part(
        "probes-native",
        "what the engine rests on, on torch's own allocator",
        ("-m", "bench.kit.probes", "--device", "{device}", "--gib", "{gib}"),
        45,
    ),
    Part(
        "probes-async",
        "the same on the app's allocator, cudaMallocAsync",
        ("-m", "bench.kit.probes", "--device", "{device}", "--gib", "{gib}"),
        45,
        environment=ASYNC,
    ),
    _tests("tests", "tests/gpu, one row a test", ("tests/gpu",), 120),
    Part(
        "core",
        "the steady step against its bound: resident, the app's partial load, ours",
        (*_CORE, "--steps", "{steps}", "--rounds", "{rounds}", "--row-seconds", "{row_seconds}"),
        240,
        170,
        kept=True,
    ),
    _files("{model}"),
    _app("full", ballast_gb=None),
    _app("ours"),
    _app("dynamic"),
    _app("legacy"),
    _app("ours-whole"),
    Part(
        "peers",
        "the steady step: resident, ours, diffusers' group offloading with streams, accelerate",
        ("-m", "bench.kit.peers", "--device", "{device}", "--size", "{size}", "--pixels", "{peer_pixels}"),
        160,
        40,
        modules=(DIFFUSERS, ACCELERATE),
    ),
    Part(
        "overhead",
        "host time of a visit: ours, diffusers, accelerate",
        ("-m", "bench.host_overhead", "--device", "{device}", "--repeats", "{repeats}"),
        60,
        20,
        modules=(DIFFUSERS, ACCELERATE),
    ),
    *(_app(way, ballast_gb=8.0, group="app-8gb") for way in ("ours", "dynamic", "legacy")),
    _files("flux-fp8"),
    _app("full", "flux-fp8", None, "flux-fp8"),
    *(_app(way, "flux-fp8", 8.0, "flux-fp8") for way in ("ours", "dynamic", "legacy")),
    _files("qwen-image"),
    _app("full", "qwen-image", None, "qwen-image"),
    *(_app(way, "qwen-image", 16.0, "qwen-image") for way in ("ours", "dynamic", "legacy")),
    Part(
        "flux2-pair",
        "two double and two single blocks of Flux 2 in their real size: layers of 1.96 GB",
        (
            "-m",
            "bench.gpu",
            "--device",
            "{device}",
            "--size",
            "{pair}",
            "--tree",
            "{tree}",
            "--pixels",
            "{peer_pixels}",
        ),
        60,
        30,
    ),
)
