"""One file is in host memory once, however many loaders have it; a changed widget reads it not again; free frees it.

What was read is asked of the operating system, what is page-locked of the device: not taken from our books. What the
app itself reads through the mapped file does not count there.
"""

import time

import pytest

from tests.support import pixels
from tests.support.workflows import DECODE, LORA, MODEL, SAMPLER, SAVE_IMAGE, build, node

pytestmark = pytest.mark.app

FAMILY = "flux_mid"
FILE_BYTES = 166_000_000
ELSE_BYTES = 12_000_000
"""What a prompt may read besides: pictures, encoder, VAE, headers."""
PAGE_MAPS_BYTES = 4 * FILE_BYTES // 512
"""Eight bytes for each page of 4 KiB of the file, where each of two loaders looks twice what was written to."""
SECOND = "20"
"""Before the ids of the nodes of the second branch."""
OURS = {"loader": "layerwise", "placement": "layerwise"}


def read_bytes(server) -> int:
    """Bytes that the process has read by calls, from files and from the page cache alike."""
    with open(f"/proc/{server.pid}/io") as file:
        return int(file.readline().split()[1])


def run(server, prompt) -> tuple:
    """The pictures, and the bytes read meanwhile."""
    before = read_bytes(server)
    result = server.run(prompt).check()
    return [server.images(result, name) for name in (SAVE_IMAGE, SECOND + SAVE_IMAGE) if name in prompt], (
        read_bytes(server) - before
    )


def host(server) -> dict:
    return server.report()["host"]


def parts(server) -> list:
    """Of the diffusion model, the oldest first."""
    found = [one for one in server.report()["components"] if one["component"].startswith("dit")]
    return sorted(found, key=lambda one: int(one["id"].split("-")[-1]))


def twice(family: str, budgets, lora=None, loader="layerwise", **settings) -> dict:
    """Two loaders of one file in one graph, each with a sampler and a picture of its own; a LoRA on the second."""
    placed = {"placement": "layerwise"} if loader == "layerwise" else {}
    one = build(family, loader, budget_gb=budgets[0], **placed, **settings)
    two = build(family, loader, budget_gb=budgets[1], lora=lora, **placed, **settings)
    mine = [role for role in (MODEL, LORA, SAMPLER, DECODE, SAVE_IMAGE) if role in two]
    added = {}
    for role in mine:
        wires = {
            name: [SECOND + value[0], value[1]] if isinstance(value, list) and value[0] in mine else value
            for name, value in two[role]["inputs"].items()
        }
        added[SECOND + role] = node(two[role]["class_type"], **wires)
    return {**one, **added}


def of(placement: str, *reports: dict) -> dict[str, int]:
    """The layers that are placed so in one of the reports, and their bytes."""
    layers = [layer for report in reports for layer in report["plan"]["layers"]]
    return {layer["name"]: layer["bytes"] for layer in layers if layer["placement"] == placement}


def soon(true) -> bool:
    """Whether something becomes true: what lingers goes moments after its prompt."""
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.fixture
def gone(sim):
    """After the test and a free request, nothing is page-locked but the staging slots."""
    before = sim.sim_stats()["pinned"]
    yield
    sim.free()
    assert soon(lambda: sim.sim_stats()["pinned"] <= before + (4 << 24))
    assert host(sim)["pinned_bytes"] == host(sim)["pageable_bytes"] == 0
    assert sim.sim_stats()["races"] == 0


def test_two_loaders_of_one_file_hold_it_once_and_read_it_once(sim, gone):
    expected = sim.images(sim.run(build(FAMILY, "app")).check())
    sim.free()
    locked = sim.sim_stats()["pinned"]
    pictures, read = run(sim, twice(FAMILY, (0.06, 0.0602)))
    for picture in pictures:
        assert not pixels.difference(expected, picture)
    one, two = parts(sim)
    streamed = sum(of("streamed", one, two).values())
    assert min(sum(of("streamed", each).values()) for each in (one, two)) > 0.7 * streamed > 80_000_000
    assert host(sim)["pinned_bytes"] == streamed
    assert sim.sim_stats()["pinned"] - locked <= streamed + (4 << 24), "page-locked twice"
    only_on_the_device = max(sum(of("resident", each).values()) for each in (one, two))
    assert read < FILE_BYTES + ELSE_BYTES + PAGE_MAPS_BYTES + only_on_the_device < 1.5 * FILE_BYTES, "read twice"


def test_a_lora_on_one_of_them_stays_there(sim, gone):
    expected, _ = run(sim, twice("flux", (0, 0), lora=0.8, loader="app"))
    sim.free()
    for seed in (1, 2):
        if seed == 2:
            expected, _ = run(sim, twice("flux", (0, 0), lora=0.8, loader="app", seed=seed))
        pictures, _ = run(sim, twice("flux", (0.03, 0.04), lora=0.8, seed=seed))
        for mine, theirs in zip(pictures, expected, strict=True):
            assert not pixels.difference(theirs, mine)
        assert pixels.difference(*pictures)


def test_a_changed_budget_reads_nothing_again_and_holds_nothing_twice(sim, gone):
    expected = sim.images(sim.run(build(FAMILY, "app")).check())
    sim.free()
    locked = sim.sim_stats()["pinned"]
    _, read = run(sim, build(FAMILY, **OURS, budget_gb=0.05))
    assert read > FILE_BYTES * 0.9, "this test could not fail"
    for budget in (0.06, 0.07, 0.05):
        before = parts(sim)[-1]
        (picture,), read = run(sim, build(FAMILY, **OURS, budget_gb=budget))
        assert not pixels.difference(expected, picture)
        now = parts(sim)[-1]
        assert now["id"] != before["id"] and of("streamed", now)
        no_copy = sum(of("resident", before).values())
        assert read < ELSE_BYTES + no_copy < FILE_BYTES / 2, f"{read} bytes were read for another budget"
        assert sim.sim_stats()["pinned"] - locked <= FILE_BYTES + (4 << 24)


def test_a_changed_budget_with_the_apps_classic_cache(app_server_factory):
    """There the app drops what the loader gave out before the loader is executed again."""
    server = app_server_factory("sim", extra_args=("--cache-classic",))
    run(server, build(FAMILY, **OURS, budget_gb=0.05))
    (before,) = parts(server)
    _, read = run(server, build(FAMILY, **OURS, budget_gb=0.06))
    (now,) = parts(server)
    assert now["id"] != before["id"]
    assert read < ELSE_BYTES + sum(of("resident", before).values()) < FILE_BYTES / 3
    server.run({"1": node("PreviewAny", source="x")}).check()
    assert soon(lambda: host(server)["pinned_bytes"] == 0), "the last user went with the prompt that did not need it"
