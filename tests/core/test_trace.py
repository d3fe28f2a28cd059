"""The recorder's ring, the summary's arithmetic, and a Chrome trace that keeps the format's rules."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from offload_core.errors import PlanError
from offload_core.planning.cost_model import compute_times
from offload_core.planning.planner import make_plan
from offload_core.planning.request import PlanRequest
from offload_core.planning.simulate import simulate, steady_events
from offload_core.trace.events import COPY, MAX_SOURCES, STALL, VISIT, Event, Source, Trace, newest_pass
from offload_core.trace.trace_export import chrome_trace, events_from_chrome
from offload_core.trace.trace_summary import overlap_ns, run_numbers, summarise
from tests.core.shapes import GB, flux

ROOT = Path(__file__).parents[2]
DIT = Source("dit-1", "dit", "cuda:0", ("blocks.0", "blocks.1"))


def test_the_ring_keeps_the_newest_and_says_where_to_go_on() -> None:
    trace = Trace(4)
    source = trace.add_source(DIT)
    for number in range(3):
        trace.append(VISIT, source, number, number, number + 1)
    events, after = trace.since(0)
    assert [e.layer for e in events] == [0, 1, 2] and after == 3
    for number in range(3, 10):
        trace.append(COPY, source, number, number, number + 1, 7)
    events, end = trace.since(after)
    assert [e.layer for e in events] == [6, 7, 8, 9] and end == 10
    assert events[0] == Event("copy", "dit-1", 6, 6, 7, 7)
    assert trace.since(end) == ([], 10)
    assert [e.layer for e in trace.since(0, limit=2)[0]] == [8, 9]
    trace.forget()
    assert trace.since(0) == ([], 10)


def test_records_that_were_overwritten_during_a_read_are_left_out() -> None:
    trace = Trace(4)
    source = trace.add_source(DIT)
    for number in range(10):
        trace.append(VISIT, source, number, number, number)
    trace._written = 8  # a reader who looked at the count before the last two were written
    assert [e.layer for e in trace.since()[0]] == [6, 7]


def test_the_ring_takes_no_memory_when_written() -> None:
    trace = Trace(64)
    memory, size = id(trace._memory), len(trace._memory)
    for number in range(1000):
        trace.append(VISIT, 1, None, number, number)
    assert (id(trace._memory), len(trace._memory)) == (memory, size)


def test_names_of_old_components_are_forgotten_with_their_events() -> None:
    trace = Trace(1024)
    numbers = [trace.add_source(Source(f"c-{i}", "dit", "cuda:0")) for i in range(MAX_SOURCES + 1)]
    for number in (numbers[0], numbers[-1]):
        trace.append(VISIT, number, 0, 1, 2)
    assert [e.source for e in trace.since()[0]] == [f"c-{MAX_SOURCES}"]
    assert len(trace.sources()) == MAX_SOURCES


def test_a_reader_in_another_thread_never_sees_half_a_record() -> None:
    trace = Trace(8)
    source = trace.add_source(DIT)
    done = threading.Event()

    def write() -> None:
        for number in range(60_000):
            trace.append(VISIT, source, number, number, 2 * number, 3 * number)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        for e in trace.since()[0]:
            assert e.layer is not None and (e.end_ns, e.nbytes) == (2 * e.layer, 3 * e.layer)
            seen += 1
    writer.join()
    assert seen


def test_numbers_of_a_run() -> None:
    before = {"passes": 2, "stall_ns": 5, "compute_ns": 5, "prefetch_hits": 1, "timed_copy_bytes": 100, "copy_ns": 10}
    now = {
        "passes": 4,
        "stall_ns": 30,
        "compute_ns": 80,
        "prefetch_hits": 10,
        "demand_loads": 1,
        "bytes_copied": 600,
        "timed_copy_bytes": 400,
        "copy_ns": 20,
    }
    numbers = run_numbers(now, before, headroom_bytes=9)
    assert numbers == {
        "stall_pct": 25.0,
        "bytes_per_pass": 300,
        "copy_bytes_per_s": 30e9,
        "hit_rate": 0.9,
        "headroom_bytes": 9,
    }
    assert run_numbers(now, before, last_pass_bytes=77)["bytes_per_pass"] == 77
    from_peer = {**now, "timed_peer_bytes": 100, "peer_copy_ns": 30}
    assert run_numbers(from_peer, before)["copy_bytes_per_s"] == 10e9, "of both links together"


def test_numbers_are_none_until_they_are_known() -> None:
    assert set(run_numbers({}, {}).values()) == {None}
    idle = {"passes": 3, "stall_ns": 1, "compute_ns": 1, "timed_copy_bytes": 8, "copy_ns": 4, "prefetch_hits": 1}
    numbers = run_numbers(idle, idle, last_pass_bytes=5)
    assert (numbers["stall_pct"], numbers["bytes_per_pass"], numbers["hit_rate"]) == (None, None, None)
    assert numbers["copy_bytes_per_s"] == 2e9, "the link is the same"


def _events() -> list[Event]:
    """Two passes of two layers; the copy of layer 1 is late by 5."""
    events = []
    for begin in (0, 100):
        events += [
            Event("visit", "dit-1", 0, begin, begin + 20, 0),
            Event("copy", "dit-1", 1, begin + 5, begin + 25, 1000),
            Event("stall", "dit-1", 1, begin + 20, begin + 25, 0),
            Event("visit", "dit-1", 1, begin + 25, begin + 95, 0),
        ]
    return [*events, Event("plan", "dit-1", None, -10, -5, 0)]


def test_summary_of_a_trace() -> None:
    (one,) = summarise(_events())
    assert (one.visits, one.stalls, one.copies, one.span_ns) == (4, 2, 2, 195)
    assert (one.compute_ns, one.stall_ns, one.copy_ns, one.copied_bytes) == (180, 10, 40, 2000)
    assert one.hidden_ns == 30 and one.stall_pct == 5.26 and one.copy_bytes_per_s == 50e9
    assert summarise([]) == []


def test_overlap_is_that_of_a_raster() -> None:
    rng = random.Random(5)
    for _ in range(50):
        rows = []
        for _ in range(2):
            points = sorted(rng.sample(range(60), 8))
            rows.append([Event("copy", "x", 0, a, b, 0) for a, b in zip(points[::2], points[1::2])])
        raster = sum(all(any(e.start_ns <= t < e.end_ns for e in row) for row in rows) for t in range(60))
        assert overlap_ns(*rows) == raster


def test_the_newest_whole_pass_is_found() -> None:
    events = _events()
    chosen = newest_pass(events, "dit-1")
    assert [(e.kind, e.start_ns) for e in chosen] == [("visit", 100), ("copy", 105), ("stall", 120), ("visit", 125)]
    cut = [*events, Event("visit", "dit-1", 0, 200, 220, 0)]  # a pass of which only the first layer was measured
    assert newest_pass(cut, "dit-1")[0].start_ns == 200 or newest_pass(cut, "dit-1") == chosen
    assert newest_pass(events, "vae-1") == []


def test_what_runs_once_before_the_passes_does_not_begin_one() -> None:
    """A connector, layers 3 and 4, once for each of two conditionings; then four steps of which one is not whole."""
    order = [3, 4, 3, 4, *[0, 1, 2] * 3, 0]
    events = [Event("visit", "dit-1", layer, 10 * at, 10 * at + 9, 0) for at, layer in enumerate(order)]
    assert [event.layer for event in newest_pass(events, "dit-1")] == [0, 1, 2]
    assert newest_pass(events, "dit-1")[0].start_ns == 100


# ---------------------------------------------------------------------- Chrome traces


def check_chrome(document: dict) -> None:
    """The rules of the format that Perfetto insists on: known phases, named tracks, nested slices, paired arrows."""
    json.dumps(document, allow_nan=False)
    named = set()
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    arrows: dict[int, list[dict]] = {}
    for event in document["traceEvents"]:
        assert event["ph"] in "MXCsf" and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            named.add((event["pid"], event["tid"], event["name"]))
            continue
        assert isinstance(event["ts"], float) and event["name"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "sf":
            assert isinstance(event["id"], int), "Perfetto reads no other ids, and leaves such arrows out"
            arrows.setdefault(event["id"], []).append(event)
        else:
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
    for (pid, tid), mine in slices.items():
        assert (pid, tid, "thread_name") in named and (pid, 0, "process_name") in named
        stack: list[float] = []
        for start, end in sorted(mine, key=lambda one: (one[0], -one[1])):
            while stack and stack[-1] <= start + 1e-6:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-6, f"slices of track {tid} overlap"
            stack.append(end)
    for pair in arrows.values():
        begin, end = pair
        assert (begin["ph"], end["ph"], end["bp"]) == ("s", "f", "e") and begin["ts"] <= end["ts"]
        for one in pair:  # an arrow is tied to the slice that it touches
            assert any(a <= one["ts"] <= b for a, b in slices[one["pid"], one["tid"]])


def test_a_chrome_trace_keeps_the_rules_and_can_be_read_back() -> None:
    events = [*_events(), Event("pass", "vae-1", None, 10, 90, 5), Event("evict", "dit-1", 1, 50, 50, 1000)]
    sources = [DIT, Source("vae-1", "vae", "cuda:1"), Source("dit-9", "dit", "cuda:0", ("x",))]
    document = chrome_trace(events, sources)
    check_chrome(document)
    tracks = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"}
    assert tracks == {"compute", "copy", "host"}
    assert sum(e["ph"] == "s" for e in document["traceEvents"]) == 2
    counters = [e["args"]["bytes"] for e in document["traceEvents"] if e["ph"] == "C"]
    assert counters == [1000, 2000]
    read, known = events_from_chrome(json.loads(json.dumps(document)))
    assert sorted(read) == sorted(events) and [source.id for source in known] == ["dit-1", "vae-1"]
    assert known[0] == DIT


def test_clock_readings_that_overlap_are_cut() -> None:
    """Random intervals on every track, as no device would make them: the document is still valid."""
    rng = random.Random(3)
    for _ in range(30):
        events = []
        for _ in range(40):
            start = rng.randrange(500)
            kind = rng.choice(["visit", "copy", "stall", "pass", "evict", "plan"])
            events.append(Event(kind, "dit-1", rng.randrange(2), start, start + rng.randrange(60), 10))
        check_chrome(chrome_trace(events, [DIT]))


@pytest.mark.parametrize(
    "document",
    [[], {}, {"traceEvents": []}, {"traceEvents": [], "otherData": {"schema": 2}}]
    + [{"traceEvents": [{"ph": "X"}], "otherData": {"schema": 1, "components": []}}]
    + [{"traceEvents": [3], "otherData": {"schema": 1, "components": []}}],
)
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(PlanError, match="^trace: "):
        events_from_chrome(document)


# ---------------------------------------------------------------------- a plan's trace


def test_the_trace_of_a_plan_is_what_the_simulator_says() -> None:
    request = PlanRequest(inventory=flux(800), device="cuda:0", budget_bytes=8 * GB, h2d_bytes_per_s=25e9, passes=20)
    plan = make_plan(request)
    times, _ = compute_times(request.inventory)
    result = simulate(plan, times, 25e9)
    events = steady_events(plan, times, 25e9, "dit-plan")
    visits = [e for e in events if e.kind == "visit"]
    assert visits[-1].end_ns == result.pass_ns
    assert sum(e.end_ns - e.start_ns for e in events if e.kind == "stall") == result.stall_ns
    within = [e for e in events if e.kind == "copy" and 0 <= e.start_ns < result.pass_ns]
    assert sum(e.nbytes for e in within) == result.bytes_per_pass


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "offload_core", "trace", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=60, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    layers = [{"name": f"b.{i}", "bytes": 10**9, "compute_ns": 20_000_000} for i in range(8)]
    request = {"schema": 1, "component": "dit", "layers": layers, "budget_bytes": 4 * GB, "h2d_bytes_per_s": 25e9}
    made = run("--simulate", stdin=json.dumps(request).encode())
    assert made.returncode == 0, made.stderr
    check_chrome(json.loads(made.stdout))
    saved = tmp_path / "trace.json"
    saved.write_bytes(made.stdout)
    text = run(str(saved)).stdout.decode()
    assert "dit-plan: dit on cuda:0, 8 layers" in text and "GB at 25.00 GB/s" in text
    assert json.loads(run(str(saved), "--json").stdout)["components"][0]["visits"] == 8
    lines = run(str(saved), "--csv").stdout.decode().splitlines()
    assert lines[0] == "id,component,kind,layer,start_ns,end_ns,bytes" and any(",visit,b.7," in line for line in lines)
    for arguments in ((), (str(saved), "--simulate"), (str(tmp_path / "none.json"),), (str(saved), "--json", "--csv")):
        refused = run(*arguments)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, arguments


def test_constants_are_the_kinds() -> None:
    trace = Trace(8)
    source = trace.add_source(DIT)
    for kind in (VISIT, STALL, COPY):
        trace.append(kind, source, None, 0, 0)
    assert [e.kind for e in trace.since()[0]] == ["visit", "stall", "copy"]
