"""What the server tells browsers: live messages, what became of each `auto`, the extended report, traces, progress."""

import json
import time
import urllib.request

import numpy as np
import pytest
import websocket

from tests.app.test_what_is_shown import in_english
from tests.core.test_trace import check_chrome
from tests.support.app_server import HttpError
from tests.support.workflows import CLIP, MODEL, SAMPLER, VAE, all_in_one, build, node, with_our_loaders

pytestmark = pytest.mark.app

LIVE = "layerwise_offload.live"
BUDGET_GB = 0.03
LETTERS = set("RrUFCO")


class Browser:
    """A websocket of the app, as a page has one."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self._socket = websocket.create_connection(f"{server.url.replace('http', 'ws')}/ws?clientId={name}", timeout=30)
        self.messages = []

    def subscribe(self, on=True):
        return self.server.post("/layerwise_offload/subscribe", {"client_id": self.name, "on": on})

    def read(self, seconds):
        """Everything that comes within this time: (when, type, data)."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                break
            if isinstance(frame, str):
                message = json.loads(frame)
                self.messages.append((time.monotonic(), message["type"], message["data"]))
        return self.messages

    def read_until(self, condition, seconds=30):
        """Reads until `condition()` is true: how soon something comes is the machine's affair."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; the last message: {self.messages[-1:]}"
            self.read(0.1)

    def of(self, kind):
        return [data for _, found, data in self.messages if found == kind]

    def run(self, prompt, seconds=30):
        """Queue a prompt as this page and read until it has ended."""
        queued = self.server.post("/prompt", {"prompt": prompt, "client_id": self.name})["prompt_id"]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read(0.3)
            if any(data.get("prompt_id") == queued for data in self.of("execution_success")):
                return queued
            assert not self.of("execution_error"), self.of("execution_error")
        raise AssertionError("the prompt did not end")

    def close(self):
        self._socket.close()


@pytest.fixture
def browser(sim):
    opened = []

    def make(name):
        opened.append(Browser(sim, name))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def streamed_flux(**settings):
    """Flux with our loaders: a budget for the model, an encoder on auto, the VAE left to the app."""
    nodes = {
        MODEL: {"placement": "layerwise", "budget_gb": BUDGET_GB, **settings},
        CLIP: {},
        VAE: {"placement": "whole"},
    }
    return with_our_loaders(build("flux"), nodes)


def test_only_a_subscriber_sees_the_run(sim, browser):
    sim.run(streamed_flux()).check()  # a finished and freed run is not sent
    sim.free()
    sim.sim_configure(bandwidth=2e8)
    looks, other = browser("looks"), browser("other")
    looks.subscribe()
    looks.read_until(lambda: looks.of(LIVE))
    first = looks.of(LIVE)[0]
    assert (
        first["schema"] == 1 and first["components"] == first["events"] == [] and first["devices"][0]["total_bytes"] > 0
    )
    looks.run(streamed_flux())
    # The last visits have been measured some time after the run has ended, and the state that says so is the last one.
    looks.read_until(lambda: len(dit_visits(looks)) >= 2 * 12 and not looks.of(LIVE)[-1]["components"][0]["running"])
    looks.read(0.8)
    live = looks.of(LIVE)
    gaps = [(b["time_ns"] - a["time_ns"]) / 1e9 for a, b in zip(live, live[1:])]  # when it came is the network's affair
    assert len(live) >= 3 and min(gaps) >= 0.2, f"at most four a second: {gaps}"
    states = [{c["component"]: c for c in data["components"]} for data in live]
    running = [s["dit"] for s in states if "dit" in s and s["dit"]["running"]]
    assert running, "seen while it ran"
    assert all(set(dit["layer_states"]) <= LETTERS and len(dit["layer_states"]) == 12 for dit in running)
    last = states[-1]["dit"]
    assert not last["running"] and last["pass"] == 2, "the last state is always sent"
    assert last["numbers"]["stall_pct"] > 0 and last["numbers"]["hit_rate"] is not None
    kinds = {event[0] for data in live for event in data["events"]}
    assert kinds >= {"visit", "copy", "stall", "plan", "pass"}
    visits = dit_visits(looks)
    assert len(visits) == 2 * 12 and all(start < end for _, _, _, start, end, _ in visits), "every pass, every layer"
    assert not other.read(0.5) or not other.of(LIVE)


def dit_visits(browser):
    return [
        event
        for data in browser.of(LIVE)
        for event in data["events"]
        if event[0] == "visit" and event[1].startswith("dit-")
    ]


def test_nothing_is_sent_without_an_event_or_a_subscriber(sim, browser):
    sim.run(streamed_flux()).check()
    looks = browser("quiet")
    looks.subscribe()
    looks.read(1.5)
    live = looks.of("layerwise_offload.live")
    assert 1 <= len(live) <= 3, "the state as it is, then silence"
    assert live[0]["components"][0]["component"] == "dit"
    late = browser("late")
    late.subscribe()
    late.read(0.8)
    assert late.of("layerwise_offload.live"), "one who comes later is told too"
    for one in (looks, late):
        one.subscribe(on=False)
        one.messages.clear()
    looks.run(streamed_flux())
    assert not looks.of("layerwise_offload.live")


def test_a_client_that_goes_away_is_dropped(sim, browser):
    gone = browser("gone")
    gone.subscribe()
    gone.read(0.5)
    gone.close()
    sim.run(streamed_flux()).check()
    with pytest.raises(HttpError) as refused:
        sim.post("/layerwise_offload/subscribe", {"client_id": "gone", "on": True})
    assert refused.value.code == 404 and "no open websocket" in json.dumps(refused.value.body)


@pytest.mark.parametrize("body", [{}, {"client_id": "x"}, {"client_id": 3, "on": True}, {"client_id": "", "on": True}])
def test_bad_subscriptions_are_refused(sim, body):
    with pytest.raises(HttpError) as refused:
        sim.post("/layerwise_offload/subscribe", body)
    assert refused.value.code == 400


def test_what_became_of_each_auto_is_told_to_the_nodes(sim, browser):
    page = browser("page")
    page.run(streamed_flux())
    resolved = {data["component"]: data for data in page.of("layerwise_offload.resolved")}
    dit, encoder, vae = resolved["dit"], resolved["text_encoder"], resolved["vae"]
    assert (dit["node"], dit["placement"], dit["source"]) == (MODEL, "layerwise", "node")
    assert dit["budget_bytes"] == BUDGET_GB * 1e9 and 0 < dit["device_bytes"] <= dit["budget_bytes"]
    sources = (dit["budget_source"], encoder["budget_source"], vae["budget_source"])
    assert sources == ("node", "policy", None), "of the encoder it is what the app offers"
    assert [(told["peer_device"], told["peer_bytes"]) for told in (dit, encoder, vae)] == [(None, 0)] * 3
    assert encoder["node"] == CLIP and encoder["source"] == "policy" and encoder["reason"]
    for told in resolved.values():
        assert in_english(told["why"]) == told["reason"], told
    assert vae["why"]["code"] == "set_by" and encoder["why"]["code"] in ("resident_fits", "does_not_fit")
    assert (vae["node"], vae["placement"], vae["source"], vae["id"]) == (VAE, "whole", "node", None)
    files = {"dit": (MODEL, "model_name"), "text_encoder": (CLIP, "clip_name1"), "vae": (VAE, "vae_name")}
    for name, (node_id, widget) in files.items():
        assert resolved[name]["model"] == streamed_flux()[node_id]["inputs"][widget], name
    report = sim.report()
    assert {c["component"]: c["nodes"] for c in report["components"]} == {"dit": [MODEL], "text_encoder": [CLIP]}
    assert [(b["component"], b["nodes"]) for b in report["bystanders"]] == [("vae", [VAE])]


def test_an_apply_node_is_told_with_the_loader_in_front_of_it(sim, browser):
    prompt = streamed_flux(placement="auto", budget_gb=0)
    prompt["3"] = node("LayerwiseOffloadApply", model=[MODEL, 0], placement="layerwise", budget_gb=BUDGET_GB)
    prompt[SAMPLER]["inputs"]["model"] = ["3", 0]
    page = browser("apply")
    page.run(prompt)
    told = {data["node"] for data in page.of("layerwise_offload.resolved") if data["component"] == "dit"}
    assert told == {MODEL, "3"}


def test_the_report_says_more(sim):
    sim.run(streamed_flux()).check()
    report = sim.report()
    dit = next(c for c in report["components"] if c["component"] == "dit")
    assert dit["kind"] == "dit" and dit["id"].startswith("dit-") and not dit["running"]
    assert set(dit["layer_states"]) <= LETTERS and "R" in dit["layer_states"]
    assert dit["host"]["pinned_bytes"] + dit["host"]["pageable_bytes"] + dit["host"]["mapped_bytes"] > 0
    assert dit["budget_bytes"] == BUDGET_GB * 1e9
    less, now, more = dit["what_if"]
    assert [one["delta_bytes"] for one in (less, now, more)] == [-(10**9), 0, 10**9]
    assert "error" in less, "a model of 80 MB has no GB to give"
    assert more["resident_layers"] == 12 and more["pass_ns"] <= now["pass_ns"]
    (device,) = report["devices"]
    parts = ("free_bytes", "ring_bytes", "resident_bytes", "loose_bytes", "others_bytes")
    assert sum(device[part] for part in parts) == device["total_bytes"]
    assert device["ring_bytes"] == max(c["plan"]["ring_bytes"] for c in report["components"])
    loaded = [c["component"] for c in report["components"] if c["loaded"]]
    assert device["budget_bytes"] == (BUDGET_GB * 1e9 if loaded == ["dit"] else None), loaded
    assert report["host"]["total_bytes"] > report["host"]["available_bytes"] > 0
    again = {c["component"]: c["id"] for c in sim.report()["components"]}
    assert again["dit"] == dit["id"]
    sim.free()
    sim.run(streamed_flux()).check()
    assert {c["component"]: c["id"] for c in sim.report()["components"]}["dit"] != dit["id"], "another one, another id"


# ---------------------------------------------------------------------- traces


def test_the_trace_of_a_run_opens_in_perfetto(sim):
    sim.sim_configure(bandwidth=3e8)
    sim.run(streamed_flux()).check()
    sim.report()  # reads the times of the last visits
    trace = sim.get("/layerwise_offload/trace")
    check_chrome(trace)
    names = {e["name"] for e in trace["traceEvents"] if e["ph"] == "X"}
    assert "diffusion_model.double_blocks.0" in names
    cats = {e["cat"] for e in trace["traceEvents"] if e["ph"] == "X"}
    assert cats >= {"visit", "copy", "stall", "pass", "plan"}
    assert len(json.dumps(trace)) < 32 * 2**20


def test_traces_are_saved_in_the_output_folder_and_never_over_each_other(sim):
    for expected in ("layerwise_offload/run.1.json", "layerwise_offload/run.1_1.json"):
        assert sim.post("/layerwise_offload/trace/save", {"name": "run.1"}) == {"file": expected}
        check_chrome(json.loads((sim.base / "output" / expected).read_text()))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc/x", "C:x", ".hidden", "x..y", "x.", "a\x00b", "a\nb", "con", "NUL.txt"]
    + ["é", "x" * 65, "x y", None, 3, ["x"], {"a": 1}, "%2e%2e%2fx", "~", "$HOME"],
)
def test_names_that_are_no_plain_file_names_are_refused(sim, name):
    before = sorted(str(path) for path in sim.base.rglob("*.json"))
    with pytest.raises(HttpError) as refused:
        sim.post("/layerwise_offload/trace/save", {"name": name})
    assert refused.value.code == 400 and "plain file name" in json.dumps(refused.value.body)
    assert sorted(str(path) for path in sim.base.rglob("*.json")) == before


def test_a_folder_that_leads_elsewhere_is_not_written_to(app_server_factory, tmp_path):
    server = app_server_factory("cpu")
    (server.base / "output" / "layerwise_offload").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(HttpError) as refused:
        server.post("/layerwise_offload/trace/save", {"name": "x"})
    assert refused.value.code == 400 and not list(tmp_path.iterdir())


LARGE = b'{"name": "x", "client_id": "x", "on": false, "more": "' + b"x" * 5000 + b'"}'
"""Good but for its size."""


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"x"', LARGE])
def test_bodies_that_are_no_small_objects_are_refused(sim, body):
    for path in ("/layerwise_offload/trace/save", "/layerwise_offload/subscribe"):
        assert _status(sim, path, body, {}) == 400
    assert not (sim.base / "output" / "layerwise_offload" / "x.json").exists()


@pytest.mark.parametrize("path", ["/layerwise_offload/trace/save", "/layerwise_offload/subscribe"])
def test_other_sites_may_not_post(sim, path):
    body = b'{"name": "evil", "client_id": "x", "on": true}'
    assert _status(sim, path, body, {"Origin": "http://evil.example"}) == 403
    assert _status(sim, path, body, {"Sec-Fetch-Site": "cross-site"}) == 403
    assert not (sim.base / "output" / "layerwise_offload" / "evil.json").exists()


def _status(server, path, body, headers):
    request = urllib.request.Request(server.url + path, data=body, headers=headers, method="POST")
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


# ---------------------------------------------------------------------- pictures


def with_report(prompt, behind, name):
    """The prompt with a report node behind an output, and its picture saved."""
    prompt = dict(prompt)
    prompt["40"] = node("LayerwiseOffloadReport", value=behind)
    prompt["41"] = node("SaveImage", images=["40", 3], filename_prefix=name)
    return prompt


def test_the_picture_is_there_before_the_run_and_changes_with_it(sim):
    prompt = streamed_flux()
    loaders = {key: prompt[key] for key in (MODEL, CLIP, VAE)}
    before = _one(sim, sim.run(with_report(loaders, [MODEL, 0], "before")).check())
    assert before.shape[1] == 1024 and before.std() > 10
    after_prompt = {key: value for key, value in prompt.items() if key not in ("10", "11", "12")}
    after = _one(sim, sim.run(with_report(after_prompt, [SAMPLER, 0], "after")).check())
    assert after.shape[1] == 1024 and after.shape[0] > before.shape[0], "two components then, one before"
    resident, offloaded = (0x4C, 0x8D, 0xD6), (0x6B, 0x72, 0x80)
    assert _pixels(before, offloaded) > 1000 and _pixels(after, resident) > _pixels(before, resident) + 1000


def _one(server, result):
    (image,) = server.images(result, "41")
    return np.asarray(image)


def _pixels(image, colour):
    return int((image[..., :3] == np.array(colour)).all(axis=-1).sum())


# ---------------------------------------------------------------------- progress


def test_building_the_host_copies_shows_progress_on_the_node_that_waits_for_it(sim, browser):
    page = browser("progress")
    page.run(streamed_flux())
    shown = [data for data in page.of("progress") if data["node"] == SAMPLER and data["max"] > 10**7]
    assert len(shown) >= 2
    for most in {data["max"] for data in shown}:  # the masters are made, then page-locked
        values = [data["value"] for data in shown if data["max"] == most]
        assert values == sorted(values) and values[-1] == most, "bytes of the layers, to the last"
    steps = [data for data in page.of("progress") if data["node"] == SAMPLER and data["max"] == 2]
    assert steps, "then the sampler's own"


def test_the_loader_of_all_shows_how_many_files_are_loaded(sim, browser):
    page = browser("loader")
    page.run(all_in_one(build("flux")))
    (loader,) = {data["node"] for data in page.of("progress") if data["max"] == 3}
    assert [data["value"] for data in page.of("progress") if data["node"] == loader] == [1, 2, 3]


def test_page_locking_for_another_plan_shows_progress_too(sim, browser):
    page = browser("locking")
    page.run(streamed_flux(placement="resident", budget_gb=0))
    page.messages.clear()
    page.run(streamed_flux())
    shown = [data for data in page.of("progress") if data["node"] == SAMPLER and data["max"] > 10**7]
    assert shown and shown[-1]["value"] == shown[-1]["max"], "layers that are streamed from now on are page-locked"
    streamed = sum(
        layer["bytes"]
        for one in sim.report()["components"]
        if one["component"] == "dit"
        for layer in one["plan"]["layers"]
        if layer["host_tier"] == "pinned"
    )
    assert shown[-1]["max"] <= streamed, "of what moves, and not of everything"


def test_patching_shows_how_many_weights_are_patched(sim, browser):
    prompt = build("flux", "layerwise", lora=0.7, placement="layerwise", budget_gb=BUDGET_GB)
    page = browser("patching")
    page.run(prompt)
    steps = prompt[SAMPLER]["inputs"]["steps"]
    shown = [data for data in page.of("progress") if data["node"] == SAMPLER and steps < data["max"] < 10**5]
    (count,) = {data["max"] for data in shown}
    values = [data["value"] for data in shown]
    assert count >= 8 and values == sorted(values) and values[0] == 1 and values[-1] == count
    page.messages.clear()
    prompt[SAMPLER]["inputs"]["seed"] += 1
    page.run(prompt)
    assert not [data for data in page.of("progress") if data["max"] == count], "patched once"


# ---------------------------------------------------------------------- what there is to do


def test_what_the_user_can_do_something_about_is_told_once(sim, browser):
    page = browser("to_do")
    page.run(streamed_flux())
    told = page.of("layerwise_offload.resolved")
    assert len(told) >= 3 and not any(data["to_do"] for data in told)
    page.messages.clear()
    page.run(streamed_flux(budget_gb=500))
    (dit,) = [data for data in page.of("layerwise_offload.resolved") if data["component"] == "dit"]
    (line,), (notice,) = dit["to_do"], dit["to_do_notices"]
    assert "clamped" in line and "; set a budget that the device has" in line and line in dit["warnings"]
    assert (notice["code"], notice["do"]["code"]) == ("budget_beyond_device", "do_set_budget_of_device")
    assert f"{in_english(notice)}; {in_english(notice['do'])}" == line
    assert [one["code"] for one in dit["notices"]] == [notice["code"]] and len(dit["warnings"]) == 1
    page.messages.clear()
    prompt = streamed_flux(budget_gb=500)
    prompt[SAMPLER]["inputs"]["seed"] += 1
    page.run(prompt)
    again = [data for data in page.of("layerwise_offload.resolved") if data["component"] == "dit"]
    assert again and all(data["to_do"] == data["to_do_notices"] == [] and line in data["warnings"] for data in again)
