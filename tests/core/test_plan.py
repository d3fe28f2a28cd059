"""Plans as JSON and as text; inventories, budgets and links as plain data."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from offload_core.errors import BudgetError, OffloadError, PlanError, StateError, shown
from offload_core.planning.cost_model import compute_times, tokens_for
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.plan import HostTier, Plan
from offload_core.planning.plan_text import plan_to_text
from offload_core.planning.planner import PlanRequest, make_plan
from offload_core.units import count, format_bytes, format_ns
from tests.core.shapes import GB, MB, flux, inventory

PLAN = make_plan(PlanRequest(flux(551), "cuda:0", 8 * GB, passes=50))


def test_json_round_trip() -> None:
    text = json.dumps(PLAN.to_json(), allow_nan=False)
    assert Plan.from_json(json.loads(text)) == PLAN


def test_json_has_the_published_shape() -> None:
    data = PLAN.to_json()
    assert list(data) == [
        "schema", "component", "device", "layers", "visits", "ring_bytes", "resident_bytes", "loose_bytes",
        "tables", "segment_bytes", "peer_device", "peer_bytes", "predicted", "decisions",
    ]  # fmt: skip
    assert list(data["layers"][0]) == ["name", "bytes", "placement", "offset", "host_tier"]
    assert set(data["predicted"]) == {"pass_ns", "bound_ns", "stall_ns", "bytes_per_pass", "first_pass_ns"}


DAMAGE: list[tuple[str, Any, str]] = [
    ("schema", 2, "schema: got 2"),
    ("schema", True, "schema: got True"),
    ("component", 5, "component: got 5"),
    ("device", "", "device: got ''"),
    ("layers", {}, "layers: got {}"),
    ("layers", [5], r"layers\[0\]: got 5"),
    ("visits", "012", "visits: got '012'"),
    ("visits", [0, 57], r"visits\[1\]: got 57"),
    ("visits", [-1], r"visits\[0\]: got -1"),
    ("ring_bytes", -1, "ring_bytes: got -1"),
    ("ring_bytes", 1.0, "ring_bytes: got 1.0"),
    ("ring_bytes", 10**400, "ring_bytes: got an integer of 1329 bits"),
    ("resident_bytes", None, "resident_bytes: got None"),
    ("loose_bytes", "0", "loose_bytes: got '0'"),
    ("segment_bytes", 0, "segment_bytes: got 0"),
    ("tables", "embed", "tables: got 'embed'"),
    ("tables", [5], r"tables\[0\]: got 5"),
    ("peer_device", "", "peer_device: got ''"),
    ("peer_device", 1, "peer_device: got 1"),
    ("predicted", [], r"predicted: got \[\]"),
    ("predicted", {}, "predicted.pass_ns: missing"),
    ("decisions", [1], r"decisions\[0\]: got 1"),
]


@pytest.mark.parametrize(("field", "value", "message"), DAMAGE)
def test_from_json_names_what_is_wrong(field: str, value: object, message: str) -> None:
    data = PLAN.to_json()
    data[field] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_json(data)


def test_from_json_needs_every_field_of_the_first_plans_and_ignores_new_ones() -> None:
    data = PLAN.to_json()
    for field in data:
        if field not in ("decisions", "segment_bytes", "tables", "peer_device", "peer_bytes"):
            less = {key: value for key, value in data.items() if key != field}
            with pytest.raises(PlanError, match=f"{field}: missing"):
                Plan.from_json(less)
    more = copy.deepcopy(data)
    more["colour"] = "green"
    assert Plan.from_json(more) == PLAN
    with pytest.raises(PlanError, match="plan: got 5"):
        Plan.from_json(5)  # type: ignore[arg-type]


def test_text_is_short_and_says_what_matters() -> None:
    text = plan_to_text(PLAN)
    lines = text.splitlines()
    assert len(lines) < 25 and max(map(len, lines)) < 150
    assert lines[0].startswith("dit on cuda:0: ") and lines[0].endswith("of 23.67 GB)")
    for words in ("ring of", "blocks.0 .. 18 (19)", "blocks.19 .. 56 (38)", "679.5 MB", "283.1 MB", "25.0 GB/s"):
        assert words in text
    assert not any(line.endswith(" ") for line in lines)


PEER_REQUEST = replace(
    PlanRequest(flux(551), "cuda:0", 8 * GB, passes=50),
    peer_device="cuda:1", peer_budget_bytes=3 * GB, peer_bytes_per_s=40e9,
)  # fmt: skip


def test_a_plan_with_copies_on_another_device_is_read_back_and_one_without_the_field_too() -> None:
    plan = make_plan(PEER_REQUEST)
    assert plan.peer_device == "cuda:1" and 0 < plan.peer_bytes <= 3 * GB
    data = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(data) == plan
    assert PLAN.peer_device is None and PLAN.peer_bytes == 0
    older = PLAN.to_json()
    del older["peer_device"]
    assert Plan.from_json(older) == PLAN


def test_bytes_on_the_other_device_are_whole_segments() -> None:
    inv = replace(inventory([(3 * MB, MB), (MB, MB)]), segment_bytes=1 << 21)
    plan = make_plan(PlanRequest(inv, "cuda:0", None, peer_device="cuda:1", peer_budget_bytes=GB))
    assert plan.peer_bytes == (4 << 20) + MB  # up to 1 MiB an allocation shares a segment


def test_text_names_the_other_device() -> None:
    text = plan_to_text(make_plan(PEER_REQUEST))
    assert " on cuda:1, " in text and "peer" not in text
    everything = replace(PEER_REQUEST, budget_bytes=None, peer_budget_bytes=30 * GB)
    assert "wait in\n" in text, "a card is no host memory"
    assert "  on cuda:1\n" in plan_to_text(make_plan(everything))


def test_text_of_an_empty_plan() -> None:
    assert "0 B of device memory" in plan_to_text(make_plan(PlanRequest(Inventory("dit", ()), "cpu", None)))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (679_500_000, "679.5 MB"), (23 * GB, "23.00 GB")]
)
def test_bytes_for_people(value: int, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 ns"), (12_000, "12 us"), (437_100_000, "437.1 ms"), (1_420_000_000, "1.42 s")]
)
def test_times_for_people(value: int, text: str) -> None:
    assert format_ns(value) == text


# ---- plain data


def test_one_of_something_is_singular() -> None:
    assert [count(number, "pass", "passes") for number in (0, 1, 2)] == ["0 passes", "1 pass", "2 passes"]
    inventory = Inventory("dit", (LayerSpec("a", 4_000_000), LayerSpec("b", 4_000_000)))
    text = plan_to_text(make_plan(PlanRequest(inventory, "cuda:0", 8_000_000, placement="resident")))
    assert "resident 2 layers" in text and "streamed 0 layers" in text
    text = plan_to_text(make_plan(PlanRequest(Inventory("dit", inventory.layers[:1]), "cuda:0", 8_000_000)))
    assert "1 layer," in text and "1 layers" not in text


def test_visits_default_to_each_layer_once() -> None:
    inv = inventory([(1, 1), (2, 2), (3, 3)], loose_bytes=4)
    assert inv.visits == (0, 1, 2) and inv.total_bytes == 10 and inv.visit_counts() == (1, 1, 1)


def asked(**options: Any) -> PlanRequest:
    return PlanRequest(Inventory("dit", ()), "cuda:0", None, **options)


def test_the_rate_of_a_tier_is_the_links_unless_that_of_the_other_device_was_measured() -> None:
    assert asked(h2d_bytes_per_s=5e9).bytes_per_s("peer") == 5e9
    measured = asked(h2d_bytes_per_s=5e9, peer_device="cuda:1", peer_bytes_per_s=9e9)
    assert [measured.bytes_per_s(tier) for tier in get_args(HostTier)] == [9e9, 5e9, 5e9, 5e9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerSpec("", 1), "layer name"),
        (lambda: LayerSpec("a\nb", 1), "layer name: got 'a.nb'"),
        (lambda: LayerSpec("a", -1), "bytes of layer a: got -1"),
        (lambda: LayerSpec("a", True), "bytes of layer a: got True"),
        (lambda: LayerSpec("a", 1, -1), "compute_ns of layer a"),
        (lambda: LayerSpec("a", 1, None, ""), "keep of layer a"),
        (lambda: LayerSpec("a", 1, touched_bytes=-1), "touched_bytes of layer a"),
        (lambda: Inventory("", ()), "component"),
        (lambda: Inventory("dit", (LayerSpec("a", 1), LayerSpec("a", 1))), "layer name: got 'a'; allowed: each name"),
        (lambda: Inventory("dit", (LayerSpec("a", 1),), (1,)), r"visits\[0\]: got 1; allowed: an integer from 0 to 0"),
        (lambda: Inventory("dit", (), (0,)), r"visits\[0\]"),
        (lambda: Inventory("dit", (), (), -5), "loose_bytes: got -5"),
        (lambda: PlanRequest(Inventory("dit", ()), "", None), "device"),
        (lambda: PlanRequest(Inventory("dit", ()), "cuda:0", -1), "budget_bytes: got -1"),
        (lambda: PlanRequest(Inventory("dit", ()), "cuda:0", None, h2d_bytes_per_s=0), "h2d_bytes_per_s: got 0"),
        (
            lambda: PlanRequest(Inventory("dit", ()), "cuda:0", None, h2d_bytes_per_s=10**400),
            "h2d_bytes_per_s: got an integer of",
        ),
        (lambda: asked(peer_device=""), "peer_device: got ''"),
        (lambda: asked(peer_device="cuda:0"), "peer_device: got 'cuda:0'; allowed: another device than cuda:0"),
        (lambda: asked(peer_budget_bytes=1), "peer_budget_bytes: got 1; allowed: 0 without a peer_device"),
        (lambda: asked(peer_device="cuda:1", peer_budget_bytes=-1), "peer_budget_bytes: got -1"),
        (lambda: asked(peer_device="cuda:1", peer_budget_bytes=None), "peer_budget_bytes: got None"),
        (lambda: asked(peer_device="cuda:1", peer_bytes_per_s=0), "peer_bytes_per_s: got 0"),
        (lambda: asked(peer_device="cuda:1", peer_bytes_per_s=float("nan")), "peer_bytes_per_s: got nan"),
        (lambda: asked(peer_device="cuda:1", host_tier="peer"), "host_tier: got 'peer'; allowed: pinned"),
    ],
)
def test_nonsense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()


def test_errors_are_one_family_and_values_are_shown_on_one_line() -> None:
    assert issubclass(PlanError, OffloadError) and issubclass(PlanError, ValueError)
    assert issubclass(BudgetError, OffloadError)
    assert issubclass(StateError, OffloadError) and not issubclass(StateError, PlanError)
    for value in ("a\nb" * 100, list(range(1000)), 10**5000, {"a": 1}, float("nan"), "\ud800", None):
        assert len(shown(value)) <= 80 and "\n" not in shown(value)


def test_cost_model() -> None:
    assert tokens_for("text_encoder_2") == tokens_for("text_encoder") < tokens_for("dit") < tokens_for("video_vae")
    assert tokens_for("condition_image_encoder") == tokens_for("vae")
    inv = Inventory("dit", (LayerSpec("a", 100 * MB), LayerSpec("table", 100 * MB, touched_bytes=MB)))
    times, note = compute_times(inv)
    assert note is not None and times[0] == pytest.approx(100 * times[1], rel=0.01)
    assert compute_times(inventory([(5, 7)])) == ((7,), None)
