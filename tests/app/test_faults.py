"""A fault in the engine makes the app tier fail: by the picture, or by the race check where the picture is right."""

import pytest

from tests.support import pixels
from tests.support.workflows import MORE_ARCHITECTURES, build

pytestmark = pytest.mark.app

SILENT_FAULTS = (
    "no_wait_for_the_copy",
    "no_wait_for_the_last_reader",
    "last_reader_marked_on_the_copy_lane",
    "bytes_of_the_layer_before",
    "layer_taken_for_present",
    "overlaps_forgotten",
)
BUDGET_GB = 0.03
SLOW_LINK = 300_000_000


def streamed(seed=1, **settings):
    return build("flux", "layerwise", placement="layerwise", budget_gb=BUDGET_GB, seed=seed, **settings)


def latent(server, prompt) -> str:
    return pixels.sha256(server.latents(server.run(prompt).check()))


@pytest.mark.parametrize("name", SILENT_FAULTS)
def test_a_silent_fault_is_seen(faulty, name):
    reference = latent(faulty, build("flux", "app"))
    faulty.free()
    faulty.sim_reset()
    faulty.sim_configure(bandwidth=SLOW_LINK)
    faulty.post("/fault", {"name": name})
    result = faulty.run(streamed(steps=3, seed=2))
    faulty.free()
    again = faulty.run(streamed())
    broken = not again.ok or pixels.sha256(faulty.latents(again)) != reference
    assert broken or not result.ok or faulty.sim_stats()["races"] > 0


QUICK = "z_image"


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == QUICK else pytest.mark.long) for name in MORE_ARCHITECTURES]
)
def test_a_wrong_byte_in_each_layer_is_seen(faulty, family):
    reference = latent(faulty, build(family, "app"))
    faulty.free()
    faulty.post("/fault", {"name": "one_wrong_byte_in_each_copy"})
    assert latent(faulty, build(family, "layerwise", placement="layerwise", budget_gb=0.017)) != reference
    faulty.post("/fault", {"name": ""})
    faulty.free()
    assert latent(faulty, build(family, "layerwise", placement="layerwise", budget_gb=0.017)) == reference


def test_no_fault_is_not_seen(faulty):
    reference = latent(faulty, build("flux", "app"))
    faulty.free()
    faulty.sim_reset()
    faulty.sim_configure(bandwidth=SLOW_LINK)
    assert latent(faulty, streamed()) == reference
    assert faulty.sim_stats()["races"] == 0


STOPS = ("interrupt", "failure", "out_of_memory_twice")


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("at", [0, 5, 11, 12])
def test_after_a_run_that_stopped_in_a_layer_the_next_is_right(faulty, name, at):
    """Twelve layers: the first and last of a pass, the first of the second, and some in between."""
    stop_and_run_again(faulty, name, at)


@pytest.mark.long
@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("at", range(24))
def test_after_a_run_that_stopped_anywhere_the_next_is_right(faulty, name, at):
    stop_and_run_again(faulty, name, at)


def stop_and_run_again(faulty, name: str, at: int):
    """The next picture is right, nothing is leaked, and it moves no more bytes and waits no more often than any."""
    reference = latent(faulty, build("flux", "app"))
    faulty.free()
    faulty.sim_reset()
    before = faulty.sim_stats()["used"]
    faulty.post("/fault", {"name": name, "at": at})
    stopped = faulty.run(streamed())
    assert not stopped.ok
    faulty.post("/fault", {"name": ""})
    counted = dit(faulty)["summary"]
    assert latent(faulty, streamed()) == reference
    again, plan = dit(faulty)["summary"], dit(faulty)["plan"]
    moving = sum(layer["bytes"] for layer in plan["layers"] if layer["placement"] == "streamed")
    assert again["bytes_copied"] - counted["bytes_copied"] <= plan["resident_bytes"] + 3 * moving
    assert again["demand_loads"] - counted["demand_loads"] <= 2
    assert faulty.sim_stats()["races"] == 0
    faulty.free()
    assert faulty.sim_stats()["used"] <= before, "device memory was leaked"


def dit(server) -> dict:
    return next(one for one in server.report()["components"] if one["component"] == "dit")


def test_a_layer_that_finds_the_device_full_runs_again_with_room(faulty):
    """All free memory is taken in the middle of a pass: in a first pass, then in a later one."""
    reference = latent(faulty, build("flux", "app"))
    for at in (3, 12):
        faulty.free()
        faulty.sim_reset()
        faulty.sim_configure(mb=2000)
        faulty.post("/fault", {"name": "device_filled", "at": at})
        assert latent(faulty, build("flux", "layerwise")) == reference
        report = dit(faulty)
        faulty.post("/fault", {"name": ""})
        assert report["summary"]["retried_visits"] == 1
        assert any("ran out of memory in the middle of a pass" in line for line in report["warnings"])
        kept = report["plan"]["resident_bytes"] + report["plan"]["ring_bytes"]
        assert kept < 0.5 * sum(layer["bytes"] for layer in report["plan"]["layers"])
        copied = report["summary"]["bytes_copied"]
        assert latent(faulty, build("flux", "layerwise", seed=2)) != reference
        again = dit(faulty)
        streamed_bytes = sum(one["bytes"] for one in again["plan"]["layers"] if one["placement"] == "streamed")
        assert again["summary"]["bytes_copied"] - copied <= 3 * streamed_bytes, "two passes, and what comes next"
        assert faulty.sim_stats()["races"] == 0


def test_one_failure_for_want_of_memory_is_survived(faulty):
    reference = latent(faulty, build("flux", "app"))
    faulty.free()
    faulty.post("/fault", {"name": "out_of_memory", "at": 5})
    assert latent(faulty, streamed()) == reference
    assert faulty.sim_stats()["races"] == 0


def test_a_device_that_has_less_room_than_it_seemed_to_is_loaded_with_less(faulty):
    reference = latent(faulty, build("flux", "app"))
    faulty.free()
    faulty.post("/fault", {"name": "less_than_it_looked", "at": 0})
    assert latent(faulty, build("flux", "layerwise")) == reference
    report = dit(faulty)
    assert any("could not be had" in line for line in report["warnings"])
    assert any(layer["placement"] == "streamed" for layer in report["plan"]["layers"])
    faulty.post("/fault", {"name": ""})
    stopped = build("flux", "layerwise", placement="resident", seed=2)
    faulty.free()
    faulty.post("/fault", {"name": "less_than_it_looked", "at": 0})
    assert not faulty.run(stopped).ok, "what was asked to be resident is all there or an error"
