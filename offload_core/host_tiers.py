"""Which host tier each layer gets: page-locked, pageable, or no copy at all beside its file.

By value: what saves most per byte comes first, which is what is copied most often; streamed layers before residents,
which are copied once. What is in a file takes host memory only if it gets a copy; what is in none has one already, and
only page-locking it is in question. Knows nothing about devices or how memory is got.
"""

from __future__ import annotations

from collections.abc import Iterator

from .inventory import Inventory
from .plan import HostTier, Plan
from .plan_text import format_bytes
from .request import PlanRequest

__all__ = ["explain_tiers", "host_tiers", "least_worth_first", "out_of_tier"]


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


def out_of_tier(plan: Plan, request: PlanRequest) -> list[int]:
    """Indices of streamed layers that the plan has in another tier than the request asks for; none if it asks none."""
    if request.host_tier is None:
        return []
    return [index for index in plan.streamed if plan.layers[index].host_tier != request.host_tier]


def _by_value(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    counts = inventory.visit_counts()
    sizes = [layer.bytes for layer in inventory.layers]
    return sorted(range(len(sizes)), key=lambda i: (i in residents, -sizes[i] * counts[i], i))


def least_worth_first(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    """The layers in the order in which they give host memory back."""
    return _by_value(inventory, residents)[::-1]


_COPIED_FROM: dict[HostTier, str] = {
    "pinned": "copied from page-locked host memory, where they stay: no pass reads their file",
    "pageable": "copied from pageable memory through a staging buffer",
    "mapped": "read from the file in every pass; the prediction takes the link's rate for them, not the disk's",
}


def explain_tiers(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """Where streamed layers are copied from, how many, and on whose word, in a sentence for each tier.

    Of page-locked ones only where the limits of the host are known: elsewhere nothing was decided.
    """
    why = f" ({_decided_by(request)})" if _decided_by(request) else ""
    for tier, words in _COPIED_FROM.items():
        layers = [plan.layers[index] for index in plan.streamed if plan.layers[index].host_tier == tier]
        if not layers or (tier == "pinned" and not why):
            continue
        size = format_bytes(sum(layer.bytes for layer in layers))
        if not request.in_place:
            yield f"{len(layers)} streamed layers, {size}, are {words}{why}"
        elif tier == "mapped":
            yield f"{len(layers)} layers, {size}, are read from the file into the ring in every pass: not predicted"


def _decided_by(request: PlanRequest) -> str:
    asked = f"host_tier = {request.host_tier}, as asked" if request.host_tier is not None else ""
    return "; ".join(part for part in (asked, request.host_source) if part)
