"""What other nodes do to a model, streamed and not: the same picture to the bit, or a refusal that says why."""

import shutil

import pytest

from tests.app.conftest import EXTENSION_PACK
from tests.app.test_bit_identity import outcome, smallest_budget_gb
from tests.support.workflows import (
    LATENT,
    NEGATIVE,
    POSITIVE,
    SAMPLER,
    VAE,
    behind,
    build,
    node,
    with_controlnet,
    with_our_loaders,
)

pytestmark = pytest.mark.app

PATCH, PATCH_2 = "60", "61"
SEVERAL_STEPS = (
    "wrapper around the forward", "blocks left out", "blocks twice in the first step", "step cache", "lazy cache",
)  # fmt: skip
"""What does something different from step to step."""


def patched(prompt: dict, class_type: str, **widgets) -> dict:
    """The prompt with a node between the last of the model chain and the sampler."""
    source = prompt[SAMPLER]["inputs"]["model"]
    where = PATCH_2 if PATCH in prompt else PATCH
    sampler = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"model": [where, 0]}))
    return {**prompt, where: node(class_type, model=source, **widgets), SAMPLER: sampler}


def probe(name: str):
    return lambda prompt: patched(prompt, "ProbeExtension", name=name)


def by_node(class_type: str, **widgets):
    return lambda prompt: patched(prompt, class_type, **widgets)


def regional(prompt: dict) -> dict:
    """Two conditionings, each for half of the picture."""
    halves = {
        str(70 + side): node(
            "ConditioningSetAreaPercentage",
            **{"conditioning": [(POSITIVE, NEGATIVE)[side], 0], "width": 0.5, "height": 1.0, "x": 0.5 * side, "y": 0.0},
            strength=1.0,
        )
        for side in (0, 1)
    }
    both = node("ConditioningCombine", conditioning_1=["70", 0], conditioning_2=["71", 0])
    sampler = node("KSampler", **(prompt[SAMPLER]["inputs"] | {"positive": ["72", 0]}))
    return {**prompt, **halves, "72": both, SAMPLER: sampler}


def windows(prompt: dict) -> dict:
    """More frames than a window holds."""
    prompt[LATENT]["inputs"]["length"] = 33
    return patched(
        prompt,
        "WanContextWindowsManual",
        **{"context_length": 17, "context_overlap": 5, "context_schedule": "standard_static", "context_stride": 1},
        **{"closed_loop": False, "fuse_method": "pyramid", "freenoise": True},
        **{"retain_first_frame": False, "split_conds_to_windows": False},
    )


CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
SLG = {"double_layers": "1, 2", "single_layers": "0, 3", "scale": 3.0, "rescaling_scale": 0.0} | {
    "start_percent": 0.0,
    "end_percent": 1.0,
}
CASES = {
    "injection": ("flux", probe("injection")),
    "object patch": ("flux", probe("object_patch")),
    "wrapper around the forward": ("flux", probe("wrapper")),
    "blocks left out": ("flux", probe("skipped_blocks")),
    "blocks twice in the first step": ("flux", probe("twice_in_the_first_step")),
    "weight wrapper": ("flux", probe("weight_wrapper")),
    "compiled blocks": ("flux", probe("compiled")),
    "compiled whole": ("flux", probe("compiled_whole")),
    "compiled as a patch": ("flux", probe("compiled_patch")),
    "compiled blocks as patches": ("flux", probe("compiled_patches")),
    "model sampling": (
        "flux",
        by_node("ModelSamplingFlux", max_shift=1.3, base_shift=0.6, width=64, height=64),
    ),
    "step cache": (
        "flux",
        by_node("EasyCache", **CACHE),
    ),
    "lazy cache": (
        "sd15",
        by_node("LazyCache", **CACHE),
    ),
    "layer skipping guidance": (
        "flux",
        by_node("SkipLayerGuidanceDiT", **SLG),
    ),
    "perturbed attention": ("sd15", by_node("PerturbedAttentionGuidance", scale=3.0)),
    "token merging": ("sd15", by_node("TomePatchModel", ratio=0.3)),
    "regional prompting": ("sd15", regional),
    "context windows": ("wan", windows),
    "controlnet": ("sd15", lambda prompt: with_controlnet(prompt, "controlnet_sd15")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_other_nodes_do_works_on_a_streamed_model(sim, name):
    family, change = CASES[name]
    steps = 4 if name in SEVERAL_STEPS else 2
    plain = outcome(sim, build(family, steps=steps))
    reference = outcome(sim, change(build(family, steps=steps)))
    assert reference != plain or name.startswith("compiled"), "the node did nothing: nothing is tested"
    budget = 1.3 * smallest_budget_gb(sim, family)
    for loader in ("layerwise", "apply"):
        sim.free()
        prompt = change(build(family, loader, steps=steps, placement="layerwise", budget_gb=budget))
        assert outcome(sim, prompt) == reference, loader
        report = next(one for one in sim.report()["components"] if one["component"] == "dit")
        assert report["summary"]["bytes_copied"] > 0
        assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    # And without the node again: it has left nothing behind on the module.
    assert outcome(sim, build(family, loader, steps=steps, placement="layerwise", budget_gb=budget)) == plain
    assert sim.sim_stats()["races"] == 0


def test_a_first_step_that_calls_each_block_twice_is_known_from_the_second_run_on(sim):
    """Several runs of one loaded model. The second visit of the first block comes without notice; nothing else does."""
    steps, runs = 4, 4
    budget = 1.3 * smallest_budget_gb(sim, "flux")
    sim.free()
    counted = []
    for seed in range(runs):
        prompt = build("flux", "layerwise", placement="layerwise", budget_gb=budget, steps=steps, seed=seed)
        outcome(sim, probe("twice_in_the_first_step")(prompt))
        report = next(one for one in sim.report()["components"] if one["component"] == "dit")
        counted.append(report["summary"])
    layers = len(report["plan"]["layers"])
    for before, after in zip(counted, counted[1:]):
        assert after["passes"] - before["passes"] == steps
        assert after["visits"] - before["visits"] == (steps + 1) * layers
        assert after["demand_loads"] - before["demand_loads"] <= 1
    assert counted[0]["demand_loads"] <= layers // 3, "the first run has a walk or two to learn"
    assert sim.sim_stats()["races"] == 0


BY_INDUCTOR = {
    "blocks": probe("compiled_by_inductor"),
    "whole": by_node("TorchCompileModel", backend="inductor"),
}
COMPILE_TIMEOUT_S = 900
"""On two busy cores the whole model took three minutes to compile."""


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="inductor needs a C++ compiler"
)
@pytest.mark.long
@pytest.mark.parametrize("what", BY_INDUCTOR)
def test_what_inductor_compiles_is_streamed_with_the_bits_of_the_apps_compiled_model(
    app_server_factory, tmp_path, what
):
    """In the app on the CPU: for the simulated device no code generator is registered with inductor, and its lowering
    ends in an assertion there."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # nothing that an earlier run has compiled
    cpu = app_server_factory("cpu", env=cache, extra_packs=(EXTENSION_PACK,))
    plain = outcome(cpu, build("flux"))
    change = BY_INDUCTOR[what]
    reference = outcome(cpu, change(build("flux")), COMPILE_TIMEOUT_S)
    assert reference != plain, "the compiler's kernels round otherwise: these are the app's own"
    ours = {"placement": "layerwise", "budget_gb": 0.05}
    cpu.free()
    for seed in (1, 2, 1):  # the second and the third find what has been compiled
        compiled = outcome(cpu, change(build("flux", "layerwise", seed=seed, **ours)), COMPILE_TIMEOUT_S)
        assert (compiled == reference) == (seed == 1)
    report = next(one for one in cpu.report()["components"] if one["component"] == "dit")
    summary, layers = report["summary"], report["plan"]["layers"]
    assert summary["passes"] == 6 and summary["visits"] == 6 * len(layers)
    assert any(layer["placement"] == "streamed" for layer in layers) and summary["bytes_copied"] > 0
    assert report["warnings"] == [] and summary["peak_device_bytes"] <= 50_000_000
    assert outcome(cpu, build("flux", "layerwise", **ours)) == plain, "without the node again nothing is left of it"


def decoded(loader: str, compiled: bool | None, seed: int = 1) -> dict:
    """A prompt that decodes with the app's VAE loader or ours, its parts compiled, plain again, or left alone."""
    prompt = build("flux", vae="vae_flux", seed=seed)
    if loader == "layerwise":
        prompt = with_our_loaders(prompt, {VAE: {"placement": "layerwise", "budget_gb": 0.03}})
    return prompt if compiled is None else behind(prompt, VAE, "ProbeCompiledVAE", "vae", compiled=compiled)


def vae_layers(server) -> list[str]:
    report = next(one for one in server.report()["components"] if one["component"] == "vae")
    assert report["summary"]["bytes_copied"] > 0
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    return [layer["name"] for layer in report["plan"]["layers"]]


def test_a_vae_whose_parts_are_compiled_has_the_layers_of_the_plain_one(sim):
    """Within the same budget; and the other way round, when the next prompt has them plain again."""
    plain, compiled = outcome(sim, decoded("app", None)), outcome(sim, decoded("app", True))
    sim.free()
    assert outcome(sim, decoded("layerwise", None)) == plain
    layers = vae_layers(sim)
    assert len(layers) > 10
    sim.free()
    for seed, wrapped in ((1, True), (2, False), (3, True)):
        result = outcome(sim, decoded("layerwise", wrapped, seed))
        assert seed != 1 or result == compiled
        assert vae_layers(sim) == layers
    assert sim.sim_stats()["races"] == 0
