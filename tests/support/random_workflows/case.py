"""One random case as plain data: drawn from a seed, printed, made simpler. Knows nothing about servers and prompts."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

PLACEMENTS = ("auto", "auto", "layerwise", "layerwise", "layerwise", "layerwise", "resident", "whole")
MODES = ("auto", "memory", "memory", "speed", "manual")
LORA_FAMILIES = ("flux", "flux_fp8", "flux_fp8_scaled", "flux_int8")
FAMILIES = (
    *("flux", "flux", "flux", "flux_fp8", "flux_fp8_scaled", "flux_int8", "flux_nvfp4", "flux_mxfp8"),
    *("flux2", "wan", "wan", "qwen_image", "sd15_checkpoint", "ltxv"),
)
"""Small ones, several times where there is most to vary; SDXL and the plain SD1.5 UNet take ten times as long."""

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
    merge           ratio of a merge of the model with the model without LoRAs; 0: none
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
    merge: float = 0.0
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
    family = rng.choice([name for name in FAMILIES if _number(SINCE.get(name, "0")) <= _number(version)])
    has_lora = family in LORA_FAMILIES

    def stack() -> tuple[float, ...]:
        return tuple(rng.choice((0.8, 0.8, -0.5)) for _ in range(rng.choice((0, 1, 1, 2))))

    def maybe(share: float, make: Callable):
        return make() if rng.random() < share else None

    case = Case(
        seed,
        version,
        family,
        loader=rng.choice(("layerwise", "layerwise", "apply")) if family != "sd15_checkpoint" else "layerwise",
        dit=rng.choice(PLACEMENTS),
        clip=rng.choice(PLACEMENTS),
        vae=rng.choice(PLACEMENTS),
        mode=rng.choice(MODES),
        budget_share=rng.choice((0.0, 0.05, 0.2, 0.3, 0.5, 0.8)),
        loras=stack() if has_lora else (),
        then_loras=maybe(0.4, stack) if has_lora else None,
        twin_loras=maybe(0.3, stack) if has_lora else None,
        merge=(maybe(0.2, lambda: 0.3) or 0.0) if family in ("flux", "wan") else 0.0,
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
    if case.dit in ("resident", "whole"):
        case = replace(case, budget_share=0.0)  # said together they contradict each other, which other tests look at
    return case


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


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
