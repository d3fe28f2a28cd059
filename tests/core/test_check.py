"""The checker finds nothing in good plans, and a fault in each broken one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_core.planning.check import check_places, check_plan
from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.plan import Plan
from offload_core.planning.planner import PlanRequest, make_plan
from tests.core.shapes import MB, inventories

INVENTORY = Inventory(
    "dit",
    tuple(LayerSpec(f"b.{i}", (100 + 20 * (i % 3)) * MB, 3 * MB, "under 1 MB" if i == 4 else None) for i in range(12)),
    loose_bytes=50 * MB,
)
BUDGET = 800 * MB
PLAN = make_plan(PlanRequest(INVENTORY, "cuda:0", BUDGET, passes=30))
STREAMED = PLAN.streamed[1]
RESIDENT = next(index for index in PLAN.residents if index != 4)


def with_layer(index: int, **changes: Any) -> Plan:
    layers = list(PLAN.layers)
    layers[index] = dataclasses.replace(layers[index], **changes)
    return dataclasses.replace(PLAN, layers=tuple(layers))


def with_predicted(**changes: Any) -> Plan:
    return dataclasses.replace(PLAN, predicted=dataclasses.replace(PLAN.predicted, **changes))


def change(**changes: Any) -> Plan:
    return dataclasses.replace(PLAN, **changes)


FAULTS: dict[str, tuple[Callable[[], Plan], str]] = {
    "offset past the ring": (lambda: with_layer(STREAMED, offset=PLAN.ring_bytes), "of a ring of"),
    "last byte past the ring": (
        lambda: with_layer(STREAMED, offset=PLAN.ring_bytes - PLAN.layers[STREAMED].bytes + 1),
        "of a ring of",
    ),
    "negative offset": (lambda: with_layer(STREAMED, offset=-512), "offset -512"),
    "fractional offset": (lambda: with_layer(STREAMED, offset=0.5), "offset 0.5"),
    "offset is text": (lambda: with_layer(STREAMED, offset="0"), "offset '0'"),
    "offset is true": (lambda: with_layer(STREAMED, offset=True), "offset True"),
    "streamed without offset": (lambda: with_layer(STREAMED, offset=None), "has no ring offset"),
    "resident with offset": (lambda: with_layer(RESIDENT, offset=0), "has the ring offset"),
    "misaligned offset": (lambda: with_layer(STREAMED, offset=7), "not a multiple of 512"),
    "resident turned streamed": (lambda: with_layer(RESIDENT, placement="streamed"), "has no ring offset"),
    "streamed turned resident": (lambda: with_layer(STREAMED, placement="resident", offset=None), "resident_bytes is"),
    "kept layer streamed": (lambda: with_layer(4, placement="streamed", offset=0), "may not be streamed"),
    "unknown placement": (lambda: with_layer(STREAMED, placement="cpu"), "placement 'cpu'"),
    "unknown tier": (lambda: with_layer(STREAMED, host_tier="disk"), "host tier 'disk'"),
    "layer shrunk": (lambda: with_layer(STREAMED, bytes=1), "bytes in the plan"),
    "layer grown": (lambda: with_layer(STREAMED, bytes=PLAN.layers[STREAMED].bytes + 1), "bytes in the plan"),
    "bytes negative": (lambda: with_layer(STREAMED, bytes=-1), "has -1 bytes"),
    "bytes not a number": (lambda: with_layer(STREAMED, bytes=float("nan")), "has nan bytes"),
    "layer renamed": (lambda: with_layer(STREAMED, name="other"), "is other in the plan"),
    "name empty": (lambda: with_layer(STREAMED, name=""), "has the name ''"),
    "name twice": (lambda: with_layer(STREAMED, name=PLAN.layers[RESIDENT].name), "twice"),
    "layers swapped": (
        lambda: change(layers=(PLAN.layers[1], PLAN.layers[0], *PLAN.layers[2:])),
        "in the inventory",
    ),
    "layer missing": (lambda: change(layers=PLAN.layers[:-1], visits=PLAN.visits[:-1]), "the plan has 11 layers"),
    "visit missing": (lambda: change(visits=PLAN.visits[:-1]), "visits are not"),
    "visits reversed": (lambda: change(visits=PLAN.visits[::-1]), "visits are not"),
    "visit twice": (lambda: change(visits=(*PLAN.visits, 0)), "visits are not"),
    "visit to nobody": (lambda: change(visits=(*PLAN.visits, 12)), "there are 12 layers"),
    "visit negative": (lambda: change(visits=(-1, *PLAN.visits[1:])), "visit 0 is to layer -1"),
    "ring too small": (lambda: change(ring_bytes=100 * MB), "of a ring of"),
    "ring gone": (lambda: change(ring_bytes=0), "of a ring of 0"),
    "ring negative": (lambda: change(ring_bytes=-1), "ring_bytes is -1"),
    "ring over the budget": (lambda: change(ring_bytes=BUDGET), "over the budget"),
    "resident bytes forgotten": (lambda: change(resident_bytes=0), "resident_bytes is 0"),
    "resident bytes one off": (lambda: change(resident_bytes=PLAN.resident_bytes + 1), "the residents take"),
    "loose bytes forgotten": (lambda: change(loose_bytes=0), "loose_bytes is 0"),
    "segments forgotten": (lambda: change(segment_bytes=1 << 21), "segment_bytes is"),
    "no segments": (lambda: change(segment_bytes=0), "segment_bytes is 0"),
    "another component": (lambda: change(component="vae"), "the plan is for vae"),
    "no device": (lambda: change(device=""), "device is ''"),
    "pass below bound": (lambda: with_predicted(pass_ns=PLAN.predicted.bound_ns - 1), "is below predicted.bound_ns"),
    "stall above pass": (lambda: with_predicted(stall_ns=PLAN.predicted.pass_ns + 1), "is more than predicted.pass_ns"),
    "copies miscounted": (lambda: with_predicted(bytes_per_pass=PLAN.predicted.bytes_per_pass + 1), "a pass copies"),
    "time negative": (lambda: with_predicted(first_pass_ns=-1), "first_pass_ns is -1"),
    "time infinite": (lambda: with_predicted(pass_ns=float("inf")), "pass_ns is inf"),
}


PEER_PLAN = make_plan(
    PlanRequest(INVENTORY, "cuda:0", BUDGET, passes=30, peer_device="cuda:1", peer_budget_bytes=300 * MB)
)
ON_PEER = next(index for index, layer in enumerate(PEER_PLAN.layers) if layer.host_tier == "peer")


def with_peer_device(device: Any) -> Plan:
    return dataclasses.replace(PEER_PLAN, peer_device=device)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: with_peer_device(None), "is to be copied from another device, and the plan names none"),
        (lambda: with_peer_device("cuda:0"), "peer_device is cuda:0, the plan's own device"),
        (lambda: with_peer_device(""), "peer_device is '', neither a name nor None"),
        (lambda: with_peer_device(1), "peer_device is 1, neither a name nor None"),
        (lambda: with_layer(RESIDENT, host_tier="peer"), "is resident and is to be copied from another device"),
    ],
)
def test_every_fault_of_copies_on_another_device_is_found(broken: Callable[[], Plan], words: str) -> None:
    assert any(words in finding for finding in check_plan(broken(), INVENTORY, BUDGET))
    assert any(words in finding for finding in check_places(broken(), INVENTORY))


def test_the_budget_of_the_other_device_is_to_the_byte_and_in_segments() -> None:
    assert PEER_PLAN.peer_bytes == sum(layer.bytes for layer in PEER_PLAN.layers if layer.host_tier == "peer") > 0
    assert check_plan(PEER_PLAN, INVENTORY, BUDGET, peer_budget_bytes=PEER_PLAN.peer_bytes) == []
    assert any("on cuda:1, over" in line for line in check_plan(PEER_PLAN, peer_budget_bytes=PEER_PLAN.peer_bytes - 1))
    layer = PEER_PLAN.layers[ON_PEER]
    rounded = dataclasses.replace(PEER_PLAN, layers=(layer,), visits=(0,), segment_bytes=64 * MB)
    segments = -(-layer.bytes // (64 * MB)) * 64 * MB
    over = [
        any("on cuda:1, over" in line for line in check_plan(rounded, peer_budget_bytes=budget))
        for budget in (segments, segments - 1)
    ]
    assert rounded.peer_bytes == segments and over == [False, True]


def test_the_untouched_plan_is_good() -> None:
    assert PLAN.streamed and len(PLAN.residents) > 1  # or the faults below would mean nothing
    assert check_plan(PLAN, INVENTORY, BUDGET, alignment=512) == []
    assert check_plan(PLAN) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    broken, words = FAULTS[fault]
    findings = check_plan(broken(), INVENTORY, BUDGET, alignment=512)
    assert any(words in finding for finding in findings), findings


def test_budget_is_to_the_byte() -> None:
    assert check_plan(PLAN, budget_bytes=PLAN.device_bytes) == []
    assert check_plan(PLAN, budget_bytes=PLAN.device_bytes - 1) != []


def test_findings_are_limited() -> None:
    layers = tuple(dataclasses.replace(layer, name=f"x.{i}", bytes=-1) for i in range(500) for layer in PLAN.layers[:1])
    findings = check_plan(change(layers=layers))
    assert len(findings) == 101


@settings(max_examples=200, deadline=None)
@given(inventories(max_layers=10), st.data())
def test_random_damage_is_found_or_harmless(inv: Inventory, data: st.DataObject) -> None:
    """Change one figure of a good plan: the checker either objects or the plan is still the same promise."""
    plan = make_plan(PlanRequest(inv, "cuda:0", None, passes=10))
    index = data.draw(st.integers(0, len(plan.layers) - 1))
    layer = plan.layers[index]
    field = data.draw(st.sampled_from(["bytes", "offset", "placement", "name"]))
    value = data.draw(
        {
            "bytes": st.integers(-5, 10**12),
            "offset": st.one_of(st.none(), st.integers(-5, 10**12)),
            "placement": st.sampled_from(["streamed", "resident", "whole"]),
            "name": st.sampled_from(["", "blocks.0", "blocks.1", "other"]),
        }[field]
    )
    layers = list(plan.layers)
    layers[index] = dataclasses.replace(layer, **{field: value})
    damaged = dataclasses.replace(plan, layers=tuple(layers))
    findings = check_plan(damaged, inv)
    if findings:
        return
    # Harmless: nothing changed, or a streamed layer moved to another place inside the ring with the same copies.
    assert damaged == plan or (field == "offset" and layer.placement == "streamed" and 0 <= value <= plan.ring_bytes)
