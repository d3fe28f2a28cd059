"""From prompt to prompt, near the end of a component's use the first layers of the next one are fetched."""

import pytest

from tests.app.test_components import report_of
from tests.support import pixels
from tests.support.workflows import CLIP, MODEL, VAE, build, with_our_loaders

pytestmark = pytest.mark.app

OURS = {
    MODEL: {"placement": "layerwise", "budget_gb": 0.03},
    CLIP: {"placement": "layerwise", "budget_gb": 0.014},
    VAE: {"placement": "layerwise"},
}
"""A ring and few residents, so that most is streamed. The autoencoder is too small for a ring and leaves it alone."""
NAMES = ("text_encoder", "dit")


def run(server, prompt: dict) -> str:
    """Digest of the prompt's pictures, after the race check."""
    result = server.run(prompt).check()
    arrays = server.images(result)
    pixels.assert_sane(arrays)
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
    return pixels.sha256(arrays)


def counts(server) -> dict[str, dict[str, int]]:
    return {name: report_of(server, name)["summary"] for name in NAMES}


def grown(before: dict, after: dict, what: str) -> dict[str, int]:
    return {name: after[name][what] - before[name][what] for name in NAMES}


def test_the_next_components_head_is_fetched_early_and_the_pictures_are_the_same(sim):
    """Prompts with a new text each: from the second on, the uses come as before. Then more steps and a cached text, for
    which the guess is wrong."""
    texts = ("a", "b", "c", "d")
    apps = [run(sim, build("flux", text=text, seed=number)) for number, text in enumerate(texts)]
    sim.free()
    ours = [with_our_loaders(build("flux", text=text, seed=number), OURS) for number, text in enumerate(texts)]
    assert [run(sim, prompt) for prompt in ours[:2]] == apps[:2]
    before = counts(sim)
    assert [run(sim, prompt) for prompt in ours[2:]] == apps[2:]
    after = counts(sim)
    copied = grown(before, after, "bytes_copied")
    assert all(copied.values()), f"all of them are streamed: {copied}"
    early = grown(before, after, "early_copies")
    assert early["dit"] > 0 and early["text_encoder"] > 0, early
    assert not any(grown(before, after, "demand_loads").values())
    others = [build("flux", text="d", seed=9), build("flux", text="d", seed=9, steps=5)]
    wanted = [run(sim, with_our_loaders(prompt, OURS)) for prompt in others]
    sim.free()
    assert [run(sim, prompt) for prompt in others] == wanted
