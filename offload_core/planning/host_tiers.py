"""Which host tier each layer gets: a copy on another device, page-locked, pageable, or mapped, with no copy beside its
file.

Layers of which most bytes are copied per pass come first; streamed layers before residents, which are copied once. A
layer that lies in a file takes host memory only if it gets a copy; any other has its copy already, and may only be
page-locked. The memory of another device takes copies of streamed layers only. It comes before page-locked memory,
unless copies from there were measured to be slower, and takes nothing of the host's budgets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..units import count, format_bytes
from .inventory import Inventory
from .plan import HostTier, Plan
from .request import PlanRequest

_SLOWER = 0.97
"""Slower than this part of another rate is more than what measured rates differ by from run to run."""


def host_tiers(request: PlanRequest, residents: frozenset[int]) -> list[HostTier]:
    """The tier of each layer, by its index, within the budgets of the request."""
    inventory = request.inventory
    limits = (
        request.pin_budget_bytes if request.host_tier in (None, "pinned") else 0,
        request.copies_budget_bytes if request.host_tier != "mapped" else 0,
    )
    pins, copies = (math.inf if limit is None else limit for limit in limits)
    peer = 0 if request.in_place else request.peer_budget_bytes
    peer_first = not _pinned_before_peer(request)
    tiers: list[HostTier] = ["mapped"] * len(inventory.layers)
    for index in reversed(least_worth_first(inventory, residents)):
        layer = inventory.layers[index]
        if index in residents and layer.in_file:
            # A resident is not copied again in a use; after an eviction it is read from its file.
            tiers[index] = "pageable" if request.in_place else "mapped"
            continue
        copy_bytes, peer_bytes = layer.bytes if layer.in_file else 0, inventory.reserved(layer.bytes)
        has_copy = copy_bytes <= copies
        has_pins = has_copy and layer.bytes <= pins
        if index not in residents and 0 < peer_bytes <= peer and (peer_first or not has_pins):
            tiers[index] = "peer"
            peer -= peer_bytes
        elif has_copy:
            tiers[index] = "pinned" if has_pins else "pageable"
            copies -= copy_bytes
            pins -= layer.bytes if has_pins else 0
    return tiers


def _pinned_before_peer(request: PlanRequest) -> bool:
    """Whether layers are page-locked first, as copies from the other device are slower: both rates are known."""
    if request.host_tier not in (None, "pinned") or request.link_is_assumed:
        return False
    return request.bytes_per_s("peer") < _SLOWER * request.bytes_per_s("pinned")


def out_of_tier(plan: Plan, request: PlanRequest) -> list[int]:
    """Indices of streamed layers in another tier than the request asks for; empty if it asks for none.

    It asks for the layers on the host, so those in tier `peer` are not counted.
    """
    if request.host_tier is None:
        return []
    return [index for index in plan.streamed if plan.layers[index].host_tier not in ("peer", request.host_tier)]


def least_worth_first(inventory: Inventory, residents: frozenset[int]) -> list[int]:
    """Indices of the layers in the order in which their host memory is released; they get it in the reverse order."""
    copied = [layer.bytes * count for layer, count in zip(inventory.layers, inventory.visit_counts())]
    return sorted(range(len(copied)), key=lambda index: (index not in residents, copied[index], -index))


_COPIED_FROM: dict[HostTier, str] = {
    "pinned": "copied from page-locked system memory, where they stay: no pass reads their file",
    "pageable": "copied from pageable memory through a staging buffer",
    "mapped": "read from the file in every pass; the prediction takes the link's rate for them, not the disk's",
}


def explain_tiers(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """A sentence per tier: how many streamed layers are in it, where they are copied from, and who decided it.

    None about page-locked layers if neither a tier nor host budgets were given.
    """
    yield from _explain_peer(plan, request)
    wish = f"host_tier = {request.host_tier}, as asked" if request.host_tier is not None else ""
    decided_by = "; ".join(part for part in (wish, request.host_source) if part)
    why = f" ({decided_by})" if decided_by else ""
    for tier, words in _COPIED_FROM.items():
        layers = [plan.layers[index] for index in plan.streamed if plan.layers[index].host_tier == tier]
        if not layers or (tier == "pinned" and not why):
            continue
        size = format_bytes(sum(layer.bytes for layer in layers))
        are = "is" if len(layers) == 1 else "are"
        if not request.in_place:
            yield f"{count(len(layers), 'streamed layer', 'streamed layers')}, {size}, {are} {words}{why}"
        elif tier == "mapped":
            read = "read from the file into the ring in every pass: not predicted"
            yield f"{count(len(layers), 'layer', 'layers')}, {size}, {are} {read}"


def _explain_peer(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """What is copied from the other device, at which rate, and why page-locked memory came first if it did."""
    layers = [layer for layer in plan.layers if layer.host_tier == "peer"]
    peer, link = (f"{rate / 1e9:.1f} GB/s" for rate in (request.bytes_per_s("peer"), request.h2d_bytes_per_s))
    if layers:
        size = format_bytes(sum(layer.bytes for layer in layers))
        rate = f"{request.peer_source}: {peer}"
        if request.peer_bytes_per_s is None:
            rate = f"not measured: predicted with the link's {link}"
        what, are = count(len(layers), "streamed layer", "streamed layers"), "is" if len(layers) == 1 else "are"
        yield f"{what}, {size}, {are} copied from the memory of {plan.peer_device} ({rate})"
    if plan.streamed and request.peer_budget_bytes and not request.in_place and _pinned_before_peer(request):
        yield (
            f"page-locked system memory comes before the memory of {request.peer_device}: copies from system memory "
            f"run at {link}, those from {request.peer_device} at {peer}"
        )
