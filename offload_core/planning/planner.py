"""Makes a plan for a request: which layers are resident, the ring, the offset of each layer, and the prediction.

A pure function: same request, same plan, no clock, no randomness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import BudgetError
from ..units import gb_at_least
from .cost_model import compute_times
from .decisions import explain
from .evaluate import Candidate, Evaluator, Problem
from .host_tiers import explain_tiers, host_tiers
from .inventory import Inventory, TableSpec
from .plan import Plan, PlannedLayer, Prediction
from .request import PlanRequest
from .reserved import align_up
from .ring_size import usual_ring
from .search import Search
from .simulate import copy_ns, simulate

UNMEASURED_CAUTION = 8
"""Ratio of the compute times of a layer on a mid-range card at high resolution and on a fast one at low resolution."""


def make_plan(request: PlanRequest) -> Plan:
    """The best plan for a request. Deterministic.

    Tables that are used as a whole are on the device as far as the budget allows, the smallest first.
    Raises BudgetError, with the smallest budget that works, if what must be on the device does not fit.
    """
    tables = sorted((table for table in request.inventory.tables if table.used_whole), key=lambda table: table.bytes)
    while tables:
        try:
            return _with_tables(request, tables)
        except BudgetError:
            tables.pop()
    return _with_tables(request, ())


def _with_tables(request: PlanRequest, tables: Sequence[TableSpec]) -> Plan:
    """The best plan with exactly these tables on the device. Raises BudgetError."""
    draft = _Draft(request, tables)
    draft.require_budget()
    if request.placement == "resident":
        return draft.all_resident("everything stays on the device, as asked")
    if not draft.movable:
        return draft.all_resident("nothing to stream: every layer has to stay on the device")
    fits = request.budget_bytes is not None and draft.total_bytes <= request.budget_bytes
    if fits and request.keep_residents is not False:
        once = ". One pass copies each layer once either way; the next use copies nothing"
        then = ", nothing is streamed" if request.passes > 1 else once
        return draft.all_resident(f"everything fits the budget: every layer stays{then}")
    chosen, why = draft.choose()
    if chosen is None:  # the ring does not fit only because it is aligned
        return draft.all_resident("everything fits the budget; a ring beside it would not")
    return draft.plan(chosen.residents, chosen.ring_bytes, chosen.offsets, why)


def check_budget(request: PlanRequest) -> None:
    """Raises the BudgetError that `make_plan` would raise, without planning. Uses sizes only."""
    _Draft(request, ()).require_budget()


def smallest_budget_for(request: PlanRequest) -> int:
    """The smallest budget in bytes with which `make_plan` succeeds for this request, whose own budget is ignored.

    Unlike `smallest_budget` it applies the ring and the placement that the request asks for.
    """
    return _Draft(request, ()).smallest_bytes


def smallest_budget(inventory: Inventory) -> int:
    """The smallest device bytes of any plan: loose bytes, layers that may not be streamed, a ring for the largest."""
    return smallest_budget_for(PlanRequest(inventory, device="any", budget_bytes=None))


def usual_budget(inventory: Inventory) -> int:
    """Device bytes of a component with a ring of the usual size and no residents but those that may not be streamed."""
    return _kept_bytes(inventory) + usual_ring_of(inventory)


def usual_ring_of(inventory: Inventory) -> int:
    """Device bytes of a ring of the usual size, at most those of all layers that may be streamed."""
    ring = inventory.reserved(usual_ring(layer.bytes for layer in inventory.layers if layer.keep is None))
    return min(ring, inventory.total_bytes - _kept_bytes(inventory))


def _kept_bytes(inventory: Inventory) -> int:
    """Device bytes of every plan: the loose bytes, and the layers that may not be streamed."""
    kept = sum(inventory.reserved(layer.bytes) for layer in inventory.layers if layer.keep is not None)
    return inventory.reserved(inventory.loose_bytes) + kept


class _Draft:
    """The figures of one request with these tables on the device, while its plan is made."""

    def __init__(self, request: PlanRequest, tables: Sequence[TableSpec]) -> None:
        inventory = request.inventory
        self.request = request
        self.inventory = inventory
        self.tables = tuple(table.name for table in tables)
        tables_bytes = sum(inventory.reserved(table.bytes) for table in tables)
        self.loose_bytes = inventory.reserved(inventory.loose_bytes) + tables_bytes
        self.total_bytes = inventory.total_bytes + tables_bytes
        self.compute_ns, self.compute_note = compute_times(inventory, request.in_place)
        # If estimated times are too long, copies seem hidden that are not, and memory of the budget is left unused. So
        # without measured times residents are chosen for a faster device; the prediction uses the estimated times.
        measured = any(layer.compute_ns is not None for layer in inventory.layers)
        self.cautious_ns = self.compute_ns if measured else tuple(ns // UNMEASURED_CAUTION for ns in self.compute_ns)
        self.sizes = tuple(layer.bytes for layer in inventory.layers)
        self.reserved = tuple(map(inventory.reserved, self.sizes))
        kept = {index for index, layer in enumerate(inventory.layers) if layer.keep is not None or not layer.bytes}
        # The user's ring may be too small for some layers, which then have to be resident.
        self.too_large = frozenset(
            index
            for index, size in enumerate(self.sizes)
            if request.ring_bytes is not None and size > request.ring_bytes and index not in kept
        )
        self.keep = frozenset(kept) | self.too_large
        self.movable = [index for index in range(len(self.sizes)) if index not in self.keep]

    @property
    def fixed_bytes(self) -> int:
        """Device bytes of every plan of the request: the loose bytes and the layers of `keep`."""
        return self.loose_bytes + sum(self.reserved[index] for index in self.keep)

    @property
    def streams(self) -> bool:
        """Whether some layers may be streamed."""
        return self.request.placement != "resident" and bool(self.movable)

    @property
    def smallest_bytes(self) -> int:
        """The smallest device bytes of any plan of the request: the user's ring or one for the largest layer."""
        if not self.streams:
            return self.total_bytes
        largest = max(self.sizes[index] for index in self.movable)
        ring = self.request.ring_bytes or align_up(largest, self.request.alignment)
        return min(self.total_bytes, self.fixed_bytes + self.inventory.reserved(ring))

    def require_budget(self, whole: bool = False) -> None:
        """Raises BudgetError unless what has to be on the device fits the budget; everything, if `whole`."""
        whole = whole or not self.streams
        budget, smallest = self.request.budget_bytes, self.total_bytes if whole else self.smallest_bytes
        if budget is None or budget >= smallest:
            return
        component = self.inventory.component
        if whole:
            words = (
                f"{component} was asked to fit on the device whole in {budget} bytes; it has {smallest} bytes; "
                f"give at least {gb_at_least(smallest)}, or let its layers be streamed"
            )
        else:
            ring = f"the ring of {self.request.ring_bytes} bytes that was asked for"
            if not self.request.ring_bytes:
                largest = max((self.inventory.layers[index] for index in self.movable), key=lambda layer: layer.bytes)
                ring = f"a ring for the largest layer, {largest.name} ({largest.bytes} bytes)"
            words = (
                f"a device budget of {budget} bytes was asked for {component}; {self.fixed_bytes} bytes that cannot be "
                f"streamed and {ring} need {smallest} bytes; give at least {gb_at_least(smallest)}"
            )
        raise BudgetError(words, asked_bytes=budget, smallest_bytes=smallest)

    def all_resident(self, why: str) -> Plan:
        """The plan with every layer resident and no ring. Raises BudgetError if they do not fit."""
        self.require_budget(whole=True)
        return self.plan(frozenset(self.movable), 0, {}, (why,))

    def choose(self) -> tuple[Candidate | None, tuple[str, ...]]:
        """(ring and residents, sentences that say why) for a component with streamed layers. None: no ring fits."""
        request = self.request
        if request.budget_bytes is None:
            usual = usual_ring(self.sizes[index] for index in self.movable)
            ring = request.ring_bytes or align_up(usual, request.alignment)
            evaluator = Evaluator(self._problem(self.inventory.reserved(ring), ring))
            return evaluator.judge(frozenset(), ring), ("no budget was set: nothing stays that can be streamed",)
        room = request.budget_bytes - self.fixed_bytes
        search = Search(self._problem(room, request.ring_bytes))
        # A resident saves a copy if its layer is visited again, in the same pass or in the next one.
        revisits = request.passes > 1 or len(set(self.inventory.visits)) < len(self.inventory.visits)
        if revisits if request.keep_residents is None else request.keep_residents:
            chosen = search.steady()
            return (search.filled(chosen) if chosen is not None and request.hold_spare else chosen), ()
        why = "no layer stays beyond the ring, as asked"
        if request.keep_residents is None:
            why = "one pass copies every layer once, resident or not: no layer stays beyond the ring"
        return search.streamed_only(first_pass=not revisits), (why,)

    def _problem(self, room_bytes: int, ring_bytes: int | None) -> Problem:
        # Tiers are settled after the residents are chosen, but their rates decide which residents are best. The tiers
        # of a plan in which nothing beyond `keep` is resident are the best estimate.
        tiers = host_tiers(self.request, self.keep)
        return Problem(
            visits=_one_round(self.inventory.visits),
            sizes=self.sizes,
            segment_bytes=self.inventory.segment_bytes,
            link_ns=tuple(copy_ns(size, self.request.bytes_per_s(tier)) for size, tier in zip(self.sizes, tiers)),
            compute_ns=self.cautious_ns,
            keep=self.keep,
            room_bytes=room_bytes,
            alignment=self.request.alignment,
            ring_bytes=ring_bytes,
        )

    def plan(self, chosen: frozenset[int], ring_bytes: int, offsets: Mapping[int, int], why: tuple[str, ...]) -> Plan:
        """The plan with `chosen` resident beyond `keep`, its prediction and decisions, of which `why` come first."""
        residents = self.keep | chosen
        tiers = host_tiers(self.request, residents)
        layers = tuple(
            PlannedLayer(
                name=layer.name,
                bytes=layer.bytes,
                placement="resident" if index in residents else "streamed",
                offset=offsets.get(index),
                host_tier=tiers[index],
            )
            for index, layer in enumerate(self.inventory.layers)
        )
        plan = Plan(
            component=self.inventory.component,
            device=self.request.device,
            layers=layers,
            visits=self.inventory.visits,
            ring_bytes=ring_bytes,
            resident_bytes=sum(self.reserved[index] for index in residents),
            loose_bytes=self.loose_bytes,
            tables=self.tables,
            segment_bytes=self.inventory.segment_bytes,
            peer_device=self.request.peer_device if "peer" in tiers else None,
            predicted=Prediction(0, 0, 0, 0, 0),
        )
        rates = (self.request.h2d_bytes_per_s, self.request.peer_bytes_per_s)
        plan = replace(plan, predicted=simulate(plan, self.compute_ns, *rates))
        notes = (*explain(plan, self.request, self.too_large, self.compute_note), *explain_tiers(plan, self.request))
        return replace(plan, decisions=(*self.inventory.notes, *why, *notes))


def _one_round(visits: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest sequence whose repetition is `visits` (a tiled VAE repeats it per tile): same steady state."""
    for length in range(1, len(visits) // 2 + 1):
        if len(visits) % length == 0 and visits[:length] * (len(visits) // length) == visits:
            return visits[:length]
    return visits
