"""What the recorder writes is what the lanes did; it does nothing unless asked for."""

from __future__ import annotations

import json

import pytest
import torch

from offload_core.planning.simulate import simulate, steady_events
from offload_core.runtime.device.clock import DeviceClock
from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.layers.recorder import Recorder
from offload_core.trace.events import Event, Trace, newest_pass
from offload_core.trace.trace_export import chrome_trace
from tests.core.test_trace import check_chrome
from tests.runtime.test_virtual_clock import RATE, Bench
from tests.runtime.world import World, hand_plan

KILOBYTES = [8, 4, 8, 4, 8, 4]
COMPUTE = [9_000, 2_000, 5_000, 9_000, 1_000, 3_000]


def recording(watched: bool = False, ring_kilobytes: int = 14) -> tuple[Bench, Trace]:
    bench = Bench(KILOBYTES, COMPUTE)
    trace = Trace()
    trace.watched = watched
    bench.controller.record(trace, "dit-1")
    largest = max(layer.nbytes for layer in bench.controller.layers)
    bench.controller.load(hand_plan(bench.controller, 2 * largest))
    return bench, trace


def of_device(events: list[Event]) -> list[Event]:
    return [e for e in events if e.kind in ("visit", "stall", "copy")]


@pytest.mark.parametrize("watched", [False, True])
def test_events_are_what_the_simulator_says_to_the_nanosecond(watched: bool) -> None:
    """Engine, recorder and simulator agree on every visit, stall and copy of a steady pass."""
    bench, trace = recording(watched)
    for _ in range(10):  # the last one that is measured anyway is the ninth
        bench.pass_()
    bench.controller.prefetcher.read_times()
    plan = bench.controller.plan
    assert plan is not None
    measured = newest_pass(trace.since()[0], "dit-1")
    begin = min(e.start_ns for e in measured if e.kind != "copy")
    expected = steady_events(plan, COMPUTE, RATE, "dit-1")
    first = min(e.start_ns for e in expected if e.kind != "copy")

    def shifted(events: list[Event], by: int) -> set[Event]:
        return {e._replace(start_ns=e.start_ns - by, end_ns=e.end_ns - by) for e in events}

    ours, theirs = shifted(measured, begin), shifted(expected, first)
    for kind in ("visit", "stall"):
        assert {e for e in ours if e.kind == kind} == {e for e in theirs if e.kind == kind}
    assert any(e.kind == "stall" for e in ours), "a plan that stalls, or this shows little"
    copies, predicted = ({e for e in one if e.kind == "copy"} for one in (ours, theirs))
    assert copies and copies <= predicted
    assert len(copies) >= (len(KILOBYTES) if watched else len(KILOBYTES) - 2)


def test_watched_passes_are_all_measured() -> None:
    bench, trace = recording(watched=True)
    for _ in range(12):
        bench.pass_()
    bench.controller.prefetcher.read_times()
    events, _ = trace.since()
    assert sum(e.kind == "visit" for e in events) == 12 * len(KILOBYTES)
    assert sum(e.kind == "pass" for e in events) == 12
    counters = bench.controller.counters
    assert sum(e.nbytes for e in events if e.kind == "copy") == counters.timed_copy_bytes
    issued = counters.copies
    assert counters.timed_copies >= issued - 2 * len(KILOBYTES), "two copies of a layer are told apart"
    check_chrome(chrome_trace(events, trace.sources()))


def test_a_copy_ends_before_its_visit_and_begins_after_the_last_use_of_its_bytes() -> None:
    """On a device that takes time to record an event, as all do: a lane goes on as soon as what it waits for has been
    recorded, so what measures has to be recorded before that. Else Perfetto shows no arrow from the copy."""
    bench, trace = recording(watched=True)
    bench.port.record_ns = 10
    for _ in range(6):
        bench.pass_()
    bench.controller.prefetcher.read_times()
    events, _ = trace.since()
    visits, copies = ([e for e in events if e.kind == kind] for kind in ("visit", "copy"))
    layers = bench.controller.layers
    used = 0
    for copy in copies:
        assert copy.layer is not None
        later = [visit.start_ns for visit in visits if visit.layer == copy.layer and visit.end_ns > copy.start_ns]
        used += bool(later)
        assert not later or min(later) >= copy.end_ns
        before = {other.index for other in layers[copy.layer].overlaps}
        for visit in visits:
            if visit.layer in before and visit.start_ns < copy.start_ns:
                assert visit.end_ns <= copy.start_ns
    arrows = sum(record["ph"] == "s" for record in chrome_trace(events, trace.sources())["traceEvents"])
    assert arrows == used >= 4 * len(KILOBYTES)


def test_copies_are_told_apart_when_the_host_is_a_pass_ahead(monkeypatch) -> None:
    """Nothing of a pass can be read before it is over: look-ahead has issued the next copy of most layers by then."""
    bench, trace = recording(watched=True)
    port, elapsed, reached = bench.port, bench.port.elapsed_ns, 0
    monkeypatch.setattr(port, "elapsed_ns", lambda a, b: None if max(a.ns or 0, b.ns or 0) > reached else elapsed(a, b))
    for _ in range(12):
        reached = port.compute_ns
        bench.pass_()
    reached = port.compute_ns + 10**9
    bench.controller.prefetcher.read_times()
    copies = [e for e in trace.since()[0] if e.kind == "copy"]
    assert len(copies) >= bench.controller.counters.copies - 2 * len(KILOBYTES)
    assert len({e.start_ns for e in copies}) == len(copies)


def test_unwatched_passes_are_measured_now_and_then() -> None:
    bench, trace = recording()
    for _ in range(16):
        bench.pass_()
    bench.controller.prefetcher.read_times()
    visits = sum(e.kind == "visit" for e in trace.since()[0])
    assert visits == 3 * len(KILOBYTES), "the first two, and the ninth"


def test_device_times_go_on_when_the_clock_changes_its_mark(monkeypatch) -> None:
    monkeypatch.setattr("offload_core.runtime.device.clock._TICK_NS", 0)
    bench, trace = recording(watched=True)
    for _ in range(6):
        bench.pass_()
    bench.controller.prefetcher.read_times()
    visits = [e for e in trace.since()[0] if e.kind == "visit"]
    lasting = [e.end_ns - e.start_ns for e in visits]
    assert lasting == COMPUTE * 6
    total = bench.port.compute_ns
    assert visits[-1].end_ns - visits[0].start_ns <= total
    assert visits[-1].end_ns - visits[0].start_ns >= total - 20_000, "all but the first copy"
    assert all(a.end_ns <= b.start_ns for a, b in zip(visits, visits[1:]))


def test_a_clock_that_was_never_set_and_a_device_without_times_say_nothing() -> None:
    bench, _ = recording()
    clock = DeviceClock(bench.port)
    assert clock.ns(bench.port.event(timed=True)) is None
    clock.tick()
    assert clock.ns(bench.port.event(timed=True)) is None, "an event that was never reached"


def test_plans_and_evictions_are_recorded() -> None:
    bench, trace = recording()
    controller = bench.controller
    ring = controller.plan.ring_bytes
    controller.load(hand_plan(controller, ring, residents=[2]))
    controller.load(hand_plan(controller, ring))
    held = controller.device_bytes()
    controller.unload()
    controller.unload()
    events = [(e.kind, e.layer, e.nbytes) for e in trace.since()[0]]
    assert [e[0] for e in events] == ["plan", "plan", "evict", "plan", "evict"]
    assert events[2] == ("evict", 2, controller.layers[2].nbytes) and events[4] == ("evict", None, held)


def test_a_failed_pass_is_recorded_and_leaves_the_recorder_in_order() -> None:
    with World() as world, torch.no_grad():
        component = world.add([8, 8, 8, 8])
        trace = Trace()
        trace.watched = True
        component.controller.record(trace, "dit-1")
        component.load(2 * component.controller.layers[0].nbytes)
        world.port.measures_ns = 1000
        component.fail(at=2, error=RuntimeError)
        component.run()
        component.run()
        component.controller.prefetcher.read_times()
        events, _ = trace.since()
        assert sum(e.kind == "pass" for e in events) == 3
        assert sum(e.kind == "visit" for e in events) >= 8
        json.dumps(chrome_trace(events, trace.sources()))


def test_layer_states_in_one_character() -> None:
    bench, _ = recording()
    controller = bench.controller
    ring = controller.plan.ring_bytes
    controller.unload()
    assert controller.layer_states() == "OOOOOO"
    controller.load(hand_plan(controller, ring, residents=[1]))
    assert controller.layer_states() == "OrOOOO"
    seen = []
    inner = bench._visited

    def visited(block) -> None:
        seen.append(controller.layer_states())
        inner(block)

    bench._visited = visited
    bench.pass_()
    assert seen[0][0] == "U" and "F" in seen[0]
    assert seen[1][1] == "U" and seen[2][1] == "R"
    assert all(state.count("U") == 1 for state in seen)
    controller.prefetcher.look_ahead.forget()
    assert "C" in controller.layer_states() and controller.layer_states()[1] == "R"


class Counting(Prefetcher):
    """Counts how often the recorder is looked for."""

    looks = 0

    @property
    def recorder(self):
        Counting.looks += 1
        return None

    @recorder.setter
    def recorder(self, value) -> None:
        pass


def test_without_a_recorder_a_visit_asks_for_it_at_most_once(monkeypatch) -> None:
    """Counted, not timed: no look in an ordinary visit, one in a measured one; three in a pass."""
    monkeypatch.setattr("offload_core.runtime.engine.controller.Prefetcher", Counting)
    bench = Bench(KILOBYTES, COMPUTE)
    largest = max(layer.nbytes for layer in bench.controller.layers)
    bench.controller.load(hand_plan(bench.controller, 2 * largest))
    looks = []
    for _ in range(8):
        Counting.looks = 0
        bench.pass_()
        looks.append(Counting.looks)
    copies = len(KILOBYTES)
    assert looks[4:] == [3] * 4, "unmeasured passes"
    assert max(looks) <= 3 + len(KILOBYTES) + 2 * copies


def test_recording_does_not_change_what_the_engine_does() -> None:
    """The same copies at the same virtual times, recorded or not."""
    results = []
    for watched in (None, False, True):
        bench = Bench(KILOBYTES, COMPUTE)
        if watched is not None:
            trace = Trace()
            trace.watched = watched
            bench.controller.record(trace, "dit-1")
        largest = max(layer.nbytes for layer in bench.controller.layers)
        results.append(bench.measure(hand_plan(bench.controller, 2 * largest)))
    assert results[0] == results[1] == results[2]
    assert results[0].pass_ns == simulate(bench.controller.plan, COMPUTE, RATE).pass_ns


def test_a_recorder_is_made_by_record() -> None:
    bench, trace = recording()
    assert isinstance(bench.controller.prefetcher.recorder, Recorder)
    assert [source.layers for source in trace.sources()] == [tuple(layer.name for layer in bench.controller.layers)]
