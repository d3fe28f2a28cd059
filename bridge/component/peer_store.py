"""What a component keeps in another device's memory, and its giving back to that device's own models.

The app's memory management knows it as one more model on that device (`StoredLayers`), which it asks for room before
any model that is there whole. What it holds there are copies: giving them back loses nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ...offload_core.planning.planner import make_plan
from ...offload_core.planning.request import PlanRequest
from ...offload_core.runtime import OffloadController
from ...offload_core.sentences import Sentence, sentence
from ...offload_core.settings.component_settings import Setting, peer_of
from ..app.kinds import Kind
from ..memory.peers import peer_limits
from ..requests.requested import Requested

ASKED_FIRST_BYTES = 1 << 16
"""The app asks for room where most is missing on the device, first. A store says that this much is missing: more than
our models say (`giving_back.UNLOAD_ORDER_BYTES`), and too little to make the app free anything for it."""


class Keeper(Protocol):
    """What a store needs of its component."""

    kind: Kind

    @property
    def attached(self) -> bool: ...

    @property
    def controller(self) -> OffloadController: ...

    def plan_afresh(self) -> None: ...

    def warn(self, what: Sentence) -> None: ...


class PeerStore:
    """The store of one component. Does not keep it alive."""

    def __init__(self, component: Keeper) -> None:
        self._component = weakref.ref(component)
        self._most: dict[str, int] = {}
        """By device: bytes that it may have there at most, because other models on the device needed the rest."""
        self._thread: int | None = None
        """The thread that loaded the component: no other one may move its layers."""
        self._patchers: dict[str, StoredLayers] = {}

    @property
    def device(self) -> str | None:
        """The other device on which layers lie; None: there are none."""
        component = self._component()
        if component is None or not component.attached:
            return None
        return component.controller.peer_device

    def held_bytes(self) -> int:
        """Bytes that layers take there."""
        component = self._component()
        return component.controller.peer_bytes() if component is not None and component.attached else 0

    def limits(self, requested: Requested, device: torch.device) -> dict[str, Any]:
        """What a plan of the component may take there now; see `peer_limits`."""
        name = peer_of(requested.settings)
        if name is None or requested.in_split:
            return {}
        held_bytes = self.held_bytes() if name == self.device else 0
        return peer_limits(requested.settings, device, held_bytes, self._most.get(name))

    def take_again(self, requested: Requested) -> None:
        """Before the component is planned: what other models on the device needed is theirs until none of them is there
        any more."""
        name, component = peer_of(requested.settings), self._component()
        if name not in self._most or component is None:
            return
        models = [entry.model for entry in mm.current_loaded_models if str(entry.device) == name]
        if all(model is None or isinstance(model, StoredLayers) for model in models):
            del self._most[name]
            component.plan_afresh()

    def make_room(self, requested: Requested, request: PlanRequest, stores: Iterable[PeerStore]) -> None:
        """Before the component is planned, for `request`: have those of fewer passes a use give back what it lacks on
        the device that was named. It gains more from the memory there."""
        limits = self.limits(requested, torch.device(request.device))
        if not limits:
            return
        name = limits["peer_device"]
        poorer = [store for store in stores if store.device == name and store.passes < request.passes]
        if not poorer:
            return
        whole = sum(request.inventory.reserved(layer.bytes) for layer in request.inventory.layers)
        most = (whole, requested.settings.explicit(Setting.PEER_BUDGET_BYTES, int), self._most.get(name))
        with_room = limits | {"peer_budget_bytes": min(limit for limit in most if limit is not None)}
        missing = make_plan(replace(request, **with_room)).peer_bytes - limits["peer_budget_bytes"]
        for store in poorer:
            if missing > 0:
                missing -= store._give_back(missing)

    @property
    def passes(self) -> int:
        """Passes a use of the component."""
        component = self._component()
        return 0 if component is None else component.kind.passes

    def loaded(self, requested: Requested) -> None:
        """This thread has loaded the component: tell the app what it holds there, and say if that is less because other
        models needed the rest."""
        self._thread = threading.get_ident()
        name, component = peer_of(requested.settings), self._component()
        if component is not None and name in self._most and not requested.in_split:
            plan = component.controller.plan
            if plan is not None and any(plan.layers[index].host_tier != "peer" for index in plan.streamed):
                component.warn(sentence("peer_has_limit", device=str(name)))
        name = self.device
        if name is None:
            return
        patcher = self._patchers.get(name)
        if patcher is None:
            patcher = self._patchers[name] = StoredLayers(self, torch.device(name))
        if not any(entry.model is patcher for entry in mm.current_loaded_models):
            entry = StoreEntry(patcher)
            entry.model_load(1)
            mm.current_loaded_models.insert(0, entry)

    def give_back(self, nbytes: int | None = None) -> int:
        """Free at least `nbytes` there for other models, or all. Returns the bytes freed: none during a pass, and none
        if another thread loaded the component, which may begin a pass at any moment. What stays is the most that the
        component takes there, as long as other models are there."""
        name = self.device
        freed = self._give_back(nbytes)
        if name is not None and self.may_move():
            self._most[name] = self.held_bytes()
        return freed

    def let_go(self) -> None:
        """The component is not streamed any more: free all that it holds there."""
        self._give_back()

    def _give_back(self, nbytes: int | None = None) -> int:
        component = self._component()
        if component is None or self.device is None or not self.may_move():
            return 0
        freed = component.controller.give_back_peer(nbytes)
        component.plan_afresh()
        return freed

    def may_move(self) -> bool:
        """Whether layers may be moved now."""
        component = self._component()
        return component is not None and self._thread == threading.get_ident() and not component.controller.in_pass()


class StoredLayers(comfy.model_patcher.ModelPatcher):
    """How the app sees what a store holds on a device: as a model that is loaded there, and gives back on request."""

    def __init__(self, store: PeerStore, device: torch.device) -> None:
        super().__init__(torch.nn.Module(), load_device=device, offload_device=torch.device("cpu"))
        self._store = weakref.ref(store)  # which holds this

    def is_dynamic(self, *args: Any, **kwargs: Any) -> bool:
        return False

    def _held_bytes(self) -> int:
        store = self._store()
        return store.held_bytes() if store is not None and store.device == str(self.load_device) else 0

    def _give_back(self, nbytes: int | None = None) -> int:
        store = self._store()
        return store.give_back(nbytes) if store is not None and self._held_bytes() else 0

    def model_size(self, *args: Any, **kwargs: Any) -> int:
        return self._held_bytes() + ASKED_FIRST_BYTES

    def loaded_size(self, *args: Any, **kwargs: Any) -> int:
        return self._held_bytes()

    def partially_load(self, *args: Any, **kwargs: Any) -> int:
        """The component's load puts layers there, by its plan."""
        return 0

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *args: Any, **kwargs: Any) -> int:
        return self._give_back(int(memory_to_free))

    def detach(self, unpatch_all: bool = True, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if unpatch_all:  # else the app is about to load it again
            self._give_back()
        module: torch.nn.Module = self.model
        return module


class StoreEntry(mm.LoadedModel):
    """The entry of a store among the app's loaded models: no model of a prompt, to be loaded again with others."""

    def __init__(self, model: StoredLayers) -> None:
        super().__init__(model)
        self.currently_used = False
