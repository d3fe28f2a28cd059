"""Which host tier each layer gets: page-locked, pageable, or no copy at all beside its file.

By value: what saves most per byte comes first, which is what is copied most often; streamed layers before residents,
which are copied once. What is in a file takes host memory only if it gets a copy; what is in none has one already, and
only page-locking it is in question. Knows nothing about devices or how memory is got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .inventory import Inventory
from .plan import HostTier, Plan
from .plan_text import format_bytes
from .request import PlanRequest

__all__ = ["explain_tiers", "host_tiers", "least_worth_first"]


def host_tiers(request: PlanRequest, residents: frozenset[int]) -> list[HostTier]:
    """The tier of each layer, by its index."""
    inventory = request.inventory
    pins = request.pin_budget_bytes if request.host_tier in (None, "pinned") else 0
    copies = request.copies_budget_bytes
    if request.host_tier == "mapped":
        copies = 0
    tiers: list[HostTier] = ["mapped"] * len(inventory.layers)
    for index in _by_value(inventory, residents):
        layer = inventory.layers[index]
        if index in residents and layer.in_file:
            # On the device, or in place: what it would be copied from again is the file.
            tiers[index] = "pageable" if request.in_place else "mapped"
            continue
        takes = layer.bytes if layer.in_file else 0
        if copies is not None and takes > copies:
            continue
        copies = None if copies is None else copies - takes
        pinned = pins is None or layer.bytes <= pins
        tiers[index] = "pinned" if pinned else "pageable"
        if pinned and pins is not None:
            pins -= layer.bytes
    return tiers


def _by_value(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    counts = inventory.visit_counts()
    sizes = [layer.bytes for layer in inventory.layers]
    return sorted(range(len(sizes)), key=lambda i: (i in residents, -sizes[i] * counts[i], i))


def least_worth_first(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    """The layers in the order in which they give host memory back."""
    return _by_value(inventory, residents)[::-1]


def explain_tiers(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """What people should know of the host's part."""
    streamed = [plan.layers[index] for index in plan.streamed]
    tiers: Sequence[HostTier] = ("pageable", "mapped")
    words = {
        "pageable": "copied from pageable memory through a staging buffer",
        "mapped": "read from the file in every pass; the prediction takes the link's rate for them, not the disk's",
    }
    for tier in tiers:
        layers = [layer for layer in streamed if layer.host_tier == tier]
        if layers and not request.in_place:
            size = format_bytes(sum(layer.bytes for layer in layers))
            why = f" ({request.host_source})" if request.host_source else ""
            yield f"{len(layers)} streamed layers, {size}, are {words[tier]}{why}"
    in_file = [layer for layer in streamed if layer.host_tier == "mapped"]
    if in_file and request.in_place:
        size = format_bytes(sum(layer.bytes for layer in in_file))
        yield f"{len(in_file)} layers, {size}, are read from the file into the ring in every pass: not predicted"
