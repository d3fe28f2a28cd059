"""Which host tier each layer gets: page-locked, pageable, or mapped, with no copy beside its file.

Layers of which most bytes are copied per pass come first; streamed layers before residents, which are copied once. A
layer that lies in a file takes host memory only if it gets a copy; any other has its copy already, and may only be
page-locked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..units import format_bytes
from .inventory import Inventory
from .plan import HostTier, Plan
from .request import PlanRequest


def host_tiers(request: PlanRequest, residents: frozenset[int]) -> list[HostTier]:
    """The tier of each layer, by its index, within the budgets of the request."""
    inventory = request.inventory
    limits = (
        request.pin_budget_bytes if request.host_tier in (None, "pinned") else 0,
        request.copies_budget_bytes if request.host_tier != "mapped" else 0,
    )
    pins, copies = (math.inf if limit is None else limit for limit in limits)
    tiers: list[HostTier] = ["mapped"] * len(inventory.layers)
    for index in reversed(least_worth_first(inventory, residents)):
        layer = inventory.layers[index]
        if index in residents and layer.in_file:
            # A resident is not copied again in a use; after an eviction it is read from its file.
            tiers[index] = "pageable" if request.in_place else "mapped"
            continue
        copy_bytes = layer.bytes if layer.in_file else 0
        if copy_bytes > copies:
            continue
        copies -= copy_bytes
        tiers[index] = "pinned" if layer.bytes <= pins else "pageable"
        if layer.bytes <= pins:
            pins -= layer.bytes
    return tiers


def out_of_tier(plan: Plan, request: PlanRequest) -> list[int]:
    """Indices of streamed layers in another tier than the request asks for; empty if it asks for none."""
    return [index for index in plan.streamed if request.host_tier not in (None, plan.layers[index].host_tier)]


def least_worth_first(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    """Indices of the layers in the order in which their host memory is released; they get it in the reverse order."""
    copied = [layer.bytes * count for layer, count in zip(inventory.layers, inventory.visit_counts())]
    return sorted(range(len(copied)), key=lambda index: (index not in residents, copied[index], -index))


_COPIED_FROM: dict[HostTier, str] = {
    "pinned": "copied from page-locked host memory, where they stay: no pass reads their file",
    "pageable": "copied from pageable memory through a staging buffer",
    "mapped": "read from the file in every pass; the prediction takes the link's rate for them, not the disk's",
}


def explain_tiers(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """A sentence per tier: how many streamed layers are in it, where they are copied from, and who decided it.

    None about page-locked layers if neither a tier nor host budgets were given.
    """
    wish = f"host_tier = {request.host_tier}, as asked" if request.host_tier is not None else ""
    decided_by = "; ".join(part for part in (wish, request.host_source) if part)
    why = f" ({decided_by})" if decided_by else ""
    for tier, words in _COPIED_FROM.items():
        layers = [plan.layers[index] for index in plan.streamed if plan.layers[index].host_tier == tier]
        if not layers or (tier == "pinned" and not why):
            continue
        size = format_bytes(sum(layer.bytes for layer in layers))
        if not request.in_place:
            yield f"{len(layers)} streamed layers, {size}, are {words}{why}"
        elif tier == "mapped":
            yield f"{len(layers)} layers, {size}, are read from the file into the ring in every pass: not predicted"
