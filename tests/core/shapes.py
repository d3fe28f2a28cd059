"""Inventories for the planner's tests: hypothesis strategies, and the real models' shapes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from offload_core.planning.inventory import Inventory, LayerSpec
from offload_core.planning.plan import Plan
from offload_core.planning.reserved import SEGMENT_BYTES
from offload_core.planning.simulate import run_passes

MB = 10**6
GB = 10**9


def inventory(layers: list[tuple[int, int | None]], visits: tuple[int, ...] = (), loose_bytes: int = 0) -> Inventory:
    """An inventory from (bytes, compute_ns) pairs."""
    specs = tuple(LayerSpec(f"blocks.{index}", size, compute) for index, (size, compute) in enumerate(layers))
    return Inventory("dit", specs, visits, loose_bytes)


def equal(count: int, size_bytes: int, compute_ns: int) -> Inventory:
    """`count` layers alike."""
    return inventory([(size_bytes, compute_ns)] * count)


def flux(total_compute_ms: float) -> Inventory:
    """FLUX.1: 19 double blocks of 679.5 MB, 38 single blocks of 283.1 MB, all with the same compute time."""
    compute = round(total_compute_ms * 1e6 / 57)
    return inventory([(679_500_000, compute)] * 19 + [(283_100_000, compute)] * 38)


def qwen_image(total_compute_ms: float) -> Inventory:
    """Qwen-Image: 60 blocks of 679.5 MB."""
    return inventory([(679_500_000, round(total_compute_ms * 1e6 / 60))] * 60)


def long_run(plan: Plan, *times_and_rates: Any) -> tuple[int, bool]:
    """(ns of the first 64 passes of `run_passes`, whether they reached the steady state)."""
    passes = run_passes(plan, *times_and_rates)[2]
    left = 64 - len(passes)
    return passes[-1].end + left * (passes[-1].end - passes[-2].end), left > 0


@st.composite
def inventories(draw: st.DrawFn, max_layers: int = 24, repeats: bool = True, kept: bool = True) -> Inventory:
    """Random layers: some kept, some without a time, some visited often or never; memory to the byte or in segments."""
    count = draw(st.integers(1, max_layers))
    sizes = draw(
        st.one_of(
            st.lists(st.integers(0, 700 * MB), min_size=count, max_size=count),
            st.lists(st.sampled_from([283_100_000, 679_500_000]), min_size=count, max_size=count),
            st.integers(1, 700 * MB).map(lambda size: [size] * count),
        )
    )
    times = draw(st.lists(st.one_of(st.none(), st.integers(0, 40 * MB)), min_size=count, max_size=count))
    keeps = [None] * count
    if kept:
        keeps = draw(st.lists(st.sampled_from([None, None, None, "under 1 MB"]), min_size=count, max_size=count))
    visits: tuple[int, ...] = ()
    if repeats and draw(st.booleans()):
        visits = tuple(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2 * count)))
    layers = tuple(LayerSpec(f"blocks.{i}", sizes[i], times[i], keeps[i]) for i in range(count))
    segment_bytes = draw(st.sampled_from([1, SEGMENT_BYTES]))
    return Inventory("dit", layers, visits, draw(st.integers(0, 200 * MB)), segment_bytes=segment_bytes)
