"""What stands behind our patchers: one component per underlying module, shared by all clones.

Patchers come and go with the graph; a component owns the module's controller, until the last of them goes.
"""

from __future__ import annotations

import collections
import itertools
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...offload_core.errors import OffloadError, StateError
from ...offload_core.files.layer_walk import MIN_LAYER_BYTES
from ...offload_core.notices import Notice
from ...offload_core.planning.host_tiers import out_of_tier
from ...offload_core.planning.inventory import Inventory
from ...offload_core.planning.measured_times import (
    FileState,
    MeasuredTimes,
    TimesKey,
    with_earlier_rate,
    with_earlier_times,
)
from ...offload_core.planning.plan import Plan
from ...offload_core.planning.plan_change import better_plan, demoted
from ...offload_core.planning.plan_text import plan_to_text
from ...offload_core.planning.planner import make_plan, smallest_budget, usual_budget, usual_ring_of
from ...offload_core.planning.request import PlanRequest
from ...offload_core.runtime import LinkRates, OffloadController, discover
from ...offload_core.runtime.layers.discovery import keep_in_memory
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import OF_THE_WORKFLOW, ComponentSettings, Setting
from ...offload_core.settings.groups import numbered_base
from ...offload_core.settings.node_table import DECLARED_AS
from ...offload_core.units import gb_at_least
from ..app import compat
from ..app.device import queue_for, ring_there, segment_bytes, streams_to
from ..app.kinds import KIND_BY_NAME, Kind, borrowers_of, entries_of, kind_of
from ..app.recording import recording
from ..app.watch import Before
from ..files.ahead import Ahead, components_of_running_prompt
from ..memory.allowances import host_limits, not_locked
from ..memory.host_memory import host_memory, moved_bytes
from ..memory.peers import not_stored
from ..planning.decide import MEASURED_FROM_PASSES, Decision, decide, plan_decision
from ..planning.placing import Neighbour, Situation, left_to_the_app, may_stream_on, wanted_bytes
from ..planning.remembered import key_of, name_of, remembered
from ..planning.workflow import Member, number_of, within_part
from ..requests.requested import Requested
from .mapped_load import fill_in_missing
from .peer_store import PeerStore

log = logging.getLogger(__name__)

_ATTRIBUTE = "layerwise_offload_component"

_OTHERS_NUMBER = 500
"""Of another component of a prompt that has this one's name: a number that no graph has."""

MakeWay = Callable[[Plan, PlanRequest, int], tuple[Plan, PlanRequest]]

_live: weakref.WeakSet[Component] = weakref.WeakSet()
_uses = itertools.count()
_numbers: collections.defaultdict[str, itertools.count[int]] = collections.defaultdict(lambda: itertools.count(1))
"""How many components of a kind there have been: ids are never used twice."""


class Component:
    """One module under layerwise offload inside the app. Light until `attach`, and again after `close`."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.id = f"{kind.name}-{next(_numbers[kind.name])}"
        """For programs: see `docs/formats.md`."""
        self.name = kind.name
        self._is_named = False
        self.model_name = ""
        self._files: tuple[FileState, ...] = ()
        """The files of the weights as they were when it was loaded from them; none where another node did that."""
        self._happened: list[Notice] = [Notice("", what) for what in compat.unheeded()]
        self._to_do: list[Notice] = []
        self.announce: Callable[[Component], None] | None = None
        """Tells browsers what became of the component."""
        self.reads_file = False
        """On a device that takes host memory: the weights are in a file and are streamed from there."""
        self.used = next(_uses)
        """Larger than that of each component that was made, or loaded last, before."""
        self.patchers: weakref.WeakSet[Any] = weakref.WeakSet()
        """Our patchers over the module; the last one to go closes the component."""
        self._controller: OffloadController | None = None
        self.peer_store = PeerStore(self)
        """What it keeps in another device's memory."""
        self._mover: Before | None = None
        self._watch: Before | None = None
        self._found_inventory: Inventory | None = None
        self._planned_for: tuple[Any, ...] | None = None
        self.last_plan: Plan | None = None
        self.peak_device_bytes = 0
        self._decision: Decision | None = None
        """What the last load came to, before it was planned."""
        self.request: PlanRequest | None = None
        """What the plan in effect was made for; off the device, the last one."""
        self.run_began: dict[str, int] = {}
        """The counters when it was last loaded, which the app does for each use."""
        self._crowded: tuple[tuple[int, ...] | None, int] | None = None
        """The shape on which the device ran out of memory in the middle of a pass, and the bytes it can have there."""
        self._workflow_bytes: int | None = None
        """What all components on its device may take together while it is used; None: nothing was set."""
        self._needs_room = False
        """On the shape of `_crowded`, idle components have to leave the device before this one runs."""
        self.shape: tuple[int, ...] | None = None
        """The shape that the app last estimated memory for: what the next passes will run on."""
        self._measuring_for: tuple[int, ...] | None = None
        self._settled: tuple[tuple[int, ...] | None, int] | None = None
        """Shape and budget for which the plan was judged with measured times."""
        _live.add(self)

    @classmethod
    def of(cls, model: torch.nn.Module, declared: str = "") -> Component:
        """The component of an app model, made if it has none; `declared`: see `kind_of`."""
        component = vars(model).get(_ATTRIBUTE)
        if component is None:
            component = cls(kind_of(model, declared))
            vars(model)[_ATTRIBUTE] = component
        return component

    def named(self, name: str) -> str:
        """The component's name: the first one it is given, for it stands in plans and in what others were told."""
        if not self._is_named:
            self.name, self._is_named = name, True
            self._found_inventory = None
        return self.name

    @property
    def controller(self) -> OffloadController:
        if self._controller is None:
            raise StateError(f"{self.name}: asked for its layers; found it not attached; load it first")
        return self._controller

    @property
    def attached(self) -> bool:
        return self._controller is not None

    @property
    def loaded(self) -> bool:
        return self._controller is not None and self._controller.loaded

    def add_patcher(self, patcher: Any, announce: Callable[[Component], None]) -> None:
        """A patcher over the module has been made. `announce` tells browsers what becomes of the component."""
        self.patchers.add(patcher)
        self.announce = announce

    def comes_from(self, file_name: str, files: tuple[FileState, ...], reads_file: bool) -> None:
        """The file of the weights; `reads_file`: the device takes host memory, and they are streamed from the file."""
        self.model_name, self._files, self.reads_file = file_name, files, reads_file

    def watch_shape(self, model: torch.nn.Module) -> None:
        """Note from now on what shape the app estimates memory for, which it does before it loads. Idempotent."""
        if self._watch is None and self.kind.passes > MEASURED_FROM_PASSES and hasattr(model, "memory_required"):
            self._watch = Before(model, "memory_required", self._runs_on)
            self._watch.install()

    def stop_watching(self) -> None:
        """The last of our patchers goes: `watch_shape` has put the component into a reference cycle with its model."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def attach(self, model: torch.nn.Module, device: torch.device) -> None:
        """Build the host masters. Weights that are not on the host come there. Idempotent."""
        if self._controller is not None:
            return
        fill_in_missing(model)
        if any(p.device.type not in ("cpu", "meta") for p in model.parameters()):
            model.to("cpu")
        self.model_name = self.model_name or type(model).__name__
        self.device = device
        discovery = keep_in_memory(model, discover(model))
        this = weakref.ref(self)
        self._controller = OffloadController(
            model,
            queue_for(device),
            component=self.name,
            discovery=discovery,
            entries=entries_of(model, self.kind),
            borrowers=borrowers_of(model, self.kind),
            pinned=False,  # the plan says who is page-locked
            progress=moved_bytes(lambda: None if (component := this()) is None else component._controller),
            around_allocations=compat.outside_the_apps_graph(),
        )
        self._controller.record(recording(), self.id)
        host_memory().joined(self._controller)
        self._controller.plan_for_tables_by(self._with_table)
        self._controller.no_ring_while_gradients_are_recorded()  # the app's nodes infer in inference mode
        # The app's own patchers move a module that is also ours: then it has to be an ordinary one.
        self._mover = Before(model, "to", lambda *_, **__: self.unload())
        self.watch_shape(model)

    def detach(self) -> None:
        """The module is an ordinary one on the host again, with the values it has now; `attach` may follow."""
        if self._controller is not None:
            self.unload()
            host_memory().left(self._controller)
            self._controller.detach()
            host_memory().update_app_account()
            self._controller, self._mover = None, None
            self._settled = None  # measured there; `attach` may be on another device

    def close(self) -> None:
        """The module is an ordinary one of the app again, without a component."""
        if self._controller is not None:
            model = self._controller.root
            self.detach()
            vars(model).pop(_ATTRIBUTE, None)

    # ------------------------------------------------------------------ sizes

    def device_bytes(self) -> int:
        """What it holds on the device now."""
        return 0 if self._controller is None else self._controller.device_bytes()

    def freeable_bytes(self) -> int:
        """What comes free when it leaves the device: of a ring that others share, only what they do not need."""
        return 0 if self._controller is None else self._controller.freed_by()

    def wanted_bytes(self, model: torch.nn.Module, requested: Requested, device: torch.device) -> int:
        """Device bytes to ask the app for before loading `model` on `device`; see `placing.wanted_bytes`."""
        inventory = self.inventory_of(model, device)
        wanted = wanted_bytes(self.kind, requested, inventory, self._ring_shared(inventory, device))
        own = Member(requested.settings, inventory, self.kind.passes)
        return within_part(wanted, own, device, self.members(requested, device))

    def _ring_shared(self, inventory: Inventory, device: torch.device) -> int:
        """How much of a usual ring is there already, because another component has leased it."""
        return min(usual_ring_of(inventory), ring_there(device))

    def inventory_of(self, model: torch.nn.Module, device: torch.device) -> Inventory:
        """What is in the module, with the sizes that it would have on `device`."""
        if self._controller is not None:
            return self._controller.inventory
        if self._found_inventory is None:
            self._found_inventory = keep_in_memory(model, discover(model)).inventory(self.name, 1)
        return replace(self._found_inventory, segment_bytes=segment_bytes(device))

    # ------------------------------------------------------------------ loading

    def load(self, requested: Requested, offered_bytes: float, make_way: MakeWay) -> None:
        """Load within what `requested` or else the policy and the app allow; a plan that is still right is kept.

        make_way: called before a plan is loaded, with it, its request and the bytes of the workflow's budget. It has
        the others give back what is more than that, and returns the plan to load, with its request.
        """
        self.used = next(_uses)
        if self.loaded and not self.controller.in_pass():
            for name in self.controller.take_over_replaced():  # others have put weights of their own into the module
                self.warn(sentence("written_under_patch", name=name), do=sentence("do_change_before"))
        crowded_bytes = self._on_this_shape(self._crowded)
        if self._needs_room and crowded_bytes is not None:
            for other in self.idle_beside():
                other.leave_device()
        if not self.loaded:  # a ring that is there for others is there for it, if it can do with a ring
            inventory = self.controller.inventory
            shared = self._ring_shared(inventory, self.device)
            offered_bytes = max(offered_bytes, min(offered_bytes + shared, usual_budget(inventory)))
        wishes = (requested.settings, requested.mode, requested.selection, requested.in_split)
        if host_memory().make_room_before_load(self.controller):
            self._planned_for = None
        self.peer_store.take_again(requested)
        held_bytes, layers = self.device_bytes(), self.controller.layers
        neighbours, members = self.neighbours(), self.members(requested, self.device)
        situation = Situation(self.device, offered_bytes, held_bytes, neighbours, layers, crowded_bytes, members)
        decision = decide(requested, self.kind, self.controller.inventory, situation)
        keeps = self.loaded and self._planned_for == wishes and self._still_good(requested, decision)
        if not keeps:
            self.peer_store.make_room(requested, decision.request, [other.peer_store for other in self._others()])
        situation = replace(situation, on_peer=self.peer_store.limits(requested, self.device))
        plan, request = (self.plan, self.request) if keeps else self._plan(requested, decision, situation)
        assert plan is not None and request is not None
        self._workflow_bytes = number_of(requested.settings, self.device)
        if self._workflow_bytes is not None:
            current = plan
            plan, request = make_way(plan, self._within(request, decision), self._workflow_bytes)
            keeps = keeps and plan is current
        if keeps:
            self.request = request
        else:
            host_number = requested.settings.explicit(Setting.WORKFLOW_HOST_BYTES, int)
            if host_number is not None:
                host_memory().keep_within(host_number, self.controller, plan)
            self.put_into_effect(plan, request)
            if self._workflow_bytes is not None and self._on_this_shape(self._settled) is not None:
                self._settled = (self.shape, request.budget_bytes or 0)  # the others may have left less at that time
        self.peer_store.loaded(requested)
        self._decided(decision)
        self._say_if_nothing_streams(requested)
        # What it shares may not be what it was planned to page-lock.
        host_memory().free_until_not_short(self.controller)
        self._planned_for = wishes
        self.run_began = self.controller.counters.as_dict()
        self.controller.use_begins()
        assert self._mover is not None
        self._mover.install()
        self._measure()

    def _within(self, request: PlanRequest, decision: Decision) -> PlanRequest:
        """The request of the plan in effect, within the budget of now: it is planned again for no more than that."""
        budget = decision.request.budget_bytes
        if budget is None or request.budget_bytes is None:
            return request
        return replace(request, budget_bytes=min(budget, request.budget_bytes))

    def _say_if_nothing_streams(self, requested: Requested) -> None:
        """Warn where a component was asked to be streamed and has no layer that can be."""
        inventory = self.controller.inventory
        if requested.value("placement") == "layerwise" and all(layer.keep is not None for layer in inventory.layers):
            least, size = f"{MIN_LAYER_BYTES / 1e6:.0f} MB", f"{inventory.total_bytes / 1e9:.3f} GB"
            what = sentence("nothing_to_stream", model=self.model_name, least=least, size=size)
            self.warn(what, do=sentence("do_choose_whole"))

    def _decided(self, decision: Decision) -> None:
        """What this load came to. Its notices take the place of the last load's; those that are new are told."""
        before = {notice.line if notice.do else notice.code for notice in self._notices}
        self._decision = decision
        for notice in self._notices:
            if (notice.line if notice.do else notice.code) not in before:
                self._is_new(notice)

    @property
    def _notices(self) -> tuple[Notice, ...]:
        return () if self._decision is None else self._decision.as_planned(self.plan).notices

    @property
    def resolved(self) -> ComponentSettings | None:
        """The settings of the last load, with what the policy filled in and the placement that the plan has."""
        return None if self._decision is None else self._decision.as_planned(self.plan).settings

    @property
    def notices(self) -> list[Notice]:
        """What there is to say of it: what has happened since it exists, and the notices of the last load."""
        return [*self._happened, *self._notices]

    def neighbours(self) -> list[Neighbour]:
        """The other components that are alive and in use."""
        return [neighbour for other in self._others() if (neighbour := other._as_neighbour()) is not None]

    def members(self, requested: Requested, device: torch.device) -> list[Member]:
        """The other components of the prompt that runs, on `device`, as far as we stream them and know their sizes;
        empty if nothing was set for the whole workflow."""
        is_set = any(requested.settings.is_explicitly_set(name) for name in OF_THE_WORKFLOW)
        if not is_set or not streams_to(device):
            return []
        coming = components_of_running_prompt(device)
        own = next((ahead for ahead in coming if _latest(ahead) is self), None)
        others = [ahead for ahead in coming if ahead is not own]
        if own is None:
            others = [ahead for ahead in others if ahead.requested.component != self.name]
        return [member for ahead in others if (member := self._as_member(ahead, device)) is not None]

    def _as_member(self, ahead: Ahead, device: torch.device) -> Member | None:
        """Another component of the prompt as part of the workflow; None if we do not stream it on `device`, or know no
        size of it."""
        other = _latest(ahead)
        patcher, inventory = None if other is None else next(iter(other.patchers), None), ahead.inventory
        if other is not None and patcher is not None:
            inventory = other.inventory_of(patcher.model, device) if patcher.load_device == device else None
        settings = ahead.requested.settings
        if inventory is None or left_to_the_app(ahead.requested):
            return None
        if not may_stream_on(device, ahead.requested, inventory.total_bytes):
            return None
        if settings.component == self.name:  # which was named in an earlier prompt, where the numbers were others
            settings = replace(settings, component=f"{numbered_base(self.name)[0]}_{_OTHERS_NUMBER}")
        return Member(settings, inventory, KIND_BY_NAME[ahead.wanted.kind].passes)

    def is_that_of(self, ahead: Ahead) -> bool:
        """Whether this is the component that a prompt brings as `ahead`, by nodes, kind and file. Not by its name: what
        the app has kept is not loaded, and so not named, anew."""
        kind = DECLARED_AS.get(self.kind.name, self.kind.name)
        if kind != ahead.wanted.kind or not set(ahead.wanted.nodes) & set(self.nodes()):
            return False
        return ahead.wanted.by_the_app or ahead.model in ("", self.model_name)

    def is_of_running_prompt(self) -> bool:
        """Whether the prompt that runs brings it; True where that is not known."""
        coming = components_of_running_prompt(self.device)
        return not coming or any(_latest(ahead) is self for ahead in coming)

    def held_beside_rings(self) -> int:
        """Device bytes of residents, loose tensors and tables."""
        return self.device_bytes() - self.leased_bytes()

    def leased_bytes(self) -> int:
        """Device bytes that it needs of the ring that components share."""
        plan = None if self._controller is None else self._controller.plan
        return 0 if plan is None else self.controller.inventory.reserved(plan.ring_bytes)

    def _others(self) -> list[Component]:
        return [other for other in list(_live) if other is not self]

    def idle_beside(self) -> list[Component]:
        """The other components on its device that run nothing now."""
        return [other for other in self.others_on_device() if not other.controller.in_pass()]

    def others_on_device(self) -> list[Component]:
        """The other components that are loaded on its device."""
        return [other for other in self._others() if other.loaded and other.device == self.device]

    def _as_neighbour(self) -> Neighbour | None:
        """How another component sees it; None once no patcher uses it any more."""
        patcher = next(iter(self.patchers), None)
        if patcher is None:
            return None
        model, requested, device = patcher.model, patcher.requested, patcher.load_device
        asks = patcher.streams and self.kind.asks_for_ring and not self.loaded
        wanted = self.wanted_bytes(model, requested, device) if asks else 0
        return Neighbour(requested, self.inventory_of(model, device).total_bytes, self.device_bytes(), wanted)

    def _on_this_shape(self, noted: tuple[tuple[int, ...] | None, int] | None) -> int | None:
        """The bytes of `_crowded` or `_settled`, if it was noted for this shape; else None."""
        return noted[1] if noted is not None and noted[0] == self.shape else None

    def _runs_on(self, input_shape: Sequence[int], *_: Any, **__: Any) -> None:
        """The app estimates memory for this shape right before it loads the model: the next passes will run on it."""
        self.shape = tuple(input_shape)

    def ran_full(self, nbytes: int, needs_room: bool = False) -> None:
        """In the middle of a pass: on this shape it can have `nbytes`. needs_room: and idle components have to go."""
        self._crowded = self.shape, nbytes
        self._needs_room = self._needs_room or needs_room

    def unload(self) -> None:
        """Give the device back. Nothing is copied."""
        if self._controller is not None and self._mover is not None:
            self._mover.remove()
            self._controller.unload()

    def leave_device(self) -> None:
        """Off the device by our own choice; the app finds it gone. Patched weights stay as they are."""
        model: Any = self.controller.root  # the app notes on it what is loaded
        self.unload()
        self._planned_for = None
        model.model_loaded_weight_memory = 0
        model.device = torch.device("cpu")

    def plan_afresh(self) -> None:
        """Have the next load plan again, even for the settings of the plan in effect."""
        self._planned_for = None

    def _with_table(self, controller: OffloadController, table: str) -> Plan | None:
        """Within the same limits, a plan that has the table on the device; None, and a notice, if there is no room."""
        assert self.request is not None and controller.plan is not None
        tables = controller.inventory.tables
        request = replace(self.request, inventory=replace(self.request.inventory, tables=tables))
        request = self._beside_the_others(request, controller.plan)
        plan = demoted(controller.plan, request)
        if table not in plan.tables:
            nbytes = next(spec.bytes for spec in tables if spec.name == table)
            needed = smallest_budget(request.inventory) + request.inventory.reserved(nbytes)
            what = sentence("table_has_no_room", table=table, size=f"{nbytes / 1e9:.2f} GB")
            self.warn(what, do=sentence("do_set_budget", budget=gb_at_least(needed)))
            return None
        self.planned(plan, request)
        self.peak_device_bytes = max(self.peak_device_bytes, plan.device_bytes)
        log.info("Layerwise Offload, %s, planned again for %s:\n%s", self.model_name, table, plan_to_text(plan))
        return plan

    def _beside_the_others(self, request: PlanRequest, current: Plan) -> PlanRequest:
        """The request within what the others leave now of the workflow's budget: they give back at loads only. What the
        current plan has it may keep."""
        if self._workflow_bytes is None or request.budget_bytes is None:
            return request
        others = self.others_on_device()
        ring_bytes = max((other.leased_bytes() for other in others), default=0)
        room_bytes = self._workflow_bytes - sum(other.held_beside_rings() for other in others) - ring_bytes
        return replace(request, budget_bytes=min(request.budget_bytes, max(room_bytes, current.device_bytes)))

    def planned(self, plan: Plan, request: PlanRequest) -> None:
        """The plan in effect from now on, and what it was made for."""
        self.last_plan, self.request = plan, request

    def put_into_effect(self, plan: Plan, request: PlanRequest) -> None:
        """Load `plan`, made for `request`, or the least that works if the device has no room for it after all."""
        before = self.last_plan, self.request
        try:
            plan = self._load(plan, request)
        except BaseException:
            self.last_plan, self.request = before  # which are in effect still, if any are
            raise
        host_memory().update_app_account()
        if missing := not_locked(self.controller):
            self.warn(missing, do=sentence("do_free_memory"))
        if missing := not_stored(self.controller):
            self.warn(missing, do=sentence("do_lower_peer_budget", device=str(plan.peer_device)))
        self.peak_device_bytes = max(self.peak_device_bytes, self.device_bytes())
        log.info("Layerwise Offload, %s:\n%s", self.model_name, plan_to_text(plan))

    def _load(self, plan: Plan, request: PlanRequest) -> Plan:
        """Returns what was loaded. Patched layers that are kept while it loads are within the budget of `request`."""
        self.planned(plan, request)
        try:
            self.controller.load(plan)
        except torch.OutOfMemoryError:
            if request.placement == "resident":
                raise
            least = least_request(request)
            smaller = make_plan(least)
            if smaller.device_bytes >= plan.device_bytes:
                raise
            planned, used = (f"{size / 1e9:.2f} GB" for size in (plan.device_bytes, smaller.device_bytes))
            self.warn(sentence("less_than_planned", planned=planned, device=str(self.device), used=used))
            self.planned(smaller, least)
            self.controller.load(smaller)
            return smaller
        return plan

    def _measure(self) -> None:
        """A component of many passes is planned again, once, when its layers have been measured on this shape."""
        if self.kind.passes <= MEASURED_FROM_PASSES or self._on_this_shape(self._settled) is not None:
            return
        if self._measuring_for not in (None, self.shape):
            self.controller.measure_again()
        self._measuring_for = self.shape
        self.controller.replan_when_measured(self._better_plan)

    def _better_plan(self, current: Plan, inventory: Inventory, rates: LinkRates) -> Plan | None:
        """Within the same limits and with measured times: a plan worth moving layers for, if there is one."""
        assert self.request is not None
        link = rates.from_host
        request = self._beside_the_others(replace(self.request, inventory=inventory), current)
        if link is not None:
            request = replace(request, h2d_bytes_per_s=link, link_source=f"measured on {self.device}")
        if rates.from_peer is not None:
            request = replace(request, peer_bytes_per_s=rates.from_peer, peer_source="measured")
        self._settled = (self.shape, request.budget_bytes or 0)
        self.planned(current, request)
        self._remember(inventory, rates)
        try:
            plan = better_plan(current, request)
        except OffloadError as error:  # the pass that is about to begin can do without
            log.warning("Layerwise Offload, %s: not planned again: %s", self.model_name, error)
            return None
        if plan is None or out_of_tier(plan, request):  # the host tier that was asked for cannot be had for all of it
            return None
        self.planned(plan, request)
        log.info("Layerwise Offload, %s, planned again:\n%s", self.model_name, plan_to_text(plan))
        return plan

    def _still_good(self, requested: Requested, decision: Decision) -> bool:
        """Whether the plan in effect suits what was decided, or nearly enough not to move anything."""
        plan, budget = self.controller.plan, decision.request.budget_bytes
        if plan is None or budget is None:
            return True
        if plan.device_bytes > budget:
            return False
        if requested.settings.is_explicitly_set("budget_bytes"):
            return True
        largest = max((plan.layers[index].bytes for index in plan.streamed), default=None)
        settled_bytes = self._on_this_shape(self._settled)
        judged_at = plan.device_bytes if settled_bytes is None else settled_bytes
        return largest is None or budget - judged_at < 2 * largest

    def _plan(self, requested: Requested, decision: Decision, situation: Situation) -> tuple[Plan, PlanRequest]:
        """The plan for what was decided, with the times and the link that are known and the limits of host memory."""
        request = decision.request
        if self._on_this_shape(self._settled) is not None and self.request is not None:
            inventory = replace(self.request.inventory, tables=request.inventory.tables)
            rate, source = self.request.h2d_bytes_per_s, self.request.link_source
            request = replace(request, inventory=inventory, h2d_bytes_per_s=rate, link_source=source)
        elif (times := remembered().times(self._times_key())) is not None:
            request = with_earlier_times(request, times)
        peer = None if situation.on_peer is None else situation.on_peer.get("peer_device")
        if peer is not None:
            request = self._with_rate_of(peer, request)
        copies_bytes = host_limits(requested.settings, self.device, self.controller.layers)["copies_budget_bytes"]
        host_memory().free_lingering_if_needed(self.controller, copies_bytes)
        return plan_decision(replace(decision, request=request), requested.settings, situation, self.model_name)

    def _with_rate_of(self, peer: str, request: PlanRequest) -> PlanRequest:
        """The request with the rate of copies from the device `peer`, measured now or earlier; without one if it was
        never measured."""
        rates = self.controller.link_rates()
        if rates.peer == peer and rates.from_peer is not None:
            return replace(request, peer_bytes_per_s=rates.from_peer, peer_source="measured")
        times = remembered().times(self._times_key())
        if times is None:
            return replace(request, peer_bytes_per_s=None)
        return with_earlier_rate(request, times, name_of(torch.device(peer)))

    def _times_key(self) -> TimesKey | None:
        """What its times are kept under, on the shape of the next passes; None if they are not kept."""
        if self.kind.passes <= MEASURED_FROM_PASSES:
            return None
        return key_of(self._files, self.kind.name, self.device, self.shape, self.controller.inventory)

    def _remember(self, measured: Inventory, rates: LinkRates) -> None:
        """Keep what was measured for later processes. Where no copy was measured, the link's earlier rate is kept."""
        key = self._times_key()
        if key is None:
            return
        from_host, from_peers = rates.from_host, {}
        if (earlier := remembered().times(key)) is not None:
            from_host, from_peers = from_host or earlier.h2d_bytes_per_s, dict(earlier.peer_bytes_per_s)
        if rates.peer is not None and rates.from_peer is not None:
            from_peers[name_of(torch.device(rates.peer))] = rates.from_peer
        try:
            times = MeasuredTimes.of(measured, from_host, from_peers)
        except OffloadError:  # a device whose name cannot be written, say
            return
        if times is not None:
            remembered().remember(key, times)

    def warn(self, what: Sentence, do: Sentence | None = None) -> None:
        """A notice for the report and the node, once. `do`: what the user can do about it, who is then told at once."""
        notice = Notice(self.name, what, do)
        if notice not in self._happened:
            self._happened.append(notice)
            self._is_new(notice)
            if do is not None and self.loaded and self.announce is not None:
                self.announce(self)

    def _is_new(self, notice: Notice) -> None:
        """What has not been said before goes into the log, and to the user if there is something to do."""
        log.warning("Layerwise Offload: %s: %s", self.model_name, notice.line)
        if notice.do is not None:
            self._to_do.append(notice)

    def take_to_do(self) -> list[Notice]:
        """What the user has not been told yet, of the notices that are for them to act on."""
        to_do, self._to_do = self._to_do, []
        return to_do

    # ------------------------------------------------------------------ for reports

    @property
    def plan(self) -> Plan | None:
        """The plan in effect, else the last one; None if it has never been loaded."""
        if self._controller is None:
            return None
        return self._controller.plan or self.last_plan

    def nodes(self) -> tuple[str, ...]:
        """Ids of the graph's nodes that asked for it, as far as their patchers are alive."""
        return tuple(sorted({node for patcher in list(self.patchers) for node in patcher.requested.nodes}))


def least_request(request: PlanRequest) -> PlanRequest:
    """The same component with a ring for one layer and what must stay."""
    return replace(request, budget_bytes=smallest_budget(request.inventory), ring_bytes=None, placement="layerwise")


def _latest(ahead: Ahead) -> Component | None:
    """The component that a prompt brings as `ahead`; None if there is none yet. Of several, for the app may have kept
    that of an earlier prompt, the one that was made or loaded last."""
    return max(
        (component for component in list(_live) if component.is_that_of(ahead)),
        key=lambda component: component.used,
        default=None,
    )


def live_components() -> list[Component]:
    """All components that exist."""
    return list(_live)
