"""Host memory of all components together: what of it is page-locked in the app's account, what outlives its component
for the rest of a prompt, and who gives some back when the host is short.

The app asks a patcher for device memory, never for host memory: it drops patchers instead (ours then free what nobody
else uses), and takes page-locked memory back from its Dynamic VRAM models only. So we look ourselves, whenever one of
ours is loaded or leaves the device. Decisions 110 to 112.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil

from ..offload_core.host_budget import RESERVE_BYTES
from ..offload_core.host_tiers import least_worth_first
from ..offload_core.plan import HostTier
from ..offload_core.runtime import OffloadController
from ..offload_core.runtime.host_placement import bytes_in_use
from ..offload_core.runtime.masters import Hold, distinct
from . import compat
from .memory import host_available_bytes
from .recording import bytes_progress

RESERVE_SHARE = 8
"""The host is short when less than 2 GiB are available, or an eighth of what the machine has where that is less."""

_POLL_S = 0.02
_LOOKS_EVERY = 10
"""While something lingers: how often a thread asks whether the prompt has ended, and how many times for each look
whether the host is short: a loader of the app's tells nobody what it is going to take."""


class HostMemory:
    """Owner of what lingers. Knows the controllers that are attached, and keeps none of them."""

    def __init__(self) -> None:
        self._controllers: weakref.WeakSet[OffloadController] = weakref.WeakSet()
        self._lingering: list[Hold] = []
        self._prompts: frozenset[object] = frozenset()
        self._watcher: threading.Thread | None = None
        self._counted_bytes = 0
        self._changed: weakref.WeakSet[OffloadController] = weakref.WeakSet()
        """Whose plan we have changed, and who have not been planned again since."""
        self._relieving = False

    def close(self) -> None:
        """Nothing lingers, nothing is in the app's account."""
        self._controllers.clear()
        self.let_linger_no_more()

    # ------------------------------------------------------------------ who there is, and the app's account

    def joined(self, controller: OffloadController) -> None:
        self._controllers.add(controller)

    def left(self, controller: OffloadController) -> None:
        """It is about to be detached. In the middle of a prompt, what it has of files stays for who comes next."""
        self._controllers.discard(controller)
        prompts = compat.running_prompts()
        if not prompts or self.short_bytes() > 0:
            return
        holds = [layer.host.hold for layer in controller.layers if layer.host.in_file and layer.host.buffer is not None]
        self._lingering += [hold.share() for hold in holds]
        self._prompts |= prompts
        if self._lingering and self._watcher is None:
            self._watcher = threading.Thread(
                target=self._until_they_end, name="layerwise-offload-lingering", daemon=True
            )
            self._watcher.start()

    def _until_they_end(self) -> None:
        for turn in itertools.count():
            if not self._prompts & compat.running_prompts() or (turn % _LOOKS_EVERY == 0 and self.short_bytes() > 0):
                break
            time.sleep(_POLL_S)
        self._watcher, self._prompts = None, frozenset()
        self.let_linger_no_more()

    def let_linger_no_more(self, but: OffloadController | None = None) -> bool:
        """Free what is kept for nobody. `but`: not what this one would share. Whether there was anything."""
        wanted = {id(layer.host.master) for layer in but.layers} if but is not None else set()
        holds, self._lingering = self._lingering, [hold for hold in self._lingering if id(hold.master) in wanted]
        gone = [hold for hold in holds if id(hold.master) not in wanted]
        for hold in gone:
            hold.drop()
        self.settle()
        return bool(gone)

    def makes_room(self, controller: OffloadController, copies_budget_bytes: int | None) -> bool:
        """Whether memory has come free for a component that may have so much of it, and could do with more."""
        wanted = sum(layer.nbytes for layer in controller.layers if layer.host.in_file)
        short = copies_budget_bytes is not None and copies_budget_bytes < wanted
        return short and self.let_linger_no_more(but=controller)

    def settle(self) -> None:
        """Tell the app what is page-locked now: every buffer once, whoever shares it."""
        locked = sum(master.nbytes for master in distinct(self._holds()) if master.locked)
        compat.count_pins(locked - self._counted_bytes)
        self._counted_bytes = locked

    def _holds(self) -> Iterator[Hold]:
        yield from list(self._lingering)
        for controller in list(self._controllers):
            yield from (layer.host.hold for layer in controller.layers)

    def in_use(self) -> dict[HostTier, int]:
        """Bytes by tier, of everybody: what is in memory once, whoever shares it."""
        layers = [layer for controller in list(self._controllers) for layer in controller.layers]
        return bytes_in_use(layers, list(self._lingering))

    # ------------------------------------------------------------------ when the host is short

    @staticmethod
    def short_bytes() -> int:
        """How much is missing to what should be left for everybody else, the app's own reserve included."""
        total: int = psutil.virtual_memory().total
        reserve = max(min(RESERVE_BYTES, total // RESERVE_SHARE), compat.app_ram_reserve_bytes())
        return reserve - host_available_bytes()

    def look(self, controller: OffloadController) -> bool:
        """Before a component is loaded: see to it that the host is not short. Whether it has to be planned again."""
        over = _pins_over_bytes() > 0
        self.relieve(controller)
        changed = over or controller in self._changed or self.short_bytes() > 0
        self._changed.discard(controller)
        return changed

    def relieve(self, but: OffloadController | None = None) -> None:
        """Give memory back if the host or the app's ceiling for page-locked memory is short. `but`: not from this one.

        What lingers goes first; then layers of who is in no pass, those that are not loaded before the others, and
        what is worth least first: to their file where they lie in one, else only their page-lock ends.
        """
        self._relieving = True
        try:
            self._relieve(but)
        finally:
            self._relieving = False

    def moved(self, mover: OffloadController | None) -> None:
        """Masters of `mover` have moved, perhaps in a run: the app's account is made true, and its ceiling
        is kept, for other components may have page-locked other layers than those that `mover` locks now."""
        self.settle()
        if _pins_over_bytes() > 0 and not self._relieving:
            self.relieve(but=mover)

    def _relieve(self, but: OffloadController | None) -> None:
        if self._lingering and self.short_bytes() > 0:
            self.let_linger_no_more()
        idle = [one for one in list(self._controllers) if one is not but and not one.in_pass()]
        for controller in sorted(idle, key=lambda one: one.loaded):
            missing = self.short_bytes()
            pins = _pins_over_bytes()
            if missing <= 0 and pins <= 0:
                break
            tiers = _less(controller, missing, pins)
            if tiers:
                _move(controller, tiers)
                self._changed.add(controller)
                self.settle()


def _pins_over_bytes() -> int:
    """By how much the app's account of page-locked memory is above its ceiling."""
    return -(compat.app_pin_room_bytes() or 0)


def _less(controller: OffloadController, missing: int, pins: int) -> dict[int, HostTier]:
    """The layers of one component that are to move so that `missing` bytes come free, or `pins` bytes unlocked."""
    tiers: dict[int, HostTier] = {}
    residents = frozenset(index for index, layer in enumerate(controller.layers) if layer.keep_resident)
    for index in least_worth_first(controller.measured_inventory(), residents):
        layer = controller.layers[index]
        master = layer.host.hold.master
        if master is None or layer.is_in_place:
            continue
        if missing > 0 and layer.host.in_file and not master.is_shared():
            tiers[index] = "mapped"
        elif pins > 0 and layer.host.pinned:
            tiers[index] = "pageable"
        else:
            continue
        missing -= layer.nbytes if tiers[index] == "mapped" else 0
        pins -= layer.nbytes if layer.host.pinned else 0
    return tiers


def _move(controller: OffloadController, tiers: dict[int, HostTier]) -> None:
    plan = controller.plan
    if plan is None:
        for index, tier in tiers.items():
            controller.layers[index].host.move_to(tier)
        return
    layers = tuple(replace(one, host_tier=tiers.get(index, one.host_tier)) for index, one in enumerate(plan.layers))
    controller.change_to(replace(plan, layers=layers))


def moved_bytes(mover: Callable[[], OffloadController | None]) -> Callable[[int, int], None]:
    """The app's progress of building and moving the masters of `mover()`, and `HostMemory.moved` at its end."""
    show = bytes_progress()

    def moved(done: int, of: int) -> None:
        if done == of:
            host_memory().moved(mover())
        show(done, of)

    return moved


@functools.cache
def host_memory() -> HostMemory:
    return HostMemory()
