"""Times that one start of the app has measured plan the first run of the next: real servers over one user folder."""

import json
import shutil

import numpy as np
import pytest

from tests.app.test_components import report_of
from tests.app.test_host_tier import said
from tests.support.workflows import MODEL, build

pytestmark = pytest.mark.app

BANDWIDTH = 300_000_000
"""Bytes per second: far from what is assumed of a link that was not measured."""

EARLIER = "compute times were measured earlier"
IGNORED = "measured times of earlier runs are ignored"
KNOWN = "from the memory of npu:1 (measured earlier: 0.1 GB/s)"
NOT_KEPT = "measured times cannot be kept"


def prompt(steps: int = 4, **changes) -> dict:
    return build("flux", "layerwise", placement="layerwise", budget_gb=0.05, steps=steps, **changes)


@pytest.fixture
def user(tmp_path):
    """The user folder of every server of the test."""
    folder = tmp_path / "user"
    folder.mkdir()
    return folder


@pytest.fixture
def start(app_server_factory, user):
    def started(devices: int = 1, **rates):
        server = app_server_factory("sim", devices=devices, extra_args=("--user-directory", str(user)))
        server.sim_configure(bandwidth=BANDWIDTH, **rates)
        return server

    return started


def planned(server) -> dict:
    """What a plan chooses and expects; not its words, in which the source of the times stands."""
    plan = report_of(server, "dit")["plan"]
    return {name: plan[name] for name in ("layers", "visits", "ring_bytes", "resident_bytes", "predicted")}


def words(server) -> str:
    return "\n".join(report_of(server, "dit")["plan"]["decisions"])


def pixels(server, **changes) -> np.ndarray:
    return server.images(server.run(prompt(**changes)).check())[0]


def test_a_restart_plans_the_first_run_as_the_last_one_was_planned(start, user):
    first = start()
    one_step = pixels(first, steps=1)
    guessed = planned(first)
    assert EARLIER not in words(first), "one step measures nothing"
    picture = pixels(first)
    first.free()
    assert np.array_equal(pixels(first, steps=1), one_step)  # loaded anew, by what the run before has measured
    measured = planned(first)
    assert EARLIER in words(first)
    assert measured["predicted"] != guessed["predicted"], "otherwise this shows nothing"
    first.stop()

    second = start()
    assert np.array_equal(pixels(second, steps=1), one_step)
    assert planned(second) == measured
    assert "GB/s (measured earlier on " in words(second)
    before = file_of(user).read_text()
    assert np.array_equal(pixels(second), picture)
    assert file_of(user).read_text() != before, "it is measured again"
    assert len(json.loads(before)["entries"]) == 1

    assert second.post("/layerwise_offload/forget_measured") == {"forgotten": 1}
    assert not file_of(user).exists()
    second.free()
    second.run(prompt(steps=1)).check()
    assert EARLIER not in words(second)
    assert second.post("/layerwise_offload/forget_measured") == {"forgotten": 0}


def test_a_restart_knows_the_rate_of_the_other_device(start, user):
    rates = {"peer_bandwidth": BANDWIDTH // 4}
    workflow, one_step = (said("options", prompt(steps=steps), host_tier="npu:1") for steps in (4, 1))
    first = start(devices=2, **rates)
    first.run(workflow).check()
    first.free()
    first.run(one_step).check()  # loaded anew, by what the run before has measured
    measured = planned(first)
    first.stop()
    (entry,) = json.loads(file_of(user).read_text())["entries"]
    (name,) = entry["measured"]["peer_bytes_per_s"]
    assert name.startswith("npu:1")

    second = start(devices=2, **rates)
    second.run(one_step).check()
    assert planned(second) == measured
    assert measured["predicted"]["stall_ns"] > 0, "otherwise the rate does not matter"
    assert KNOWN in words(second)


def file_of(user):
    return user / "__layerwise_offload" / "measured.json"


def test_what_is_stale_or_damaged_or_cannot_be_kept_is_ignored(start, user, own_file):
    file_of(user).parent.mkdir()
    file_of(user).write_text('{"schema": 2, "entries": [{"key"')
    server = start()

    def is_known(**changes) -> bool:
        server.free()
        run(server, own_file, steps=1, **changes)
        return EARLIER in words(server)

    run(server, own_file)
    assert server.log().count(IGNORED) == 1
    assert len(json.loads(file_of(user).read_text())["entries"]) == 1, "written anew"
    assert list(file_of(user).parent.iterdir()) == [file_of(user)]
    assert is_known()
    assert not is_known(size=192)
    own_file.touch()
    assert not is_known()

    shutil.rmtree(file_of(user).parent)
    file_of(user).parent.write_text("a file where the folder would be")
    for _ in range(2):
        server.free()
        run(server, own_file)
    assert not is_known()
    assert server.log().count(NOT_KEPT) == server.log().count(IGNORED) == 1, "each is told once"


def run(server, file, **changes):
    workflow = prompt(**changes)
    workflow[MODEL]["inputs"]["model_name"] = file.name
    server.run(workflow).check()
