"""The document of measured times: what is written is read, what is old goes, and nothing in a text is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.errors import PlanError
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.measured_times import (
    MAX_DOCUMENT_BYTES,
    MAX_ENTRIES,
    TIMES_NOTE,
    FileState,
    MeasuredTimes,
    TimesKey,
    from_text,
    layers_digest,
    to_text,
    with_earlier_rate,
    with_earlier_times,
    with_entry,
)
from offload_core.planning.planner import make_plan, smallest_budget
from offload_core.planning.request import PlanRequest
from tests.core.shapes import GB, flux, inventories

KEY = TimesKey(
    (FileState("flux.safetensors", 12 * GB, 1_764_000_000_123_456_789),),
    "dit",
    "cuda:0 NVIDIA H200 : native",
    (1, 16, 128, 128),
    ("2.9.0", "0.30.0", "0.1.0"),
    layers_digest(flux(500)),
)
PEER = "cuda:1 NVIDIA H200 : native"
TIMES = MeasuredTimes((5, None, 7), (0, 2, 0), 2.5e10, {PEER: 4e10})

names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1).filter(str.isprintable)
files = st.builds(FileState, names, st.integers(0, 1 << 50), st.integers(-(10**18), 10**19 - 10**18))
keys = st.builds(
    TimesKey,
    st.lists(files, min_size=1, max_size=3).map(tuple),
    names,
    names,
    st.lists(st.integers(0, 1 << 20), min_size=1, max_size=5).map(tuple),
    st.tuples(names, names, names),
    names,
)


@st.composite
def times(draw: st.DrawFn) -> MeasuredTimes:
    visited = draw(st.lists(st.integers(0, 10**15), min_size=1, max_size=8))
    visits = draw(st.lists(st.integers(0, len(visited) - 1), min_size=1, max_size=20))
    rates = st.floats(1, 1e15)
    by_peer = draw(st.dictionaries(names, rates, max_size=3))
    return MeasuredTimes((*visited, None), tuple(visits), draw(st.none() | rates), by_peer)


@settings(deadline=None)
@given(st.lists(st.tuples(keys, times()), max_size=6))
def test_what_is_written_is_read(entries: list[tuple[TimesKey, MeasuredTimes]]) -> None:
    kept: dict[TimesKey, MeasuredTimes] = {}
    for key, value in entries:
        kept = with_entry(kept, key, value)
    text = to_text(kept)
    assert text.isascii()
    assert list(from_text(text).items()) == list(kept.items())


def numbered(count: int) -> dict[TimesKey, MeasuredTimes]:
    return {replace(KEY, shape=(1, number)): TIMES for number in range(count)}


def test_the_least_recently_measured_goes_first() -> None:
    kept: dict[TimesKey, MeasuredTimes] = {}
    for key, value in numbered(MAX_ENTRIES).items():
        kept = with_entry(kept, key, value)
    oldest, second, *_ = kept
    kept = with_entry(kept, oldest, replace(TIMES, h2d_bytes_per_s=None))  # measured again
    kept = with_entry(kept, replace(KEY, kind="controlnet"), TIMES)
    assert len(kept) == MAX_ENTRIES and second not in kept
    assert kept[oldest].h2d_bytes_per_s is None
    assert len(from_text(to_text(numbered(MAX_ENTRIES + 5)))) == MAX_ENTRIES
    few = numbered(3)
    assert list(with_entry(few, list(few)[0], TIMES)) == [*list(few)[1:], list(few)[0]]


def test_a_document_has_a_size_that_is_read_again() -> None:
    large = MeasuredTimes((10**15,) * 100_000, tuple(range(100_000)), None)
    entries = {replace(KEY, shape=(number,)): large for number in range(8)}
    text = to_text(entries)
    assert len(text) <= MAX_DOCUMENT_BYTES
    kept = from_text(text)
    assert 1 < len(kept) < 8 and list(kept) == list(entries)[-len(kept) :]


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, files=(replace(KEY.files[0], name="other.safetensors"),)),
        replace(KEY, files=(replace(KEY.files[0], bytes=1),)),
        replace(KEY, files=(replace(KEY.files[0], mtime_ns=1),)),
        replace(KEY, kind="controlnet"),
        replace(KEY, device="cuda:0 NVIDIA L4 : native"),
        replace(KEY, shape=(2, 16, 128, 128)),
        replace(KEY, versions=("2.9.1", "0.30.0", "0.1.0")),
        replace(KEY, versions=("2.9.0", "0.30.1", "0.1.0")),
        replace(KEY, versions=("2.9.0", "0.30.0", "0.1.1")),
        replace(KEY, layers=layers_digest(Inventory("dit", (LayerSpec("blocks.0", 679_500_000),)))),
    ],
)
def test_times_of_anything_else_are_stale(other: TimesKey) -> None:
    entries = from_text(to_text({KEY: TIMES}))
    assert entries.get(KEY) == TIMES and other not in entries


def test_a_digest_is_of_names_and_bytes() -> None:
    layers = flux(500).layers
    changed = [replace(layers[3], bytes=1), replace(layers[3], name="blocks.x")]
    digests = {layers_digest(Inventory("dit", (*layers[:3], layer, *layers[4:]))) for layer in (layers[3], *changed)}
    assert len(digests) == 3
    assert layers_digest(flux(900)) == layers_digest(flux(500)), "times are not in it"


def spoilt(change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(to_text({KEY: TIMES}))
    change(document)
    return json.dumps(document)


def of_key(name: str, value: object) -> str:
    return spoilt(lambda document: document["entries"][0]["key"].update({name: value}))


def of_times(name: str, value: object) -> str:
    return spoilt(lambda document: document["entries"][0]["measured"].update({name: value}))


DAMAGED = {
    "empty": "",
    "torn": to_text({KEY: TIMES})[:-60],
    "not JSON": "{'schema': 1}",
    "deep": "[" * 100_000,
    "a list": "[]",
    "another schema": spoilt(lambda document: document.update(schema=1)),
    "true for a schema": spoilt(lambda document: document.update(schema=True)),
    "no entries": '{"schema": 2}',
    "an entry that is none": spoilt(lambda document: document["entries"].append(7)),
    "a member twice": '{"schema": 2, "schema": 2, "entries": []}',
    "no file": of_key("files", []),
    "a file without size": of_key("files", [{"name": "x", "mtime_ns": 1}]),
    "a shape of texts": of_key("shape", ["1", "2"]),
    "a nested shape": of_key("shape", [[1]]),
    "no version": of_key("versions", {"torch": "2.9.0", "app": "0.30.0"}),
    "a name of two lines": of_key("device", "cuda\n0"),
    "a negative time": of_times("compute_ns", [5, None, -7]),
    "a time that is no integer": of_times("compute_ns", [5, None, 7.5]),
    "a time that is none": of_times("compute_ns", [5, None, float("nan")]),
    "no times": of_times("compute_ns", []),
    "an endless time": of_times("compute_ns", [5, None, 10**16]),
    "a visit out of range": of_times("visits", [0, 3]),
    "a negative visit": of_times("visits", [0, -1]),
    "a visit without a time": of_times("visits", [0, 1]),
    "no visits": of_times("visits", []),
    "no rate": of_times("h2d_bytes_per_s", 0),
    "a rate that is true": of_times("h2d_bytes_per_s", True),
    "an infinite rate": of_times("h2d_bytes_per_s", float("inf")),
    "a rate that is none": of_times("h2d_bytes_per_s", float("nan")),
    "rates in a list": of_times("peer_bytes_per_s", [PEER, 4e10]),
    "a rate of nothing": of_times("peer_bytes_per_s", {"": 4e10}),
    "a rate from a device that is zero": of_times("peer_bytes_per_s", {PEER: 0}),
    "a rate from a device that is true": of_times("peer_bytes_per_s", {PEER: True}),
    "a rate from a device that is no number": of_times("peer_bytes_per_s", {PEER: "fast"}),
    "rates from too many devices": of_times("peer_bytes_per_s", {f"cuda:{index}": 4e10 for index in range(65)}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_document_is_refused(name: str) -> None:
    with pytest.raises(PlanError):
        from_text(DAMAGED[name])


@settings(deadline=None)
@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        from_text(text)


def test_fields_may_be_added() -> None:
    assert from_text(of_times("energy_j", 5)) == {KEY: TIMES}


@settings(deadline=None, max_examples=30)
@given(inventories(max_layers=8))
def test_the_plan_by_earlier_times_is_the_plan_by_measured_ones(measured: Inventory) -> None:
    """First as measured in one process, then with what the document says in the next, which has measured nothing."""
    layers = tuple(replace(layer, compute_ns=layer.compute_ns or 1000) for layer in measured.layers)
    measured = replace(measured, layers=layers)
    unmeasured = replace(measured, layers=tuple(replace(layer, compute_ns=None) for layer in layers), visits=())
    kept = MeasuredTimes.of(measured, 3e9)
    assert kept is not None
    read = from_text(to_text({KEY: kept}))[KEY]
    budget = max(smallest_budget(measured), measured.total_bytes // 2)
    request = PlanRequest(measured, "cuda:0", budget, h2d_bytes_per_s=3e9, link_source="measured", passes=20)
    earlier = with_earlier_times(PlanRequest(unmeasured, "cuda:0", budget, passes=20), read)
    plan, first = make_plan(request), make_plan(earlier)
    assert replace(first, decisions=()) == replace(plan, decisions=())
    assert TIMES_NOTE in first.decisions
    assert any("(measured earlier on cuda:0)" in decision for decision in first.decisions)


def test_without_a_measured_copy_the_link_is_what_it_was() -> None:
    inventory = flux(500)
    kept = MeasuredTimes.of(inventory, None)
    assert kept is not None
    request = PlanRequest(inventory, "cuda:0", 8 * GB)
    earlier = with_earlier_times(request, kept)
    assert (earlier.h2d_bytes_per_s, earlier.link_source) == (request.h2d_bytes_per_s, request.link_source)


def test_the_rate_of_a_device_is_used_for_that_device() -> None:
    kept = MeasuredTimes.of(flux(500), 2e10, {PEER: 4e10})
    assert kept is not None
    request = PlanRequest(flux(500), "cuda:0", 8 * GB, peer_device="cuda:1", peer_budget_bytes=4 * GB)
    assert with_earlier_rate(request, kept, PEER).peer_bytes_per_s == 4e10
    assert with_earlier_rate(request, kept, "cuda:1 NVIDIA L4 : native").peer_bytes_per_s is None


def test_times_of_another_number_of_layers_are_not_used() -> None:
    request = PlanRequest(flux(500), "cuda:0", 8 * GB)
    assert with_earlier_times(request, TIMES) is request


def test_what_was_not_measured_is_not_kept() -> None:
    layers = (LayerSpec("a", 10, compute_ns=5), LayerSpec("b", 10))
    assert MeasuredTimes.of(Inventory("dit", layers), 1e9) is None
    visited = MeasuredTimes.of(Inventory("dit", layers, visits=(0, 0)), 1e9)
    assert visited == MeasuredTimes((5, None), (0, 0), 1e9)
    assert MeasuredTimes.of(Inventory("dit", ()), 1e9) is None
