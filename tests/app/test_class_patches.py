"""Methods of classes that other packs replace and put back: what runs is what the app would run now.

In both orders (without, with, without the patch and the reverse), three runs in one server, nothing freed between them.
"""

import pytest

from tests.app.test_bit_identity import outcome
from tests.support.workflows import CLIP, MODEL, SAMPLER, VAE, build, node, with_our_loaders

pytestmark = pytest.mark.app

SCALE = 0.9

TARGETS = {
    "a block of Flux": ("flux", "comfy.ldm.flux.layers:SingleStreamBlock.forward"),
    "the call of a block of Flux": ("flux", "comfy.ldm.flux.layers:SingleStreamBlock.__call__"),
    "Flux itself": ("flux", "comfy.ldm.flux.model:Flux.forward"),
    "a block of Wan": ("wan", "comfy.ldm.wan.model:WanAttentionBlock.forward"),
    "a block of SD1.5": ("sd15", "comfy.ldm.modules.attention:SpatialTransformer.forward"),
    "SD1.5 itself": ("sd15", "comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel.forward"),
    "a layer of an encoder": ("flux", "comfy.clip_model:CLIPLayer.forward"),
    "an encoder's entry": ("flux", "comfy.sd1_clip:SD1ClipModel.encode_token_weights"),
    "a block of a VAE": ("wan", "comfy.ldm.wan.vae:ResidualBlock.forward"),
    "a VAE's entry": ("wan", "comfy.ldm.wan.vae:WanVAE.decode"),
}
WITHOUT: dict[str, list] = {}
"""What the app makes of a family without a patch, once it has been asked for."""

SETTINGS = {
    "layerwise": {"flux": 0.03, "wan": 0.012, "sd15": 0.12},
    "resident": dict.fromkeys(("flux", "wan", "sd15"), 0.0),
}


def workflow(family: str, run: int, placement: str | None = None) -> dict:
    """With a seed and a text of its own for each run, so that the app computes all of it anew."""
    prompt = build(family, seed=run, text=f"lighthouse {run}", steps=1)
    if placement is None:
        return prompt
    widgets = {MODEL: {"placement": placement, "budget_gb": SETTINGS[placement][family]}}
    return with_our_loaders(
        prompt, widgets | {node: {"placement": placement} for node in (CLIP, VAE) if node in prompt}
    )


def three_runs(server, family: str, target: str, patched: tuple[bool, ...], placement: str | None) -> list:
    server.free()
    outcomes = []
    for run, is_patched in enumerate(patched):
        server.post("/hands/restore")
        if is_patched:
            server.post("/hands/patch", {"target": target, "scale": SCALE})
        outcomes.append(outcome(server, workflow(family, run, placement)))
    server.post("/hands/restore")
    return outcomes


@pytest.mark.parametrize(
    ("name", "placement"), [*((name, "layerwise") for name in TARGETS), ("Flux itself", "resident")]
)
def test_a_class_patched_by_others_runs_as_in_the_app(hands, name, placement):
    family, target = TARGETS[name]
    if family not in WITHOUT:
        WITHOUT[family] = three_runs(hands, family, target, (False,) * 3, None)
    without, with_patch = WITHOUT[family], three_runs(hands, family, target, (True,) * 3, None)
    assert all(plain != patched for plain, patched in zip(without, with_patch)), "the patch did nothing"
    for order in ((False, True, False), (True, False, True)):
        wanted = [(with_patch if patched else without)[run] for run, patched in enumerate(order)]
        assert three_runs(hands, family, target, order, placement) == wanted, order
    assert hands.sim_stats()["races"] == 0


NO_PICTURE = {
    "what a run needs": "comfy.model_base:Flux.memory_required",
    "how the model is moved": "comfy.model_base:Flux.to",
}
"""Methods that we stand in front of and that have no part in the picture."""


def moved_between(run: int, loader: str, **widgets) -> dict:
    """Two samplers of one model. A streamed one is moved to the host by another pack between the two: ours comes back
    for that, where the app's own would be used from the host."""
    prompt = build("flux", loader, seed=run, text=f"lighthouse {run}", steps=1, **widgets)
    first = prompt[SAMPLER]["inputs"]
    second = first | {"latent_image": [SAMPLER, 0], "denoise": 0.5}
    if loader != "app":
        prompt["60"] = node("ForeignHands", model=first["model"], how="to_the_host", after=[SAMPLER, 0])
        second["model"] = ["60", 0]
    prompt["80"] = node("KSampler", **second)
    for entry in prompt.values():
        if entry["class_type"] == "VAEDecode":
            entry["inputs"]["samples"] = ["80", 0]
    return prompt


@pytest.mark.parametrize("name", NO_PICTURE)
def test_a_method_that_others_replace_is_called_while_it_is_replaced(hands, name):
    """In the app's place: a stand-in that keeps the method of its first call calls another one, or the wrong one."""
    target = NO_PICTURE[name]
    ours = {"placement": "layerwise", "budget_gb": SETTINGS["layerwise"]["flux"]}
    expected = [outcome(hands, moved_between(run, "app")) for run in range(3)]
    for order in ((False, True, False), (True, False, True)):
        hands.free()
        for run, is_patched in enumerate(order):
            hands.post("/hands/restore")
            if is_patched:
                hands.post("/hands/patch", {"target": target, "scale": 0.0})
            assert outcome(hands, moved_between(run, "layerwise", **ours)) == expected[run]
            calls = hands.get("/hands/calls").get(target, 0)
            assert (calls > 0) is is_patched, (order, run, calls)
    assert hands.sim_stats()["races"] == 0
