"""One component under layerwise offload: puts a plan into effect on a module, changes it, and takes it off again.

The constructor builds the host masters, into which the parameters look; the module stays an ordinary one on the host.
`load` puts a plan into effect: which layer streams, where in the ring, how large the ring is. `unload` releases the
device memory, `detach` the masters, with the original parameter objects and values back in place. Knows nothing of the
app.

While a plan is in effect, the module's calls refer to the prefetcher, and the prefetcher to the controller: the module
keeps it alive. At all other times nothing that the module or the prefetcher holds refers to the controller, so there is
no reference cycle, and both are freed when their last user drops them (decision 168).
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from ...errors import OffloadError, PlanError, StateError
from ...planning.check import check_places
from ...planning.host_tiers import least_worth_first
from ...planning.inventory import Inventory
from ...planning.plan import HostTier, Plan
from ...trace.events import Source, Trace
from ..device.device_queue import DeviceQueue
from ..host.masters import close_uses
from ..layers.discovery import Discovery, discover, keep_in_memory
from ..layers.layer import Layer, build_layers, link_overlaps
from ..layers.loose import LooseTensors
from ..layers.patched_layers import Change
from ..layers.recorder import Recorder
from ..layers.tables import HostTables
from ..patches.patched_loose import ChangedWeights
from ..tensors.layout import TENSOR_ALIGNMENT
from .interpose import HostGather, Interposed, LayerForward, PassBoundary
from .prefetcher import PassOwner, Prefetcher
from .tier_moves import TierMoves, free_peer_copies, off_peer, with_files


class LinkRates(NamedTuple):
    """Measured rates of copies to the device in bytes/s; None before the first measured one."""

    from_host: float | None
    from_peer: float | None
    peer: str | None
    """The other device that `from_peer` is of: the last one that a plan named."""


Entry = tuple[nn.Module, str]
"""A module and the name of its method that runs a pass."""

Borrower = tuple[nn.Module, str, nn.Module]
"""A module, the name of its method that uses weights of another module without calling it, and that other module."""

AskForPlan = Callable[[Plan, Inventory, LinkRates], Plan | None]
"""(plan in effect, measured inventory, measured rates of copies) -> a better plan, or None."""

AskForRoom = Callable[[Plan, str, bool], Plan | None]
"""(plan in effect, name of the layer that failed, whether it is too late to run it again) -> a plan of fewer device
bytes, the same plan if others have made room, or None. What it raises replaces the original error."""

MayRepeat = Callable[[tuple[Any, ...], dict[str, Any]], bool]
"""(args, kwargs) of a layer's call -> whether, judging by these, the call may be repeated."""

PlanForTable = Callable[["OffloadController", str], Plan | None]
"""(controller, name of a table about to be used as a whole) -> a plan that may place it on the device, or None."""


class OffloadController(PassOwner):
    """Layerwise offload of one module on one device. End it with `detach`."""

    def __init__(
        self,
        root: nn.Module,
        queue: DeviceQueue,
        *,
        component: str = "model",
        discovery: Discovery | None = None,
        entries: Sequence[Entry] | None = None,
        borrowers: Sequence[Borrower] = (),
        pinned: bool = True,
        progress: Callable[[int, int], None] | None = None,
        around_allocations: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        """Attach to `root`, whose parameters are on the CPU, and look into the host masters that are built of them.

        `entries`: the methods that run a pass, by default `root.forward`. `borrowers`: calls of these are visits of the
        layer whose weights they use, if the other module is a layer. `pinned`: ask for page-locked host masters;
        those that cannot be page-locked are pageable. `progress(bytes, of_bytes)` reports how much of them is filled.
        `around_allocations`: see `PassOwner`.
        """
        self.root = root
        self.queue = queue
        self.component = component
        self.plan: Plan | None = None
        self._tiers_due: TierMoves | None = None
        """Page-locks of the plan and copies to another device that had to wait for the end of the pass in which it took
        effect."""
        self._progress = progress
        discovered = keep_in_memory(root, discovery or discover(root))
        self.inventory: Inventory = discovered.inventory(component, queue.port.segment_bytes)
        self.layers = build_layers(discovered, queue.port, pinned, progress)
        uses = [layer.host.use for layer in self.layers]
        self._close_masters = weakref.finalize(self, close_uses, queue.port, uses)
        self._close_masters.atexit = False
        self._tables = HostTables(discovered.tables, queue.port)
        self._loose = self._find_loose()
        self._weights = ChangedWeights(root, component, self.layers, queue.port)
        self.around_allocations = around_allocations
        self.prefetcher = Prefetcher(queue.port, self.layers)
        self.counters = self.prefetcher.counters
        self._measured_peer: str | None = None
        """The last other device that a plan named."""
        self._from_earlier_peers = (0, 0)
        """Of the timed copies, the bytes and nanoseconds of those from other devices before it."""
        self.versions = self.prefetcher.versions
        self._ask_for_plan: AskForPlan | None = None
        self._time_to_ask: Callable[[], bool] = self.prefetcher.all_measured
        self._ring_with_gradients = True
        self._ask_for_room: AskForRoom | None = None
        self._may_repeat: MayRepeat | None = None
        self._plan_for_table: PlanForTable | None = None
        self._tables_asked_for: set[str] = set()
        """Names of the tables used as a whole since the component was loaded."""
        self._streamed: dict[Layer, int] = {}
        """The streamed layers of the plan, with their offsets in the ring."""
        self._interposed: list[Interposed] = [
            *(LayerForward(layer, self.prefetcher) for layer in self.layers),
            *(
                LayerForward(layer, self.prefetcher, module, method)
                for module, method, lender in borrowers
                for layer in self.layers
                if layer.discovered.module is lender
            ),
            *(HostGather(module, table) for table in self._tables.tables.values() for module in table.modules),
            *(PassBoundary(module, method, self.prefetcher) for module, method in entries or ((root, "forward"),)),
        ]

    # ------------------------------------------------------------------ state

    @property
    def loaded(self) -> bool:
        return self.plan is not None

    @property
    def outside_touches(self) -> dict[str, int]:
        """Number of uses of weights outside their own module's call, by layer or table. Each cost a copy."""
        touches = {layer.name: layer.host.touches.count for layer in self.layers} | self._tables.touches()
        return {name: count for name, count in touches.items() if count}

    def device_bytes(self) -> int:
        """Device bytes in use: the ring's lease, residents, loose tensors and tables."""
        if self.plan is None:
            return 0
        return self.inventory.reserved(self.plan.ring_bytes) + self._resident_bytes() + self._loose_bytes()

    def _resident_bytes(self) -> int:
        residents = (layer for layer in self.layers if layer.keep_resident and not layer.is_in_place)
        return sum(self.inventory.reserved(layer.nbytes) for layer in residents)

    def _loose_bytes(self) -> int:
        loose = self.inventory.reserved(self._loose.nbytes) if self._loose.loaded else 0
        return loose + self._tables_bytes(self._tables.on_device())

    def _tables_bytes(self, names: Collection[str]) -> int:
        tables = (table for table in self.inventory.tables if table.name in names)
        return sum(self.inventory.reserved(table.bytes) for table in tables)

    def freed_by(self, plan: Plan | None = None) -> int:
        """Device bytes that `plan`, or unloading, would free. Ring bytes that others lease do not count."""
        if self.plan is None:
            return 0
        if plan is not None:
            tables = self._tables_bytes(self._tables.on_device()) - self._tables_bytes(plan.tables)
            return tables + self._resident_bytes() - plan.resident_bytes + self.queue.freed_by(self, plan.ring_bytes)
        return self._resident_bytes() + self.queue.freed_by(self) + self._loose_bytes()

    def measured_inventory(self) -> Inventory:
        """The inventory with measured compute times and the recorded order of visits."""
        layers = tuple(
            replace(spec, compute_ns=layer.times.compute_ns) for spec, layer in zip(self.inventory.layers, self.layers)
        )
        visits = self.prefetcher.recorded_order() or self.inventory.visits
        return replace(self.inventory, layers=layers, visits=visits)

    def link_rates(self) -> LinkRates:
        counters, (earlier_bytes, earlier_ns) = self.counters, self._from_earlier_peers
        peer_bytes, peer_ns = counters.timed_peer_bytes - earlier_bytes, counters.peer_copy_ns - earlier_ns
        from_host = counters.timed_copy_bytes * 1e9 / counters.copy_ns if counters.copy_ns else None
        return LinkRates(from_host, peer_bytes * 1e9 / peer_ns if peer_ns else None, self._measured_peer)

    def pinned_bytes(self) -> int:
        """Page-locked bytes of the masters."""
        return self.host_bytes()["pinned"]

    def host_bytes(self) -> dict[HostTier, int]:
        """Bytes of the layers, by the tier that they are copied from."""
        by_tier: dict[HostTier, int] = dict.fromkeys(get_args(HostTier), 0)
        for layer in self.layers:
            by_tier[layer.host.tier] += layer.nbytes
        return by_tier

    def record(self, trace: Trace, name: str) -> None:
        """Record events into `trace` from now on, under the source name `name`."""
        layers = tuple(layer.name for layer in self.layers)
        source = Source(name, self.component, str(self.queue.port.device), layers)
        self.prefetcher.record_into(Recorder(trace, source, self.queue.clock))

    def layer_states(self) -> str:
        """One character per layer, in the plan's order (`Layer.sign`). Any thread may call it."""
        return "".join(layer.sign for layer in self.layers)

    def is_running(self) -> bool:
        """Whether a layer is in use, so that the bytes of layers must not move."""
        return any(layer.in_use for layer in self.layers)

    def in_pass(self) -> bool:
        """Whether a pass is under way, so that the plan must not change."""
        return self.prefetcher.in_pass or self.is_running()

    def _require_no_pass(self, request: str) -> None:
        if self.in_pass():
            raise StateError(f"{self.component}: asked {request}; found a pass under way; do it between passes")

    # ------------------------------------------------------------------ plan

    def change_to(self, plan: Plan) -> None:
        """As `load`, but also during a pass, as long as no layer is in use."""
        self._check(plan)
        self._ask_for_plan = None
        self._change(None, plan)

    def load(self, plan: Plan) -> None:
        """Put `plan` into effect, in place of none or of another one; layers whose place is unchanged do not move.

        Raises StateError during a pass; PlanError, before anything moves, for a plan of other layers or one that cannot
        be obeyed (`check_places`). If the device runs out of memory, the component is unloaded and the error passed on.
        Cancels a pending request to plan again, which was made under other limits.
        """
        self._check(plan)
        self._require_no_pass("for a new plan")
        if self.plan is None:
            self._take_hold()
            self._patch_layers()
        self._ask_for_plan = None
        self._change(None, plan)

    def _change(self, before: Plan | None, plan: Plan) -> None:
        """Put a checked plan into effect, or `before`, if there is one, where the device has no memory for it. On any
        other error, unload."""
        try:
            try:
                self._arrange(plan)
                return
            except torch.OutOfMemoryError:
                if before is None:
                    raise
            self._arrange(before)  # the error, whose frames hold device memory, is gone
        except BaseException:
            self.unload()
            free_peer_copies(self.layers, self.queue.port)
            raise

    def _arrange(self, plan: Plan) -> None:
        """Change to `plan`, from the plan in effect or from a partly arranged one."""
        began_ns = time.monotonic_ns()
        self.queue.withdraw(self)
        self.prefetcher.look_ahead.forget()
        self.versions.settle(self.layers)
        self._free_what_moves(plan)
        in_pass = self.in_pass()
        moves = TierMoves(self.layers, plan, self.queue.port, self.prefetcher.drain, self._progress, in_pass)
        moves.give_back()
        self._tables.take_off(plan.tables)
        self._loose.load(self.queue.port)
        self._weights.put_on_loose(self._loose)
        self._place(plan, moves)
        self._tables.load(plan.tables)
        self.prefetcher.look_ahead.expect([self.layers[index] for index in plan.visits])
        if plan.peer_device not in (None, self._measured_peer):
            self.prefetcher.read_times()  # of copies from the one before
            self._measured_peer = plan.peer_device
            self._from_earlier_peers = (self.counters.timed_peer_bytes, self.counters.peer_copy_ns)
        self.plan = plan
        self._tiers_due = moves if moves.put_off else None
        if in_pass:
            self.versions.reserve_later()
        else:
            self.versions.reserve(self.layers, self._progress)
        if self.prefetcher.recorder is not None:
            self.prefetcher.recorder.planned(began_ns, plan.device_bytes)

    @property
    def peer_device(self) -> str | None:
        """The other device in whose memory layers lie; None: there are none."""
        copies = (layer.host.on_peer for layer in self.layers)
        return next((str(copy.device) for copy in copies if copy is not None), None)

    def peer_bytes(self) -> int:
        """Bytes of another device's memory that copies of layers take, rounded up to segments."""
        return sum(self.inventory.reserved(layer.nbytes) for layer in self.layers if layer.host.on_peer is not None)

    def give_back_peer(self, nbytes: int | None = None) -> int:
        """Free at least `nbytes` of another device's memory; None, or more than there is: all that layers take there.
        Those of which least is copied go first. Returns the bytes freed.

        The plan in effect has these layers where their masters are from now on, and those that have found no memory
        there: it may be that of others by now. Raises StateError during a pass.
        """
        self._require_no_pass("to give back the other device's memory")
        before = self.peer_bytes()
        leaving = self._leaving_peer(before if nbytes is None else nbytes)
        if not leaving:
            return 0
        if self.plan is not None:
            self._ask_for_plan = None
            absent = {index for index, layer in enumerate(self.layers) if layer.host.peer_copy is None}
            self._change(None, off_peer(self.plan, leaving | absent))
        self.prefetcher.drain()
        free_peer_copies([self.layers[index] for index in leaving], self.queue.port)  # also those not in the plan
        return before - self.peer_bytes()

    def _leaving_peer(self, nbytes: int) -> set[int]:
        """Indices of layers whose copies on another device take `nbytes` together, or all of them."""
        leaving: set[int] = set()
        residents = frozenset(index for index, layer in enumerate(self.layers) if layer.keep_resident)
        for index in least_worth_first(self.measured_inventory(), residents):
            if nbytes > 0 and self.layers[index].host.on_peer is not None:
                leaving.add(index)
                nbytes -= self.inventory.reserved(self.layers[index].nbytes)
        return leaving

    def unload(self) -> None:
        """Release all device memory: the module is an ordinary one on the host again. Nothing is copied back, since the
        host masters are always up to date."""
        if self.prefetcher.recorder is not None and self.plan is not None:
            self.prefetcher.recorder.evicted(None, self.device_bytes())
        self.plan = None
        self._tiers_due = None
        self._ask_for_plan = None
        try:
            self.queue.withdraw(self)
            self.prefetcher.give_up_ring()
            self.prefetcher.drain()
            self.prefetcher.before_release()
            self.queue.lease(self, 0)
        finally:
            for layer in self.layers:
                layer.unbind()
                layer.keep(resident=False)
            self._streamed = {}
            self._weights.take_off()
            self._loose.unload()
            self._let_go()
            self._tables_asked_for.clear()
            self.inventory = self.inventory.with_tables_used_whole(())
        self.queue.port.trim()

    def _take_hold(self) -> None:
        """Interpose the layers' calls. Parameters may have been moved or replaced since the last unload."""
        for layer in self.layers:
            if not layer.take_over():
                self._let_go()
                raise StateError(
                    f"{self.component}: asked to load; found that a weight of {layer.name} has been replaced by one of "
                    "another shape or type since it was attached; detach and attach the module again"
                )
        self._loose = self._find_loose()
        self._tables.lend(self._bring_table)
        self.prefetcher.serve(self)
        for layer in self.layers:
            layer.host.touches.ask_before_writes(partial(self._before_write, layer))
        for interposed in self._interposed:
            interposed.install()

    def _find_loose(self) -> LooseTensors:
        masters = {id(p) for layer in self.layers for p in layer.host.parameters}
        return LooseTensors(self.root, masters | self._tables.parameter_ids())

    def _let_go(self) -> None:
        """Undo `_take_hold`. What refers to the controller goes: it would be a reference cycle."""
        for interposed in reversed(self._interposed):
            interposed.remove()
        self.prefetcher.serve(None)
        free_peer_copies([layer for layer in self.layers if not layer.host.lies_whole_in_file], self.queue.port)
        for layer in self.layers:
            layer.host.touches.ask_before_writes(None)
            layer.host.hand_back()
            layer.host.show_file()
        self._tables.stop_lending()

    def detach(self) -> None:
        """Restore the module: the same parameter objects, with their values, and its own forward."""
        self.unload()
        self.versions.close()
        free_peer_copies(self.layers, self.queue.port)
        self._interposed = []
        self._close_masters()
        self.layers = []
        self._ask_for_room = self._may_repeat = self._plan_for_table = None

    def write_master(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Change a layer's or loose parameter. A device copy is fetched again on the next visit. `parameter` is the
        module's, on host or device. The host waits for copies in flight. Raises StateError during a pass."""
        self._require_no_pass("to change a weight")
        for layer in self.layers:
            master = layer.master_of(parameter)
            if master is not None:
                self.prefetcher.look_ahead.forget()
                self.prefetcher.drain()
                free_peer_copies([layer], self.queue.port)
                layer.write(master, value)
                self.inventory = with_files(self.inventory, self.layers)
                self._refetch(layer)
                self._patch_layers()
                return
        self._weights.take_off_loose()
        with self._tables.off_device() as host_of:
            self._loose.write(host_of(parameter), value, self.queue.port)
        if self.plan is not None:
            self._weights.put_on_loose(self._loose)

    def _before_write(self, layer: Layer) -> None:
        """Before other code writes into a master of a loaded layer in place. During a pass copies that come after the
        write have its value, and nothing more is done about it."""
        if self.in_pass():
            layer.host.leave_peer_copy()
            return
        self.prefetcher.look_ahead.forget()
        self.prefetcher.drain()
        free_peer_copies([layer], self.queue.port)
        layer.host.to_be_written()
        self.inventory = with_files(self.inventory, self.layers)
        self._refetch(layer)
        if layer.patch is not None:
            self._patch_layers()

    def take_over_replaced(self) -> list[str]:
        """Take over values that other code has put in place of layers' parameters, or into their data.

        Returns the names of weights whose new value has no effect, because they are patched on the device from the old
        value (`set_changes`). Raises StateError during a pass, and for a value of another shape or type.
        """
        self._require_no_pass("to look at the weights")
        without_effect = []
        for layer in self.layers:
            for index, value in layer.replaced():
                full, master = layer.name_of(index), layer.host_bindings[index][2]
                if not layer.host.has_form_of(master, value):
                    raise StateError(
                        f"{self.component}: asked to run with another {full}; found a {value.dtype} of shape "
                        f"{tuple(value.shape)} put in its place, where the layer was loaded with a {master.dtype} of "
                        f"{tuple(master.shape)}; free the model's memory and load it again"
                    )
                layer.put_back(index)
                if id(master) in layer.host.touches.changes:
                    without_effect.append(full)
                else:
                    self.write_master(master, value)
            if layer.host.touches.lost_writes:
                layer.host.touches.lose_write(False)
                without_effect.append(layer.name)
        return without_effect

    def set_changes(self, changes: Mapping[str, Change]) -> None:
        """Set the changes of parameters on the device, by full name; all other parameters have the masters' values.

        A layer is changed when it next arrives; one whose changes have the same keys as before is left alone. Raises
        StateError during a pass, OffloadError for a change that cannot be made.
        """
        if self._weights.alike(changes):
            return
        self._require_no_pass("to change weights")
        self._weights.want(changes)
        self.prefetcher.look_ahead.forget()
        self._patch_layers()
        if self.plan is not None:
            self._tables.take_off()  # a changed table is replaced by a tensor of its own
            self._weights.put_on_loose(self._loose)
            self._tables.load(self.plan.tables)

    def _patch_layers(self) -> None:
        for layer in self._weights.put_on_layers(self.versions):
            self._refetch(layer)
        if self.loaded:  # before that, the streamed layers are not known
            self._finish_tiers()  # versions are page-locked where masters are
            self.versions.reserve(self.layers, self._progress)

    @contextlib.contextmanager
    def masters_shown(self) -> Iterator[None]:
        """Inside the block the module holds its masters as ordinary parameters. Raises StateError during a pass."""
        self._require_no_pass("for the masters")
        if self._weights.aside:
            yield
            return
        with self._weights.put_aside(lent=self.loaded), self._loose.put_aside(), self._tables.off_device():
            self._tables.stop_lending()
            try:
                yield
            finally:
                if self.loaded:
                    self._tables.lend(self._bring_table)

    def _refetch(self, layer: Layer) -> None:
        """Invalidate a layer's device copy: it is copied again on its next visit, after the kernels issued so far."""
        if layer.is_in_place:
            return
        layer.swap_out()  # a resident's modules would hold the old value until then
        layer.invalidate()
        self.queue.fence()

    def _check(self, plan: Plan) -> None:
        """Raises PlanError for a plan of other layers, or one that cannot be obeyed. Changes nothing."""
        existing = [(layer.name, layer.nbytes) for layer in self.layers]
        planned = [(layer.name, layer.bytes) for layer in plan.layers]
        if existing != planned:
            raise PlanError(
                f"{self.component}: asked for a plan of {len(planned)} layers; found {len(existing)} layers with other "
                "names or sizes; make the plan from this component's inventory"
            )
        findings = check_places(plan, self.inventory, TENSOR_ALIGNMENT)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise PlanError(
                f"{self.component}: asked to obey a plan; found that {findings[0]}{more}; make the plan from this "
                "component's inventory, by the planner"
            )

    def _free_what_moves(self, plan: Plan) -> None:
        """Unbind the layers that change between ring and resident, so that their memory is free for the new plan."""
        drained = False
        for layer, planned in zip(self.layers, plan.layers):
            stays = planned.placement == "resident"
            if layer.keep_resident != stays:
                if layer.keep_resident and not drained:  # its copy may be in flight; `lease` waits for the ring's
                    self.prefetcher.drain()
                    self.prefetcher.before_release()
                    drained = True
                if layer.keep_resident and self.prefetcher.recorder is not None:
                    self.prefetcher.recorder.evicted(layer.index, layer.nbytes)
                layer.unbind()
                layer.keep(resident=stays)
        if drained:
            self.queue.port.trim()

    def _place(self, plan: Plan, moves: TierMoves) -> None:
        """Lease the ring, then place all layers: the ring may have to shrink to make room for residents."""
        places = zip(self.layers, plan.layers)
        self._streamed = {layer: planned.offset for layer, planned in places if planned.offset is not None}
        link_overlaps(self._streamed)
        self.queue.lease(self, plan.ring_bytes)
        moves.take()
        for layer in self.layers:
            if layer.keep_resident and layer.device_buffer is None:
                layer.seat(self.queue.port)
        self.queue.fence()

    # ------------------------------------------------------------------ planning again

    def replan_when_measured(self, ask: AskForPlan | None) -> None:
        """Before a pass, call `ask` once for a better plan, as soon as every layer has been measured; None: never.

        `ask`: see `AskForPlan`. Layers then move one by one; what stays resident is not copied again. The host waits
        only if the plan changes. If the device has no room for the new plan, the old one stays. Only for passes through
        an entry: without one there is no moment between passes.
        """
        self._ask_for_plan, self._time_to_ask = ask, self.prefetcher.all_measured

    def replan_on_second_pass(self, ask: AskForPlan | None) -> None:
        """The same for a component planned for one pass per use: ask when a second pass begins, measured or not."""
        counters, passes = self.counters, self.counters.passes
        self._ask_for_plan, self._time_to_ask = ask, lambda: counters.passes > passes

    def measure_again(self) -> None:
        """Discard the compute times: the component is about to run on another shape, batch or patch set."""
        self.prefetcher.measure_again()

    @property
    def plan_may_change(self) -> bool:
        return self.loaded and (self._tiers_due is not None or self._ask_for_plan is not None)

    def before_pass(self) -> None:
        """Finish the page-locks that were put off; then, if it is time to, ask for a better plan and change to it. No
        pass is under way. Nothing is done while a layer is in use."""
        if self.is_running():
            return
        self._finish_tiers()
        ask, before = self._ask_for_plan, self.plan
        if ask is None or before is None or self.queue.others_running(self) or not self._time_to_ask():
            return
        self._ask_for_plan = None
        plan = ask(before, self.measured_inventory(), self.link_rates())
        if plan is not None:
            self._check(plan)
            self._change(before, plan)

    def _finish_tiers(self) -> None:
        """Finish the moves that had to wait for the end of a pass; they stay due if this raises."""
        if self._tiers_due is not None:
            self._tiers_due.finish()
            self._tiers_due = None

    # ------------------------------------------------------------------ tables that are used as a whole

    def plan_for_tables_by(self, plan_for_table: PlanForTable | None) -> None:
        """Set the callback for tables used as a whole; it is called once per table and load, until `detach`. None: the
        table is copied for each such use."""
        self._plan_for_table = plan_for_table

    def _bring_table(self, name: str) -> None:
        """A table is about to be used as a whole: place it on the device if a plan has room for it."""
        before = self.plan
        if before is None or self._plan_for_table is None or name in self._tables_asked_for:
            return
        if self.is_running() or self.queue.others_running(self):  # bytes of a layer in use must not move
            return
        self._tables_asked_for.add(name)
        self.inventory = self.inventory.with_tables_used_whole(self._tables_asked_for)
        with self.around_allocations():  # a changed plan takes memory
            plan = self._plan_for_table(self, name)
            if plan is not None:
                self._check(plan)
                self._change(before, plan)

    # ------------------------------------------------------------------ what the prefetcher asks in a pass

    def when_full(self, ask: AskForRoom | None, may_repeat: MayRepeat | None = None) -> None:
        """Set the callback for a device that is full in the middle of a pass; None: errors pass on. Ends with `detach`.

        A layer is run again if our own work failed before it began, or if its call had no side effect when it failed
        (`repeat.py`) and `may_repeat` rules out hidden side effects in its arguments.
        """
        self._ask_for_room, self._may_repeat = ask, may_repeat

    def no_ring_while_gradients_are_recorded(self) -> None:
        """Do without ring and look-ahead while gradients are recorded. For components whose inference records none.

        Autograd keeps weights of the forward for the backward, a ring does not. Each visit of a streamed layer then
        gets memory of its own, which autograd keeps as long as it needs it: training takes as much memory as without
        offload, and is correct.
        """
        self._ring_with_gradients = False

    def make_room(self, layer: str, too_late: bool) -> bool:
        """Change to a smaller plan during a pass, while no layer is in use. Returns whether there is more room."""
        before, ask = self.plan, self._ask_for_room
        plan = None if before is None or ask is None else ask(before, layer, too_late)
        if plan is None:
            return False
        try:
            if plan is not before:
                self.change_to(plan)
        except (torch.OutOfMemoryError, OffloadError):  # no room even for less: the first error passes on
            return False
        return True

    def may_repeat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return self._ask_for_room is not None and self._may_repeat is not None and self._may_repeat(args, kwargs)

    def may_use_ring(self) -> bool:
        """Make the ring ours for a pass that begins now. Returns whether it is, and has layers to stream."""
        if not self._ring_with_gradients and torch.is_grad_enabled():
            if any(layer.valid and not layer.keep_resident for layer in self.layers):
                self.prefetcher.give_up_ring()  # look-ahead has copied layers for this pass
            return False
        return self.plan is not None and bool(self._streamed) and self.queue.activate(self)

    def is_last_pass(self) -> bool:
        return self.plan is not None and self.queue.pass_begins(self)

    def fetch_next(self) -> None:
        self.queue.fetch_next()

    def keep_ring(self) -> None:
        self.queue.keep_for_holder(self)

    # ------------------------------------------------------------------ the queue's lessee

    def use_begins(self) -> None:
        """The caller is about to use the component, for some passes in a row: near the end of its next such use, the
        component that ran after it this time may be fetched."""
        self.queue.use_begins(self)

    def is_between_passes(self) -> bool:
        return not self.in_pass() and not self.prefetcher.look_ahead.trace

    def ring_places(self) -> Mapping[Layer, int]:
        return self._streamed

    def share_ring(self, places: Mapping[Any, int]) -> None:
        link_overlaps({**self._streamed, **places})

    def fetch_early(self) -> None:
        self.prefetcher.fetch_early()

    def ring_moved(self, arena: torch.Tensor | None) -> None:
        self.prefetcher.give_up_ring()
        if arena is None:
            self.prefetcher.before_release()
        for layer, offset in self._streamed.items():
            if arena is None:
                layer.unbind()
            else:
                layer.bind(arena[offset : offset + layer.nbytes])

    def give_up_ring(self) -> None:
        self.prefetcher.give_up_ring()
        self.prefetcher.give_up_reads()
