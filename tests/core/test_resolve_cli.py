"""``python -m offload_core resolve``: the request and answer of schema 1, and hostile input."""

from __future__ import annotations

import argparse
import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.cli.resolve import add_parser, parse_request, request_from_json, run
from offload_core.errors import OffloadError, SettingsError
from offload_core.settings.resolver import resolve

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
GOOD: dict[str, Any] = {
    "schema": 1,
    "mode": "auto",
    "components": {
        "dit": {"bytes": 12 * GB},
        "text_encoder": {"bytes": 9 * GB},
        "vae": {"bytes": GB // 4},
        "audio_vae": {"bytes": GB // 4},
    },
    "selection": None,
    "explicit": [{"source": "node", "component": "text_encoder", "setting": "placement", "value": "whole"}],
    "device": {"kind": "cuda", "total_bytes": 24 * GB, "free_bytes": 23 * GB},
    "host": {"available_bytes": 64 * GB},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The good request with one value replaced; a path such as ``explicit.0.value``."""
    request = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    at: Any = request
    for step in parents:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return request


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def ran(data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(dest="command", required=True))
    status = run(parser.parse_args(["resolve"]))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_request_of_the_issue(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ran(json.dumps(GOOD).encode(), monkeypatch, capsys)
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert set(answer) == {"components", "warnings", "notices"}
    assert list(answer["components"]) == list(GOOD["components"])
    assert answer["components"]["text_encoder"]["placement"] == {
        "value": "whole",
        "source": "node",
        "reason": "set by the node's own widget",
        "why": {"code": "set_by", "values": {"source": {"code": "source_node", "values": {}}}},
    }
    found = {name: entry["placement"]["value"] for name, entry in answer["components"].items()}
    assert found == {"dit": "layerwise", "text_encoder": "whole", "vae": "layerwise", "audio_vae": "whole"}
    assert answer["warnings"] == answer["notices"] == []


def test_as_a_command() -> None:
    command = [sys.executable, "-B", "-m", "offload_core", "resolve"]
    good = subprocess.run(command, input=json.dumps(GOOD).encode(), capture_output=True, cwd=ROOT, timeout=60)
    assert (good.returncode, good.stderr) == (0, b"")
    assert json.loads(good.stdout)["components"]["vae"]["placement"]["source"] == "policy"
    bad = json.dumps(changed("mode", "fast\u2028er")).encode()
    refused = subprocess.run(command, input=bad, capture_output=True, cwd=ROOT, timeout=60)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert refused.stderr.count(b"\n") == 1 and b"fast" in refused.stderr


@pytest.mark.parametrize("absent", ["mode", "selection", "explicit", "device", "host"])
def test_what_may_be_left_out(absent: str) -> None:
    request = {name: value for name, value in GOOD.items() if name != absent}
    resolve(request_from_json(request))
    if absent not in ("mode", "explicit"):
        assert request_from_json(request) == request_from_json({**request, absent: None})


def test_names_are_normalised() -> None:
    request = changed("components", {"Text-Encoder": {"bytes": 5}, " VAE ": {"bytes": 6}})
    request["explicit"][0]["component"] = "TEXT-encoder"
    answer = resolve(request_from_json(request))
    assert list(answer.components) == ["text_encoder", "vae"]
    assert answer.components["text_encoder"].source("placement") == "node"


def test_the_order_of_the_answer_does_not_depend_on_the_order_of_the_request() -> None:
    turned = changed("components", dict(reversed(GOOD["components"].items())))
    assert json.dumps(resolve(request_from_json(turned)).to_json()) == json.dumps(
        resolve(request_from_json(GOOD)).to_json()
    )


def test_bytes_may_be_spelt_as_integral_fractions_and_a_bom_is_no_trouble() -> None:
    data = b"\xef\xbb\xbf" + json.dumps(changed("components.dit.bytes", 12e9)).encode()
    assert parse_request(data) == parse_request(json.dumps(GOOD).encode())


def test_optional_facts_about_a_component() -> None:
    part = {"bytes": GB, "smallest_bytes": GB // 2, "streamable": False, "why_not": "no repeated blocks"}
    (component,) = request_from_json({"schema": 1, "components": {"dit": part}}).components
    assert (component.smallest_bytes, component.streamable, component.why_not) == (GB // 2, False, "no repeated blocks")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema", 2, "schema = 2"),
        ("schema", True, "schema = True"),
        ("schema", "1", "schema = '1'"),
        ("schema", None, "schema = None"),
        ("mode", "fast", "'fast'"),
        ("mode", None, "None"),
        ("mode", ["auto"], "['auto']"),
        ("modus", "auto", "'modus'"),
        ("components", None, "components = None"),
        ("components", [], "components = []"),
        ("components.dit", 5, "components.dit = 5"),
        ("components.dit", {}, "components.dit = {}"),
        ("components.dit", {"bytes": 1, "size": 2}, "'size'"),
        ("components.dit.bytes", -1, "components.dit.bytes = -1"),
        ("components.dit.bytes", 1.5, "1.5"),
        ("components.dit.bytes", "12 GB", "'12 GB'"),
        ("components.dit.bytes", None, "components.dit.bytes = None"),
        ("components.dit.bytes", True, "components.dit.bytes = True"),
        pytest.param("components.dit.bytes", 10**4000, "an integer of", id="huge"),
        ("components.dit.smallest_bytes", -5, "-5"),
        ("components.dit.streamable", 1, "streamable = 1"),
        ("components.dit.why_not", "a\nb", r"a\nb"),
        ("components.dit.why_not", "\u202egnp", "u202e"),
        ("components.DIT", {"bytes": 1}, "'DIT'"),
        ("components.all", {"bytes": 1}, "'all'"),
        ("components.default", {"bytes": 1}, "'default'"),
        ("components.", {"bytes": 1}, "''"),
        ("components.../etc", {"bytes": 1}, "/etc"),
        ("selection", "vocodr", "'vocodr'"),
        ("selection", ["dit", 3], "selection = 3"),
        ("selection", 3, "selection = 3"),
        ("selection", {"dit": True}, "selection = {'dit': True}"),
        ("selection", False, "selection = False"),
        ("selection", "image_encoder", "'image_encoder'"),
        ("explicit", None, "explicit = None"),
        ("explicit", {}, "explicit = {}"),
        ("explicit.0", "node", "explicit[0] = 'node'"),
        ("explicit.0", {"source": "node"}, "lacks component"),
        ("explicit.0.why", 1, "'why'"),
        ("explicit.0.source", "policy", "'policy'"),
        ("explicit.0.source", "selection", "'selection'"),
        ("explicit.0.source", "me", "'me'"),
        ("explicit.0.source", None, "explicit[0].source = None"),
        ("explicit.0.component", "clip", "'clip'"),
        ("explicit.0.component", 7, "explicit[0].component = 7"),
        ("explicit.0.component", "", "''"),
        ("explicit.0.setting", "placment", "'placment'"),
        ("explicit.0.setting", ["placement"], "explicit[0].setting = ['placement']"),
        ("explicit.0.value", "banana", "text_encoder.placement = 'banana'"),
        ("explicit.0.value", None, "text_encoder.placement = None"),
        ("explicit.0.value", {"a": [1]}, "{'a': [1]}"),
        ("explicit.0.value", "x" * 100_000, "xxx"),
        ("device", "cuda", "device = 'cuda'"),
        ("device.kind", "toaster", "'toaster'"),
        ("device.kind", None, "device.kind = None"),
        ("device.total_bytes", 0, "device.total_bytes = 0"),
        ("device.total_bytes", "24", "'24'"),
        ("device.free_bytes", 25 * GB, "device.free_bytes = 25000000000"),
        ("device.free_bytes", -1, "device.free_bytes = -1"),
        ("device.count", 1, "'count'"),
        ("device.name", "x", "'name'"),
        ("host", 5, "host = 5"),
        ("host.available_bytes", -1, "host.available_bytes = -1"),
        ("host.total", 1, "'total'"),
    ],
)
def test_bad_input_names_the_offending_value(
    path: str, value: object, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.startswith("components.."):
        request = copy.deepcopy(GOOD)
        request["components"][path.partition(".")[2]] = value
    else:
        request = changed(path, value)
    status, out, err = ran(json.dumps(request).encode(), monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert named in err
    assert err.startswith("offload_core resolve: asked ") and err.endswith("\n") and err.count("\n") == 1
    assert err.isascii() and len(err) < 600


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "not JSON"),
        (b"null", "None"),
        (b"[]", "[]"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"schema": 1, "schema": 1}', "'schema'"),
        (b'{"schema": 1, "components": {"dit": {"bytes": 1}, "dit": {"bytes": 2}}}', "'dit'"),
        (b'{"schema": 1, "components": {"dit": {"bytes": NaN}}}', "NaN"),
        (b'{"schema": 1, "components": {"dit": {"bytes": -Infinity}}}', "-Infinity"),
        (b'{"schema": 1, "components": {"dit": {"bytes": 1e999}}}', "inf"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
        pytest.param(b'{"schema": 1, "x": ' + b"9" * 5000 + b"}", "not JSON", id="digits"),
        pytest.param(b" " * (4 << 20) + b"{}", "too long", id="too long"),
        pytest.param(
            json.dumps({"schema": 1, "components": {f"part_{i}": {"bytes": 1} for i in range(300)}}).encode(),
            "300",
            id="many components",
        ),
        pytest.param(json.dumps({**GOOD, "explicit": GOOD["explicit"] * 5000}).encode(), "5000", id="many wishes"),
    ],
)
def test_hostile_documents(
    data: bytes, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ran(data, monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert named in err and err.count("\n") == 1 and err.isascii()


def test_what_is_asked_for_but_impossible_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = changed("explicit.0.value", "resident")
    request["device"] = {"kind": "cuda", "total_bytes": 8 * GB, "free_bytes": 8 * GB}
    status, _out, err = ran(json.dumps(request).encode(), monkeypatch, capsys)
    assert status == 2
    assert err == (
        "offload_core resolve: asked text_encoder.placement = resident (the node's own widget); found 9.00 GB of "
        "weights and a device of 8.00 GB; do choose layerwise or auto\n"
    )


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["dit", "all", "node"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
PATHS = st.sampled_from(
    [
        "schema",
        "mode",
        "components",
        "components.dit",
        "components.dit.bytes",
        "components.dit.smallest_bytes",
        "selection",
        "explicit",
        "explicit.0",
        "explicit.0.source",
        "explicit.0.component",
        "explicit.0.setting",
        "explicit.0.value",
        "device",
        "device.kind",
        "device.total_bytes",
        "device.free_bytes",
        "host",
        "host.available_bytes",
    ]
)


@settings(max_examples=300, deadline=None, database=None)
@given(PATHS, VALUES)
def test_any_value_anywhere_is_an_answer_or_a_refusal(path: str, value: object) -> None:
    try:
        answer = resolve(request_from_json(changed(path, value)))
    except OffloadError as error:
        assert "\n" not in str(error) and str(error).isascii() and len(str(error)) < 600
    else:
        json.dumps(answer.to_json(), allow_nan=False)


@settings(max_examples=200, deadline=None, database=None)
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_a_refusal(data: bytes) -> None:
    with pytest.raises(SettingsError):
        parse_request(data)
