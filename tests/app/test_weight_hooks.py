"""Scheduled LoRAs (weight hooks) on streamed models and encoders: the picture of the loaded model, bit for bit."""

import pytest

from tests.app.test_bit_identity import dit_report, outcome
from tests.app.test_components import encoding, saved
from tests.app.test_encoder_lora import lora  # noqa: F401 - a fixture
from tests.support import tiny_models
from tests.support.workflows import CLIP, NEGATIVE, POSITIVE, SAMPLER, build, node, with_our_loaders

pytestmark = pytest.mark.app

HOOK, HOOKED, KEYFRAME = "50", "51", "52"
BUDGET_GB = 0.03


def hooked(prompt: dict, strength: float, scheduled: bool = False, both: bool = False) -> dict:
    """The positive conditioning under a LoRA of its own; the negative one under another strength, or none."""
    prompt = dict(prompt)
    prompt[SAMPLER]["inputs"]["cfg"] = 3.0
    name = tiny_models.file_name("lora_flux_tiny")
    prompt[HOOK] = node("CreateHookLoraModelOnly", lora_name=name, strength_model=strength)
    hooks = [HOOK, 0]
    if scheduled:
        prompt[KEYFRAME] = node("CreateHookKeyframe", strength_mult=0.5, start_percent=0.0)
        prompt["53"] = node("CreateHookKeyframe", strength_mult=1.5, start_percent=0.5, prev_hook_kf=[KEYFRAME, 0])
        prompt["54"] = node("SetHookKeyframes", hooks=hooks, hook_kf=["53", 0])
        hooks = ["54", 0]
    sides = {"positive": POSITIVE, "negative": NEGATIVE} if both else {"positive": POSITIVE}
    for number, (side, source) in enumerate(sides.items()):
        place = str(55 + number)
        prompt[place] = node(
            "ConditioningSetProperties", cond_NEW=[source, 0], strength=1.0, set_cond_area="default", hooks=hooks
        )
        prompt[SAMPLER]["inputs"][side] = [place, 0]
    return prompt


@pytest.mark.parametrize(
    "settings",
    [{}, {"scheduled": True}, {"both": True}, {"lora": 0.7}],
    ids=["one side", "scheduled", "both sides", "over a LoRA"],
)
def test_a_hooked_model_is_streamed_with_the_apps_picture(sim, settings):
    settings = dict(settings)
    build_with = {"lora": settings.pop("lora", None), "steps": 3}
    plain = outcome(sim, build("flux", **build_with))
    references = [outcome(sim, hooked(build("flux", seed=seed, **build_with), 0.9, **settings)) for seed in (1, 2)]
    assert plain not in references
    sim.free()
    ours = {"placement": "layerwise", "budget_gb": BUDGET_GB, **build_with}
    for seed, reference in zip((1, 2), references, strict=True):
        assert outcome(sim, hooked(build("flux", "apply", seed=seed, **ours), 0.9, **settings)) == reference
    assert outcome(sim, build("flux", "apply", **ours)) == plain, "a hook has stayed"
    assert sim.sim_stats()["races"] == 0


def test_what_hooks_that_come_and_go_cost(sim):
    """A LoRA on one side only, so that weights change twice a step: residents are fetched again, once a change."""
    ours = {"placement": "layerwise", "budget_gb": 2 * BUDGET_GB}
    sim.sim_configure(bandwidth=60_000_000)  # so slow that measured times want what is allowed to be resident
    outcome(sim, hooked(build("flux", "layerwise", **ours), 0.9))
    before = dit_report(sim)["summary"]
    outcome(sim, hooked(build("flux", "layerwise", seed=2, steps=4, **ours), 0.9))
    report = dit_report(sim)
    plan, passes = report["plan"], report["summary"]["passes"] - before["passes"]
    copied = report["summary"]["bytes_copied"] - before["bytes_copied"]
    streamed = sum(layer["bytes"] for layer in plan["layers"] if layer["placement"] == "streamed")
    assert passes == 8 and plan["resident_bytes"] > 0 and streamed > 0
    # Look-ahead is thrown away at a change: of each pass at most a ring.
    assert copied <= passes * (streamed + plan["ring_bytes"]) + (passes // 2 + 1) * plan["resident_bytes"]
    assert report["summary"]["revised_layers"] - before["revised_layers"] <= (passes // 2 + 1) * len(plan["layers"])


def test_a_hooked_encoder_is_streamed_with_the_apps_conditioning(sim, lora):  # noqa: F811
    def with_hook(prompt: dict) -> dict:
        prompt = dict(prompt)
        prompt[HOOK] = node("CreateHookLora", lora_name=lora, strength_model=0.0, strength_clip=0.8)
        prompt[HOOKED] = node(
            "SetClipHooks", clip=[CLIP, 0], apply_to_conds=False, schedule_clip=False, hooks=[HOOK, 0]
        )
        prompt[POSITIVE]["inputs"]["clip"] = [HOOKED, 0]
        return prompt

    plain = saved(sim, encoding())
    reference = saved(sim, with_hook(encoding()))
    assert reference != plain
    sim.free()
    ours = {CLIP: {"placement": "layerwise"}}
    assert saved(sim, with_hook(with_our_loaders(encoding(), ours))) == reference
    assert saved(sim, with_our_loaders(encoding(), ours)) == plain
