"""Host memory of all components together: its share in the app's count of page-locked bytes, masters that outlive their
component for the rest of a prompt, and eviction from host memory when the host is short.

The app asks a patcher to free device memory, never host memory: it drops patchers instead (ours then free the masters
that no other component uses), and unlocks memory of its Dynamic VRAM models only. So host memory is checked here
whenever one of our components is loaded or unloaded. Decisions 110 to 112.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

import psutil

from ...offload_core.planning.host_budget import RESERVE_BYTES
from ...offload_core.planning.host_tiers import least_worth_first
from ...offload_core.planning.plan import HostTier, Plan
from ...offload_core.runtime import OffloadController
from ...offload_core.runtime.engine.tier_moves import bytes_in_use
from ...offload_core.runtime.host.masters import MasterUse
from ..app import compat
from ..app.recording import bytes_progress
from .allowances import host_available_bytes

RESERVE_SHARE = 8
"""The host is short when less than 2 GiB, or an eighth of the machine's memory if that is less, are available."""

_POLL_S = 0.02
_LOOKS_EVERY = 10
"""While masters linger, a thread checks every `_POLL_S` seconds whether the prompt has ended, and every `_LOOKS_EVERY`
checks whether the host is short: the app's loaders do not announce what they allocate."""


class HostMemory:
    """Owns the lingering masters. References the attached controllers weakly."""

    def __init__(self) -> None:
        self._controllers: weakref.WeakSet[OffloadController] = weakref.WeakSet()
        self._lingering: list[MasterUse] = []
        self._prompts: frozenset[object] = frozenset()
        self._watcher: threading.Thread | None = None
        self._counted_bytes = 0
        self._changed: weakref.WeakSet[OffloadController] = weakref.WeakSet()
        """Controllers whose plan was changed here and not recomputed since."""
        self._relieving = False

    # ------------------------------------------------------------------ components, and the app's count

    def joined(self, controller: OffloadController) -> None:
        self._controllers.add(controller)

    def left(self, controller: OffloadController) -> None:
        """Call before detaching. During a prompt, its masters of file-backed layers linger for later components."""
        self._controllers.discard(controller)
        prompts = compat.running_prompts()
        if not prompts or self.short_bytes() > 0:
            return
        uses = [layer.host.use for layer in controller.layers if layer.host.in_file and layer.host.buffer is not None]
        self._lingering += [use.share() for use in uses]
        self._prompts |= prompts
        if self._lingering and self._watcher is None:
            name = "layerwise-offload-lingering"
            self._watcher = threading.Thread(target=self._free_after_prompts, name=name, daemon=True)
            self._watcher.start()

    def _free_after_prompts(self) -> None:
        for turn in itertools.count():
            if not self._prompts & compat.running_prompts() or (turn % _LOOKS_EVERY == 0 and self.short_bytes() > 0):
                break
            time.sleep(_POLL_S)
        self._watcher, self._prompts = None, frozenset()
        self.free_lingering()

    def free_lingering(self, but: OffloadController | None = None) -> None:
        """Free the lingering masters, except those that `but` shares."""
        shared = {id(layer.host.master) for layer in but.layers} if but is not None else set()
        uses, self._lingering = self._lingering, [use for use in self._lingering if id(use.master) in shared]
        for use in uses:
            if id(use.master) not in shared:
                use.drop()
        self.update_app_account()

    def free_lingering_if_needed(self, controller: OffloadController, copies_budget_bytes: int) -> None:
        """Free lingering masters if the budget for copies of layers is below the component's bytes in files."""
        if copies_budget_bytes < sum(layer.nbytes for layer in controller.layers if layer.host.in_file):
            self.free_lingering(but=controller)

    def update_app_account(self) -> None:
        """Update our bytes in the app's count of page-locked memory; a shared buffer counts once."""
        locked = self.in_use()["pinned"]
        compat.count_pins(locked - self._counted_bytes)
        self._counted_bytes = locked

    def in_use(self) -> dict[HostTier, int]:
        """Bytes by tier of all components and lingering masters; a shared buffer counts once."""
        layers = [layer for controller in list(self._controllers) for layer in controller.layers]
        return bytes_in_use(layers, list(self._lingering))

    # ------------------------------------------------------------------ when the host is short

    @staticmethod
    def short_bytes() -> int:
        """Bytes by which available host memory is below the reserve, which is at least the app's; negative above it."""
        total: int = psutil.virtual_memory().total
        reserve = max(min(RESERVE_BYTES, total // RESERVE_SHARE), compat.app_ram_reserve_bytes())
        return reserve - host_available_bytes()

    def make_room_before_load(self, controller: OffloadController) -> bool:
        """Call before a load: free host memory if short. Returns True if the component's plan must be recomputed."""
        over = _pins_over_bytes() > 0
        self.free_until_not_short(controller)
        changed = over or controller in self._changed or self.short_bytes() > 0
        self._changed.discard(controller)
        return changed

    def free_until_not_short(self, but: OffloadController | None = None) -> None:
        """Free host memory if it is short, and unlock if page-locked bytes exceed the app's ceiling; not of `but`.

        Lingering masters are freed first. Then layers of components outside a pass, unloaded components first and
        layers of least worth first, are evicted to their file, or unlocked if they lie in none.
        """
        self._relieving = True
        try:
            if self._lingering and self.short_bytes() > 0:
                self.free_lingering()
            idle = [other for other in list(self._controllers) if other is not but and not other.in_pass()]
            for controller in sorted(idle, key=lambda other: other.loaded):
                short_bytes, pins_over_bytes = self.short_bytes(), _pins_over_bytes()
                if short_bytes <= 0 and pins_over_bytes <= 0:
                    break
                self._lower(controller, _lower_tiers(controller, short_bytes, pins_over_bytes))
        finally:
            self._relieving = False

    def keep_within(self, number_bytes: int, controller: OffloadController, plan: Plan) -> None:
        """Before `plan` of `controller` is loaded: copies that linger, and then those of components outside a pass, are
        freed as far as all copies together would take more than `number_bytes`."""

        def over_bytes() -> int:
            in_use, layers = self.in_use(), zip(plan.layers, controller.layers)
            missing = [spec for spec, layer in layers if layer.host.master is None]
            coming = (spec.bytes for spec in missing if spec.host_tier in ("pinned", "pageable"))
            return in_use["pinned"] + in_use["pageable"] + sum(coming) - number_bytes

        if over_bytes() > 0:
            self.free_lingering(but=controller)
        idle = [other for other in list(self._controllers) if other is not controller and not other.in_pass()]
        for other in sorted(idle, key=lambda other: other.loaded):
            if (over := over_bytes()) <= 0:
                break
            self._lower(other, _lower_tiers(other, over, 0))

    def _lower(self, controller: OffloadController, tiers: dict[int, HostTier]) -> None:
        if tiers:
            _move_to_tiers(controller, tiers)
            self._changed.add(controller)
            self.update_app_account()

    def moved(self, mover: OffloadController | None) -> None:
        """Call after masters of `mover` have changed tier. Updates the app's count; above the ceiling, layers of other
        components are unlocked."""
        self.update_app_account()
        if _pins_over_bytes() > 0 and not self._relieving:
            self.free_until_not_short(but=mover)


def _pins_over_bytes() -> int:
    """Bytes by which the app's count of page-locked memory exceeds its ceiling; 0 or negative below it."""
    return -(compat.app_pin_room_bytes() or 0)


def _lower_tiers(controller: OffloadController, short_bytes: int, pins_over_bytes: int) -> dict[int, HostTier]:
    """New tiers by layer index that free `short_bytes` and unlock `pins_over_bytes`, or as much as there is."""
    tiers: dict[int, HostTier] = {}
    residents = frozenset(index for index, layer in enumerate(controller.layers) if layer.keep_resident)
    for index in least_worth_first(controller.measured_inventory(), residents):
        layer = controller.layers[index]
        master = layer.host.use.master
        if master is None or layer.is_in_place:
            continue
        if short_bytes > 0 and layer.host.in_file and not master.is_shared():
            tiers[index] = "mapped"
        elif pins_over_bytes > 0 and layer.host.pinned:
            tiers[index] = "pageable"
        else:
            continue
        short_bytes -= layer.nbytes if tiers[index] == "mapped" else 0
        pins_over_bytes -= layer.nbytes if layer.host.pinned else 0
    return tiers


def _move_to_tiers(controller: OffloadController, tiers: dict[int, HostTier]) -> None:
    plan = controller.plan
    if plan is None:
        for index, tier in tiers.items():
            controller.layers[index].host.move_to(tier)
        return
    layers = tuple(replace(spec, host_tier=tiers.get(index, spec.host_tier)) for index, spec in enumerate(plan.layers))
    controller.change_to(replace(plan, layers=layers))


def moved_bytes(mover: Callable[[], OffloadController | None]) -> Callable[[int, int], None]:
    """A callback (done, total bytes) for building and moving the masters of `mover()`: shows the app's progress, and
    calls `HostMemory.moved` at the end."""
    show = bytes_progress()

    def progress(done_bytes: int, total_bytes: int) -> None:
        if done_bytes == total_bytes:
            host_memory().moved(mover())
        show(done_bytes, total_bytes)

    return progress


@functools.cache
def host_memory() -> HostMemory:
    return HostMemory()
