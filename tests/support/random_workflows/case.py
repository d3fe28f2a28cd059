"""One random case as plain data: drawn from a seed, printed, made simpler. Knows nothing about servers and prompts."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

from tests.support.devkit.versions import numbers

PLACEMENTS = ("auto", "auto", "layerwise", "layerwise", "layerwise", "layerwise", "resident", "whole")
MODES = ("auto", "memory", "memory", "speed", "manual")
LORA_FAMILIES = ("flux", "flux_fp8", "flux_fp8_scaled", "flux_int8", "flux_gguf")
FAMILIES = (
    *("flux", "flux", "flux", "flux_fp8", "flux_fp8_scaled", "flux_int8", "flux_nvfp4", "flux_mxfp8"),
    *("flux2", "wan", "wan", "qwen_image", "sd15_checkpoint", "ltxv"),
)
"""Small ones, several times where there is most to vary."""

RARE = (("sdxl", 0.025), ("flux_gguf", 0.1))
"""Families with a share of the seeds of their own: one takes ten times as long, the other always comes to Apply."""

HOOKED_FAMILIES = tuple(name for name in LORA_FAMILIES if name != "flux_gguf")
"""Not GGUF, whose own patcher cannot."""

ENCODER_LORA_FAMILIES = (*LORA_FAMILIES, "flux_nvfp4", "flux_mxfp8")
"""Those with the encoder that the encoder's LoRA is for."""

MERGED_FAMILIES = ("flux", "wan", "flux_fp8", "flux_fp8_scaled")
MERGES = ("ModelMergeSimple", "ModelMergeSimple", "ModelMergeSubtract", "ModelMergeAdd")
SAVED_FAMILIES = ("flux", "flux2", "wan", "qwen_image", "ltxv")
"""Not those of 8 bits, which the app rounds for a minute, nor the large checkpoint: `test_true_weights.py` has them."""

SAYERS = ("node", "node", "options", "graph")

VERSIONS = ("0.30.0",) * 6 + ("0.27.0", "0.24.1", "0.18.2", "0.16.3")
"""By seed modulo ten, so that seeds can be sorted by version before anything is drawn."""

SINCE = {"flux_int8": "0.30.0", "flux_nvfp4": "0.30.0", "flux_mxfp8": "0.30.0", "flux2": "0.24.1"}
"""Families that older apps read differently or not at all, with the oldest version in which they are drawn."""


@dataclass(frozen=True)
class Case:
    """What a workflow has. The defaults are the simplest case: shrinking goes towards them.

    budget_share    of the diffusion model's file size, as the loader's budget; 0 = auto
    loras           strengths of the LoRA, one behind the other on the diffusion model
    then_loras      the same prompt again with these strengths; None: not again
    twin_loras      a second sampler in the same graph over a clone with these; None: no second sampler
    twin_loader     placement of a loader of the second sampler's own over the same file; "": they share one
    merge           ratio of a merge of the model with the model without LoRAs; 0: none
    merge_node      the app's node for that
    merge_other     the second of the two is the second loader's
    sampling        a node between the loader and all else that changes the sampling: a clone with an object patch
    hook            strength of a LoRA that is scheduled (a weight hook), for the positive conditioning only; 0: none
    keyframes       the hook's strength changes between the steps
    clip_lora       strength of a LoRA on the text encoder; 0: none
    save            what is saved beside the picture and read back: "model", "checkpoint", "" = nothing
    said_by         who says placements, budget, LoRA mode: the loaders' widgets, an options node, the graph's options
    lora_mode       what becomes of patched layers on the host
    host_tier       where streamed layers of all components wait on the host, by the options node or the graph
    pin_gb          what each of them may page-lock, by the same; 0 = auto
    workflow_share  of the diffusion model's file size, as the budget for the weights of the workflow; 0 = auto
    workflow_host_gb  system memory that copies of the workflow's layers may take; 0 = auto
    apply_last      Apply stands behind the LoRAs instead of in front of them
    fault, at       what ends the first run at which visit: interrupt, failure, out_of_memory; "" = nothing
    weights_mb      device memory left for weights; 0 = plenty
    """

    seed: int
    version: str = "0.30.0"
    family: str = "flux"
    loader: str = "layerwise"  # or apply
    dit: str = "auto"
    clip: str = "auto"
    vae: str = "auto"
    mode: str = "auto"
    budget_share: float = 0.0
    loras: tuple[float, ...] = ()
    then_loras: tuple[float, ...] | None = None
    twin_loras: tuple[float, ...] | None = None
    twin_loader: str = ""
    merge: float = 0.0
    merge_node: str = "ModelMergeSimple"
    merge_other: bool = False
    sampling: bool = False
    hook: float = 0.0
    keyframes: bool = False
    clip_lora: float = 0.0
    save: str = ""
    said_by: str = "node"
    lora_mode: str = "auto"
    host_tier: str = "auto"
    pin_gb: float = 0.0
    workflow_share: float = 0.0
    workflow_host_gb: float = 0.0
    apply_last: bool = False
    controlnet: bool = False
    tiled: bool = False
    new_text: bool = False
    steps: int = 2
    batch: int = 1
    fault: str = ""
    at: int = 0
    weights_mb: int = 0
    slow_link: bool = False

    def text(self) -> str:
        """Only what is not the simplest."""
        plain = Case(self.seed)
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(plain, f.name)
        ]
        return f"Case(seed={self.seed}{''.join(', ' + one for one in said)})"


def version_of(seed: int) -> str:
    return VERSIONS[seed % len(VERSIONS)]


def draw(seed: int, version: str | None = None) -> Case:
    """The case of a seed; `version` puts it into another version of the app."""
    rng = random.Random(seed)
    version = version or version_of(seed)
    family = rng.choice([name for name in FAMILIES if numbers(SINCE.get(name, "0")) <= numbers(version)])
    rarely = random.Random(f"{seed} rare").random()
    family = next((name for name, share in RARE if rarely < share), family)
    always_apply = family == "flux_gguf"
    has_lora = family in LORA_FAMILIES

    def stack() -> tuple[float, ...]:
        return tuple(rng.choice((0.8, 0.8, -0.5)) for _ in range(rng.choice((0, 1, 1, 2))))

    def maybe(share: float, make: Callable):
        return make() if rng.random() < share else None

    case = Case(
        seed,
        version,
        family,
        loader=rng.choice(("apply",) if always_apply else ("layerwise", "layerwise", "apply"))
        if family != "sd15_checkpoint"
        else "layerwise",
        dit=rng.choice(PLACEMENTS),
        clip=rng.choice(PLACEMENTS),
        vae=rng.choice(PLACEMENTS),
        mode=rng.choice(MODES),
        budget_share=rng.choice((0.0, 0.05, 0.2, 0.3, 0.5, 0.8)),
        loras=stack() if has_lora else (),
        then_loras=maybe(0.4, stack) if has_lora else None,
        twin_loras=maybe(0.3, stack) if has_lora else None,
        merge=(maybe(0.2, lambda: 0.3) or 0.0) if family in MERGED_FAMILIES else 0.0,
        apply_last=rng.random() < 0.5,
        controlnet=family == "flux" and rng.random() < 0.25,
        tiled=family != "ltxv" and rng.random() < 0.15,
        new_text=rng.random() < 0.3,
        steps=rng.choice((2, 2, 2, 2, 3)),
        batch=rng.choice((1, 1, 1, 1, 2)),
        fault=maybe(0.35, lambda: rng.choice(("interrupt", "interrupt", "failure", "out_of_memory"))) or "",
        at=rng.randrange(40),
        weights_mb=rng.choice((0, 0, 0, 150, 60)),
        slow_link=rng.random() < 0.5,
    )
    case = _with_more(case, random.Random(f"{seed} more"))
    case = _with_host(case, random.Random(f"{seed} host"))
    case = _with_workflow(case, random.Random(f"{seed} workflow"))
    if case.dit in ("resident", "whole"):
        case = replace(case, budget_share=0.0)  # said together they contradict each other, which other tests look at
    if case.fault in ("interrupt", "failure"):
        # The app's hook keyframes go on where the run before was stopped: its own next picture differs from its first.
        case = replace(case, keyframes=False)
    if _patched_by_the_app(case):
        case = replace(case, weights_mb=0)
    return case


def _patched_by_the_app(case: Case) -> bool:
    """A patched model is left to the app, which on a small device gives another picture of it than on a large one, with
    its own loaders as well."""
    on_model = case.loras or case.then_loras or case.twin_loras or case.hook or case.merge
    left = case.mode == "manual" or "whole" in (case.dit, case.twin_loader)
    on_encoder = case.clip_lora and (case.mode == "manual" or case.clip == "whole")
    return bool(on_model and left or on_encoder)


def _with_more(case: Case, rng: random.Random) -> Case:
    """What other nodes do to models, and who says the settings: from a source of its own, so that a feature that is
    added here leaves the rest of each seed as it was."""
    family, checkpoint = case.family, case.family == "sd15_checkpoint"

    def maybe(share: float, value, otherwise, there_is: bool = True):
        drawn = rng.random() < share
        return value if drawn and there_is else otherwise

    twin = maybe(0.5 if case.merge else 0.12, rng.choice(PLACEMENTS), "", not checkpoint)
    twin_loras = case.twin_loras if case.twin_loras is not None or not twin else ()
    return replace(
        case,
        twin_loader=twin,
        twin_loras=twin_loras,
        merge_node=rng.choice(MERGES),
        merge_other=maybe(0.7, True, False, bool(twin and case.merge)),
        sampling=maybe(0.2, True, False, family.startswith("flux")),
        hook=maybe(0.2, rng.choice((0.9, -0.6)), 0.0, family in HOOKED_FAMILIES),
        keyframes=maybe(0.4, True, False),
        clip_lora=maybe(0.25, rng.choice((0.7, -0.4)), 0.0, family in ENCODER_LORA_FAMILIES),
        save=maybe(0.2, rng.choice(("model", "checkpoint")), "", family in SAVED_FAMILIES),
        said_by=rng.choice(SAYERS),
        lora_mode=maybe(0.15, rng.choice(("host", "on_arrival")), "auto", family in LORA_FAMILIES),
    )


def _with_host(case: Case, rng: random.Random) -> Case:
    """Where layers wait on the host. Not in the file where the app has read it: that is refused, as other tests say."""
    tiers = ("pinned", "pageable", "mapped") if case.loader == "layerwise" else ("pinned", "pageable")
    tier, drawn = rng.choice(tiers), rng.random()
    pin_gb = rng.choice((0.01, 0.05))
    if drawn < 0.3:
        return replace(case, host_tier=tier)
    return replace(case, pin_gb=pin_gb) if drawn < 0.4 else case


def _with_workflow(case: Case, rng: random.Random) -> Case:
    """Numbers for the whole workflow. Of system memory only where a file has the layers and no more is said of it."""
    share, host_gb = rng.choice((0.3, 0.6, 1.0, 1.6)), rng.choice((0.02, 0.05))
    has_share, has_host = rng.random() < 0.3, rng.random() < 0.2
    free_to_say = case.loader == "layerwise" and case.host_tier == "auto" and not case.pin_gb
    return replace(
        case,
        workflow_share=share if has_share else 0.0,
        workflow_host_gb=host_gb if has_host and free_to_say else 0.0,
    )


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """A simpler case that still fails: features are taken out one by one, until none can go."""
    plain = Case(case.seed)
    names = [field.name for field in fields(case) if field.name not in ("seed", "version")]
    again = True
    while again:
        again = False
        for name in names:
            simple = getattr(plain, name)
            if getattr(case, name) != simple:
                simpler = replace(case, **{name: simple})
                if fails(simpler):
                    case, again = simpler, True
    return case


def seeds_by_version(seeds: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for seed in seeds:
        found.setdefault(version_of(seed), []).append(seed)
    return found
