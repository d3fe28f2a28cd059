"""The report's picture and text, made without a server: nothing clipped, whatever there is to show. PICTURES=dir keeps
the pictures."""

import importlib
import json
import os
import sys
import types

import pytest
from PIL import Image

from offload_core.planning.cost_model import compute_times
from offload_core.planning.planner import make_plan
from offload_core.planning.request import PlanRequest
from offload_core.planning.simulate import steady_events
from tests.core.shapes import GB, flux
from tests.support.devkit import paths


@pytest.fixture(scope="module")
def picture():
    """The module, by way of a package of another name: the root has no package that can be imported without the app."""
    package = types.ModuleType("pack_without_app")
    package.__path__ = [str(paths.ROOT)]
    sys.modules[package.__name__] = package
    yield importlib.import_module("pack_without_app.bridge.report.picture")
    for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
        del sys.modules[name]


def component(name, budget_bytes, model="flux1-dev.safetensors", **changes):
    request = PlanRequest(
        inventory=flux(300), device="cuda:0", budget_bytes=budget_bytes, h2d_bytes_per_s=25e9, passes=20
    )
    plan = make_plan(request)
    times, _ = compute_times(request.inventory)
    states = "".join("R" if layer.placement == "resident" else "O" for layer in plan.layers)
    numbers = {"stall_pct": 12.5, "bytes_per_pass": 9 * GB, "copy_bytes_per_s": 24e9, "hit_rate": 0.991}
    report = {
        "id": f"{name}-1",
        "component": name,
        "model": model,
        "device": "cuda:0",
        "loaded": True,
        "layer_states": states,
        "numbers": {**numbers, "headroom_bytes": 3 * GB},
        "plan": plan.to_json(),
        "budget_bytes": budget_bytes,
        "settings": {"placement": {"value": "layerwise", "source": "policy", "reason": ""}},
        "warnings": ["one"],
    } | changes
    return report, (steady_events(plan, times, 25e9, f"{name}-1"), True)


def document(*components, expected=(), bystanders=(), devices=1, budget_bytes=None):
    memory = {
        "ring_bytes": 2 * GB,
        "resident_bytes": 3 * GB,
        "loose_bytes": GB // 2,
        "stored_bytes": GB,
        "others_bytes": 3 * GB,
    }
    device = {"name": "cuda:0", "total_bytes": 24 * GB, "free_bytes": 24 * GB - sum(memory.values()), **memory}
    device["budget_bytes"] = budget_bytes
    host = {"pinned_bytes": 20 * GB, "pageable_bytes": 3 * GB, "mapped_bytes": 8 * GB}
    return {
        "schema": 1,
        "components": list(components),
        "expected": list(expected),
        "bystanders": list(bystanders),
        "devices": [device] * devices,
        "host": {**host, "available_bytes": 30 * GB, "total_bytes": 64 * GB},
    }


def drawn(picture, name, made, timelines=None):
    canvas = picture.draw_report(made, timelines or {})
    for text, (left, top, right, bottom) in canvas.texts:
        assert left >= 0 and top >= 0 and right <= canvas.width and bottom <= canvas.height, f"clipped: {text}"
    boxes = [(text, box) for text, box in canvas.texts if text]
    for number, (text, (left, top, right, bottom)) in enumerate(boxes):
        for other, (l2, t2, r2, b2) in boxes[number + 1 :]:
            apart = right <= l2 + 1 or r2 <= left + 1 or bottom <= t2 + 1 or b2 <= top + 1
            assert apart, f"{text!r} lies over {other!r}"
    tensor = canvas.tensor()
    if folder := os.environ.get("PICTURES"):
        Image.fromarray((tensor[0] * 255).round().byte().numpy()).save(f"{folder}/{name}.png")
    assert tensor.shape == (1, canvas.height, 1024, 3) and 0 <= tensor.min() < tensor.max() <= 1
    return canvas, tensor


def count(tensor, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int(((tensor[0] * 255).round().int() == tensor.new_tensor(wanted).int()).all(-1).sum())


def test_a_run_with_stalls_is_red_and_one_without_is_not(picture):
    report, timeline = component("dit", 6 * GB)
    _, stalled = drawn(picture, "stalls", document(report), {"dit-1": timeline})
    events, _ = timeline
    smooth = ([e for e in events if e.kind != "stall"], True)
    _, hidden = drawn(picture, "smooth", document(report), {"dit-1": smooth})
    assert count(stalled, picture.STALL) > 500 and count(hidden, picture.STALL) == 0
    assert count(stalled, picture.USE) > 5000 and count(stalled, picture.FLIGHT) > 5000


def test_more_budget_shows_more_residents(picture):
    blue = []
    for budget in (4 * GB, 20 * GB):
        report, timeline = component("dit", budget)
        _, tensor = drawn(picture, f"budget{budget}", document(report), {"dit-1": timeline})
        blue.append(count(tensor, picture.RESIDENT))
    assert blue[1] > blue[0] + 5000


def test_nothing_loaded(picture):
    canvas, _ = drawn(picture, "empty", document())
    assert any("No component has been loaded yet" in text for text, _ in canvas.texts)


def test_before_the_run_it_says_that_it_is_a_plan(picture):
    report, (events, _) = component("dit", 6 * GB)
    for gone in ("settings", "numbers", "layer_states", "loaded", "warnings"):
        del report[gone]
    canvas, _ = drawn(picture, "before", document(expected=[report]), {"dit-1": (events, False)})
    words = " ".join(text for text, _ in canvas.texts)
    assert "as the simulator expects it" in words and "as planned" in words and "not loaded yet" in words


def test_long_names_many_components_and_what_cannot_be_planned(picture):
    long = "a_very_long_name_of_a_file_" * 6 + "fp8_e4m3fn_scaled.safetensors"
    reports, timelines = [], {}
    for name in ("dit", "dit_2", "text_encoder", "text_encoder_2", "image_encoder", "vae", "condition_image_encoder"):
        report, timeline = component(name, 6 * GB, model=long)
        reports.append(report)
        timelines[report["id"]] = timeline
    more = [component(f"vae_{i}", 6 * GB, loaded=False)[0] for i in range(2, 9)]
    error = {"id": "x-1", "component": "controlnet", "model": "画.safetensors", "device": "cuda:0", "nodes": []}
    bystander = {"component": "audio_vae", "model": long, "reason": "nobody asked for it " * 8, "nodes": []}
    made = document(*reports, *more, expected=[error | {"error": "e " * 400}], bystanders=[bystander] * 3, devices=2)
    canvas, _ = drawn(picture, "many", made, timelines)
    assert any(text.startswith("and 7 more: vae_3") for text, _ in canvas.texts)
    drawn(picture, "error", document(expected=[error | {"error": "budget too small " * 40}]))


def test_a_budget_that_is_passed_is_red(picture):
    report, timeline = component("dit", 6 * GB)
    smooth = {"dit-1": ([e for e in timeline[0] if e.kind != "stall"], True)}
    canvas, over = drawn(picture, "over", document(report, budget_bytes=GB), smooth)
    assert count(over, picture.STALL) > 50 and "budget 1.00 GB" in [text for text, _ in canvas.texts]


def test_it_calls_things_as_the_panel_does(picture):
    report, timeline = component("dit", 6 * GB)
    canvas, _ = drawn(picture, "words", document(report), {"dit-1": timeline})
    table = json.loads((paths.ROOT / "web" / "words" / "en.json").read_text(encoding="utf-8"))
    parts = ("memory.resident", "memory.loose", "memory.ring", "memory.stored", "memory.others")
    figures = ("number.stall", "number.hits", "number.headroom", "state.in_flight")
    texts = [text.removeprefix("F ") for text, _ in canvas.texts]
    for key in (*parts, *figures):
        assert any(text.startswith(table[key].lower()) for text in texts), (table[key], texts)


def test_what_takes_nothing_is_not_in_the_legend(picture):
    report, _ = component("dit", 6 * GB)
    made = document(report)
    nothing = dict.fromkeys(("stored_bytes", "loose_bytes", "others_bytes"), 0)
    made["devices"] = [made["devices"][0] | nothing]
    made["host"] |= {"mapped_bytes": 0, "available_bytes": 0}
    texts = [text for text, _ in drawn(picture, "zero", made)[0].texts]
    assert not any(text.startswith(("stored", "outside layers", "mapped")) for text in texts), texts
    assert "others 0" in texts and "available 0" in texts and "resident layers 3.00 GB" in texts


@pytest.mark.parametrize(
    ("number", "counted"),
    [
        (
            1,
            ("1 pass,", "1 layer fetched ahead", "1 visit of resident layers", "1 copy before its turn", "in 1 visit:"),
        ),
        (2, ("2 passes,", "2 layers fetched", "2 visits of", "2 copies before its turn", "in 2 visits:")),
    ],
)
def test_the_text_counts_in_words(picture, number, counted):
    names = ("passes", "prefetch_hits", "demand_loads", "resident_visits", "early_copies", "timed_visits")
    sizes = dict.fromkeys(
        ("bytes_copied", "stall_ns", "compute_ns", "device_bytes", "peak_device_bytes", "peer_bytes"), 0
    )
    summary = dict.fromkeys(names, number) | sizes | {"host_bytes": {}}
    report, _ = component("dit", 6 * GB, plan_text="", summary=summary, settings={})
    text = importlib.import_module("pack_without_app.bridge.report.text").report_text(document(report))
    for words in counted:
        assert words in text, text


def test_the_largest_parts_have_room_for_their_words(picture):
    report, _ = component("dit", 6 * GB)
    made = document(report)
    sizes = ("ring_bytes", "resident_bytes", "loose_bytes", "stored_bytes", "others_bytes", "free_bytes")
    made["devices"] = [made["devices"][0] | dict.fromkeys(sizes, 88_880_000_000) | {"total_bytes": 6 * 88_880_000_000}]
    canvas, _ = drawn(picture, "wide", made)
    assert sum("88.88 GB" in text for text, _ in canvas.texts) == 6 and not any(
        "..." in text for text, _ in canvas.texts
    )


def test_no_mark_stands_at_a_budget_that_was_not_set(picture):
    report, _ = component("dit", 6 * GB)
    canvas, _ = drawn(picture, "unset", document(report))
    assert not any("budget" in text for text, _ in canvas.texts)
    assert any("up to 6.00 GB" in text for text, _ in canvas.texts)
    said = {**report["settings"], "budget_bytes": {"value": 6 * GB, "source": "node", "reason": ""}}
    canvas, _ = drawn(picture, "set", document(report | {"settings": said}, budget_bytes=6 * GB))
    assert any("budget 6.00 GB" in text and "resident" in text for text, _ in canvas.texts)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0"), (512, "0.5 kB"), (2_500_000, "2.5 MB"), (1.5e9, "1.50 GB"), (2.5e11, "250 GB")]
)
def test_sizes(picture, nbytes, text):
    assert picture.size_text(nbytes) == text
