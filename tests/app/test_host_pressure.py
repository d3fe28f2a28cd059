"""The host runs short while models are loaded: who gives memory back, and that pictures do not change for it."""

import pytest

from tests.app.test_bit_identity import outcome
from tests.app.test_masters import SECOND, host, of, parts, soon, twice
from tests.support import pixels
from tests.support.workflows import MODEL, SAMPLER, SAVE_IMAGE, build

pytestmark = pytest.mark.app


def pictures(server, prompt) -> list:
    result = server.run(prompt).check()
    return [server.images(result, node) for node in (SAVE_IMAGE, SECOND + SAVE_IMAGE)]


def two_files(seed: int, other: str, loader: str = "layerwise") -> dict:
    """Models of two files in one graph, one after the other: the second starts with what the first has made."""
    prompt = twice("flux", (0.03, 0.03), loader=loader, seed=seed)
    name = "unet_name" if loader == "app" else "model_name"
    prompt[SECOND + MODEL]["inputs"][name] = other
    prompt[SECOND + SAMPLER]["inputs"]["latent_image"] = [SAMPLER, 0]
    return prompt


def test_idle_models_go_back_to_their_file_and_come_again(faulty, own_file):
    expected = {seed: pictures(faulty, two_files(seed, own_file.name, "app")) for seed in (1, 2, 3)}
    faulty.free()

    def run(seed):
        for mine, theirs in zip(pictures(faulty, two_files(seed, own_file.name)), expected[seed], strict=True):
            assert not pixels.difference(theirs, mine)
        return {one["component"]: one["host"] for one in parts(faulty)}

    assert run(1)["dit"]["pinned_bytes"] > 0
    faulty.post("/fault", {"name": "little_memory", "at": 500})
    short = run(2)
    assert short["dit"]["pinned_bytes"] == short["dit"]["pageable_bytes"] == 0, (
        "the one that was idle when the other came"
    )
    faulty.post("/fault", {"name": ""})
    assert run(3)["dit"]["pinned_bytes"] == sum(of("streamed", parts(faulty)[0]).values()) > 0
    assert faulty.sim_stats()["races"] == 0


def test_the_apps_account_has_a_shared_buffer_once_and_its_ceiling_is_kept(faulty):
    faulty.post("/fault", {"name": "pin_ceiling", "at": 10_000})
    before = faulty.get("/fault/pins")["total"]
    outcome(faulty, build("flux"))
    pictures(faulty, twice("flux", (0.03, 0.0302)))
    streamed = sum(of("streamed", *parts(faulty)).values())
    assert host(faulty)["pinned_bytes"] == streamed == faulty.get("/fault/pins")["total"] - before
    faulty.post("/fault", {"name": "pin_ceiling", "at": 20})
    pictures(faulty, twice("flux", (0.03, 0.0302), seed=2))
    assert faulty.get("/fault/pins")["total"] <= 20_000_000
    assert host(faulty)["pinned_bytes"] <= 20_000_000 and host(faulty)["pageable_bytes"] > 0
    faulty.free()
    assert soon(lambda: faulty.get("/fault/pins")["total"] == before)
