"""The `plan` command in a fresh, isolated interpreter: what goes in, what comes out, how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offload_core.cli.plan import request_from_json
from offload_core.errors import PlanError
from offload_core.planning.check import check_plan
from offload_core.planning.plan import Plan

ROOT = Path(__file__).parents[2]
REQUEST: dict[str, Any] = {
    "schema": 1,
    "component": "dit",
    "layers": [{"name": f"b.{i}", "bytes": 679_500_000, "compute_ns": 6_900_000} for i in range(20)],
    "visits": list(range(20)),
    "loose_bytes": 0,
    "budget_bytes": 8_000_000_000,
    "h2d_bytes_per_s": 54_000_000_000,
    "passes": 50,
}


def run(stdin: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "offload_core", "plan", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=60, check=False)


def test_a_plan_comes_out() -> None:
    result = run(json.dumps(REQUEST).encode())
    assert (result.returncode, result.stderr) == (0, b"")
    plan = Plan.from_json(json.loads(result.stdout))
    assert check_plan(plan, request_from_json(REQUEST).inventory, 8_000_000_000) == []
    assert plan.predicted.pass_ns >= 20 * 6_900_000


def test_text_for_people() -> None:
    result = run(json.dumps(REQUEST).encode(), "--text")
    assert result.returncode == 0 and b"b.0 .. 19 (20)" in result.stdout


def test_copies_on_another_device_are_asked_for_like_all_else() -> None:
    peer = {"peer_device": "cuda:1", "peer_budget_bytes": 2_000_000_000, "peer_bytes_per_s": 60_000_000_000}
    plan = json.loads(run(json.dumps({**REQUEST, **peer}).encode()).stdout)
    assert plan["peer_device"] == "cuda:1"
    assert [layer["host_tier"] for layer in plan["layers"]].count("peer") == 2
    trace = subprocess.run(
        [sys.executable, "-m", "offload_core", "trace", "--simulate"],
        input=json.dumps({**REQUEST, **peer}).encode(), capture_output=True, cwd=ROOT, timeout=60, check=True,
    )  # fmt: skip
    took = {event["dur"] for event in json.loads(trace.stdout)["traceEvents"] if event.get("cat") == "copy"}
    assert {round(us) for us in took} == {11_325, 12_583}  # 679.5 MB at 60 and at 54 GB/s
    nothing = json.loads(run(json.dumps({**REQUEST, **dict.fromkeys(peer)}).encode()).stdout)
    assert nothing == json.loads(run(json.dumps(REQUEST).encode()).stdout)


def test_the_issues_own_example() -> None:
    example = {**REQUEST, "layers": REQUEST["layers"][:1], "visits": [0]}
    plan = json.loads(run(json.dumps(example).encode()).stdout)
    assert plan["layers"][0]["placement"] == "resident" and plan["ring_bytes"] == 0


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", "request: not valid JSON"),
        (b"\xff\xfe", "request: not UTF-8"),
        (b"[" * 100_000, "request: nested too deeply"),
        (b'{"schema": 1, "schema": 1}', "field: got 'schema'; allowed: each field once"),
        (b'{"schema":1,"component":"dit","layers":[{"name":"b","bytes":NaN}]}', "bytes of layer b: got nan"),
    ],
)
def test_refusals_are_one_line_and_exit_two(stdin: bytes, words: str) -> None:
    result = run(stdin)
    assert result.returncode == 2 and result.stdout == b""
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1 and words in lines[0]


def test_a_budget_too_small_names_the_field_and_what_works() -> None:
    result = run(json.dumps({**REQUEST, "budget_bytes": 1000}).encode())
    assert result.returncode == 2
    assert b"budget_bytes: got 1000; allowed: 679500288 or more" in result.stderr


BAD: list[tuple[dict[str, Any], str]] = [
    ({"schema": 2}, "schema: got 2; allowed: 1"),
    ({"schema": "1"}, "schema: got '1'"),
    ({"component": None}, "component: got None"),
    ({"component": "x" * 2000}, "component: got 'xxx"),
    ({"layers": None}, "layers: got None; allowed: a list"),
    ({"layers": "abc"}, "layers: got 'abc'"),
    ({"layers": [1]}, r"layers\[0\]: got 1; allowed: a JSON object"),
    ({"layers": [{}]}, r"layers\[0\].name: missing"),
    ({"layers": [{"name": "a"}]}, r"layers\[0\].bytes: missing"),
    ({"layers": [{"name": "a", "bytes": -5}]}, r"layers\[0\]: bytes of layer a: got -5; allowed: an integer from 0"),
    ({"layers": [{"name": "a", "bytes": 1.5}]}, "got 1.5"),
    ({"layers": [{"name": "a", "bytes": "9"}]}, "got '9'"),
    ({"layers": [{"name": "a", "bytes": 10**30}]}, "got 1000000000000000000000000000000"),
    ({"layers": [{"name": "a", "bytes": float("inf")}]}, "got inf"),
    ({"layers": [{"name": ["a"], "bytes": 1}]}, r"layer name: got \['a'\]"),
    ({"layers": [{"name": "a", "bytes": 1, "compute_ns": -1}]}, "compute_ns of layer a: got -1"),
    ({"layers": [{"name": "a", "bytes": 1, "compute_ms": 1}]}, r"layers\[0\] field: got 'compute_ms'; allowed: name"),
    ({"layers": [{"name": "a", "bytes": 1}] * 2, "visits": None}, "layer name: got 'a'; allowed: each name once"),
    ({"visits": [20]}, r"visits\[0\]: got 20; allowed: an integer from 0 to 19"),
    ({"visits": [True]}, r"visits\[0\]: got True"),
    ({"visits": 0}, "visits: got 0; allowed: a list"),
    ({"loose_bytes": -1}, "loose_bytes: got -1"),
    ({"budget_bytes": -1}, "budget_bytes: got -1"),
    ({"budget_bytes": float("nan")}, "budget_bytes: got nan"),
    ({"budget_bytes": "8GB"}, "budget_bytes: got '8GB'"),
    ({"ring_bytes": 1e9}, "ring_bytes: got 1000000000.0"),
    ({"h2d_bytes_per_s": 0}, "h2d_bytes_per_s: got 0"),
    ({"h2d_bytes_per_s": -1.5}, "h2d_bytes_per_s: got -1.5"),
    ({"h2d_bytes_per_s": float("inf")}, "h2d_bytes_per_s: got inf"),
    ({"peer_device": 1}, "peer_device: got 1"),
    ({"peer_device": "cuda:0"}, "peer_device: got 'cuda:0'; allowed: another device than cuda:0"),
    ({"peer_budget_bytes": 5}, "peer_budget_bytes: got 5; allowed: 0 without a peer_device"),
    ({"peer_device": "cuda:1", "peer_budget_bytes": 0.5}, "peer_budget_bytes: got 0.5"),
    ({"peer_device": "cuda:1", "peer_bytes_per_s": -1}, "peer_bytes_per_s: got -1"),
    ({"passes": 0}, "passes: got 0; allowed: an integer from 1"),
    ({"placement": "cpu"}, "placement: got 'cpu'; allowed: layerwise or resident"),
    ({"keep_residents": 1.0}, "keep_residents: got 1.0"),
    ({"device": 0}, "device: got 0"),
    ({"budget_byte": 5}, "request field: got 'budget_byte'; allowed: schema, component"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_fields_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        request_from_json({**REQUEST, **changes})


@pytest.mark.parametrize("value", [None, 5, "x", [], [REQUEST]])
def test_the_request_is_an_object(value: object) -> None:
    with pytest.raises(PlanError, match="request: got"):
        request_from_json(value)
