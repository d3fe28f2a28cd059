"""From a request to a plan: which layers stay, how large the ring is, where each layer goes, and what it will cost.

A pure function: same request, same plan, no clock, no randomness. It knows layers, bytes, times and visits; it knows
nothing about modules, devices or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .cost_model import compute_times
from .decisions import explain, gb_at_least
from .errors import BudgetError
from .evaluate import Candidate, Problem
from .host_tiers import explain_tiers, host_tiers
from .inventory import Inventory, TableSpec
from .packing import align_up
from .plan import Plan, PlannedLayer, Prediction
from .request import ALIGNMENT_BYTES, PlanRequest
from .ring_size import usual_ring
from .search import Search
from .simulate import copy_ns, simulate

__all__ = [
    "PlanRequest",
    "check_budget",
    "make_plan",
    "smallest_budget",
    "smallest_budget_for",
    "usual_budget",
    "usual_ring_of",
]

UNMEASURED_CAUTION = 8
"""From a mid-range card at high resolution to a fast one at low resolution, compute per layer differs about so much."""


def make_plan(request: PlanRequest) -> Plan:
    """The best plan for a request. Pure and deterministic.

    Tables that are used as a whole come to the device while the budget has room for them, the smallest first.
    Raises BudgetError, with the smallest budget that works, when what must be on the device does not fit.
    """
    used_whole = (table for table in request.inventory.tables if table.used_whole)
    tables = sorted(used_whole, key=lambda table: table.bytes)
    while tables:
        try:
            return _with_tables(request, tables)
        except BudgetError:
            tables.pop()
    return _with_tables(request, ())


def _with_tables(request: PlanRequest, tables: Sequence[TableSpec]) -> Plan:
    """The best plan with these tables on the device, and no others."""
    draft = _Draft(request, tables)
    draft.require_budget()
    if request.placement == "resident":
        return draft.all_resident("everything stays on the device, as asked")
    if not draft.movable:
        return draft.all_resident("nothing to stream: every layer has to stay on the device")
    fits = request.budget_bytes is not None and draft.total_bytes <= request.budget_bytes
    if fits and request.keep_residents is not False:
        return draft.all_resident(_why_all_fits(request))
    chosen, why = draft.choose()
    if chosen is None:  # only the alignment of the ring is in the way
        return draft.all_resident("everything fits the budget; a ring beside it would not")
    return draft.plan(chosen, why)


def check_budget(request: PlanRequest) -> None:
    """Raises the BudgetError that `make_plan` would raise, without planning: arithmetic on sizes only."""
    _Draft(request, ()).require_budget()


def smallest_budget_for(request: PlanRequest) -> int:
    """The least budget, in bytes, with which `make_plan` makes a plan of this request, whatever budget it has now.

    Unlike `smallest_budget` it keeps to the ring and the placement that the request asks for.
    """
    return _Draft(request, ()).smallest_bytes


def smallest_budget(inventory: Inventory, alignment: int = ALIGNMENT_BYTES) -> int:
    """The least device bytes any plan of this component can do with.

    What lies outside layers, the layers that may not be streamed, and a ring that holds the largest other layer.
    """
    ring = inventory.reserved(align_up(max(_movable_sizes(inventory), default=0), alignment))
    return min(inventory.total_bytes, _kept_bytes(inventory) + ring)


def usual_budget(inventory: Inventory) -> int:
    """Device bytes of a component that keeps nothing but what it must and a ring of the usual size."""
    return _kept_bytes(inventory) + usual_ring_of(inventory)


def usual_ring_of(inventory: Inventory) -> int:
    """What a ring of the usual size takes of the device, in bytes; no more than all the layers that pass through it."""
    ring = inventory.reserved(usual_ring(_movable_sizes(inventory)))
    return min(ring, inventory.total_bytes - _kept_bytes(inventory))


def _movable_sizes(inventory: Inventory) -> list[int]:
    return [layer.bytes for layer in inventory.layers if layer.keep is None]


def _kept_bytes(inventory: Inventory) -> int:
    """What stays on the device under any plan: what lies outside layers, and layers that may not be streamed."""
    kept = sum(inventory.reserved(layer.bytes) for layer in inventory.layers if layer.keep is not None)
    return inventory.reserved(inventory.loose_bytes) + kept


class _Draft:
    """The figures of one request while its plan is made."""

    def __init__(self, request: PlanRequest, tables: Sequence[TableSpec]) -> None:
        inventory = request.inventory
        self.request = request
        self.inventory = inventory
        self.tables = tuple(table.name for table in tables)
        tables_bytes = sum(inventory.reserved(table.bytes) for table in tables)
        self.loose_bytes = inventory.reserved(inventory.loose_bytes) + tables_bytes
        self.total_bytes = inventory.total_bytes + tables_bytes
        self.compute_ns, self.compute_note = compute_times(inventory, request.in_place)
        # A guess that is too slow would call copies hidden that are not, and leave allowed memory unused. So while
        # nobody has measured, residents are chosen for a device that many times faster; the prediction is the guess's.
        measured = any(layer.compute_ns is not None for layer in inventory.layers)
        self.cautious_ns = self.compute_ns if measured else tuple(ns // UNMEASURED_CAUTION for ns in self.compute_ns)
        self.sizes = tuple(layer.bytes for layer in inventory.layers)
        self.reserved = tuple(map(inventory.reserved, self.sizes))
        kept = {index for index, layer in enumerate(inventory.layers) if layer.keep is not None or not layer.bytes}
        # A ring the user fixed may be too small for some layers: those can only stay.
        self.too_large = frozenset(
            index
            for index, size in enumerate(self.sizes)
            if request.ring_bytes is not None and size > request.ring_bytes and index not in kept
        )
        self.keep = frozenset(kept) | self.too_large
        self.movable = [index for index in range(len(self.sizes)) if index not in self.keep]

    @property
    def fixed_bytes(self) -> int:
        """Device bytes that no choice changes."""
        return self.loose_bytes + sum(self.reserved[index] for index in self.keep)

    @property
    def streams(self) -> bool:
        """Whether some layers may leave the device."""
        return self.request.placement != "resident" and bool(self.movable)

    @property
    def least_ring_bytes(self) -> int:
        """The ring that was asked for, or one for the largest layer that may be streamed."""
        largest = max((self.sizes[index] for index in self.movable), default=0)
        return self.request.ring_bytes or align_up(largest, self.request.alignment)

    @property
    def smallest_bytes(self) -> int:
        """The least device bytes of any plan of the request."""
        if not self.streams:
            return self.total_bytes
        return min(self.total_bytes, self.fixed_bytes + self.inventory.reserved(self.least_ring_bytes))

    def require_budget(self) -> None:
        """Raise BudgetError unless what has to be on the device fits the budget."""
        asked, smallest = self.request.budget_bytes, self.smallest_bytes
        if asked is None or asked >= smallest:
            return
        if not self.streams:
            raise self._does_not_fit_whole(asked)
        largest = max(self.movable, key=lambda index: self.sizes[index])
        ring_words = (
            f"the ring of {self.request.ring_bytes} bytes that was asked for"
            if self.request.ring_bytes
            else f"a ring for the largest layer, {self.inventory.layers[largest].name} ({self.sizes[largest]} bytes)"
        )
        raise BudgetError(
            f"a device budget of {asked} bytes was asked for {self.inventory.component}; {self.fixed_bytes} bytes that "
            f"cannot be streamed and {ring_words} need {smallest} bytes; give at least {gb_at_least(smallest)}",
            asked_bytes=asked,
            smallest_bytes=smallest,
        )

    def _does_not_fit_whole(self, asked_bytes: int) -> BudgetError:
        total = self.total_bytes
        return BudgetError(
            f"{self.inventory.component} was asked to fit on the device whole in {asked_bytes} bytes; it has {total} "
            f"bytes; give at least {gb_at_least(total)}, or let its layers be streamed",
            asked_bytes=asked_bytes,
            smallest_bytes=total,
        )

    def all_resident(self, why: str) -> Plan:
        """Every layer stays; no ring. Raises BudgetError if they do not fit."""
        asked = self.request.budget_bytes
        if asked is not None and self.total_bytes > asked:
            raise self._does_not_fit_whole(asked)
        everything = frozenset(self.movable)
        candidate = Candidate(everything, sum(self.reserved[index] for index in everything), 0, {}, 0, ())
        return self.plan(candidate, (why,))

    def choose(self) -> tuple[Candidate | None, tuple[str, ...]]:
        """Ring and residents for a component of which something has to be streamed."""
        request = self.request
        if request.budget_bytes is None:
            usual = usual_ring(self.sizes[index] for index in self.movable)
            ring = request.ring_bytes or align_up(usual, request.alignment)
            search = Search(self._problem(self.inventory.reserved(ring), ring))
            return search.with_ring(ring), ("no budget was set: nothing stays that can be streamed",)
        room = request.budget_bytes - self.fixed_bytes
        search = Search(self._problem(room, request.ring_bytes))
        # A layer visited again within the pass is worth keeping for the same reason as one visited in the next.
        again = request.passes > 1 or len(set(self.inventory.visits)) < len(self.inventory.visits)
        if again if request.keep_residents is None else request.keep_residents:
            chosen = search.steady()
            return (search.filled(chosen) if chosen is not None and request.hold_spare else chosen), ()
        why = "no layer stays beyond the ring, as asked"
        if request.keep_residents is None:
            why = "one pass copies every layer once, resident or not: no layer stays beyond the ring"
        return search.streamed_only(first_pass=not again), (why,)

    def _problem(self, room_bytes: int, ring_bytes: int | None) -> Problem:
        rate = self.request.h2d_bytes_per_s
        return Problem(
            visits=_one_round(self.inventory.visits),
            sizes=self.sizes,
            segment_bytes=self.inventory.segment_bytes,
            link_ns=tuple(copy_ns(size, rate) for size in self.sizes),
            compute_ns=self.cautious_ns,
            keep=self.keep,
            room_bytes=room_bytes,
            alignment=self.request.alignment,
            ring_bytes=ring_bytes,
        )

    def plan(self, chosen: Candidate, why: tuple[str, ...]) -> Plan:
        """The plan of a choice, with its prediction and its decisions."""
        residents = self.keep | chosen.residents
        tiers = host_tiers(self.request, residents)
        layers = tuple(
            PlannedLayer(
                name=layer.name,
                bytes=layer.bytes,
                placement="resident" if index in residents else "streamed",
                offset=None if index in residents else chosen.offsets[index],
                host_tier=tiers[index],
            )
            for index, layer in enumerate(self.inventory.layers)
        )
        plan = Plan(
            component=self.inventory.component,
            device=self.request.device,
            layers=layers,
            visits=self.inventory.visits,
            ring_bytes=chosen.ring_bytes,
            resident_bytes=sum(self.reserved[index] for index in residents),
            loose_bytes=self.loose_bytes,
            tables=self.tables,
            segment_bytes=self.inventory.segment_bytes,
            predicted=Prediction(0, 0, 0, 0, 0),
        )
        result = simulate(plan, self.compute_ns, self.request.h2d_bytes_per_s)
        predicted = Prediction(
            pass_ns=result.pass_ns,
            bound_ns=result.bound_ns,
            stall_ns=max(0, result.pass_ns - sum(self.compute_ns[layer] for layer in plan.visits)),
            bytes_per_pass=result.bytes_per_pass,
            first_pass_ns=result.first_pass_ns,
        )
        plan = replace(plan, predicted=predicted)
        notes = (*explain(plan, self.request, self.too_large, self.compute_note), *explain_tiers(plan, self.request))
        return replace(plan, decisions=(*self.inventory.notes, *why, *notes))


def _one_round(visits: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest piece that `visits` repeats, as a tiled VAE does once a tile: it has the same steady state."""
    for length in range(1, len(visits) // 2 + 1):
        if len(visits) % length == 0 and visits[:length] * (len(visits) // length) == visits:
            return visits[:length]
    return visits


def _why_all_fits(request: PlanRequest) -> str:
    if request.passes > 1:
        return "everything fits the budget: every layer stays, nothing is streamed"
    return (
        "everything fits the budget: every layer stays. One pass copies each layer once either way; "
        "the next use copies nothing"
    )
