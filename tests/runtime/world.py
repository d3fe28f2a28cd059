"""A device that checks itself, and toy models on it that check themselves. The stage for the race and property tests.

A `World` is one race-checking device with one queue; a `Component` in it is a toy model under layerwise offload, with
a plain twin that says what every output has to be. `Component.run` checks a pass in every way there is: output bit by
bit, every visit on the device and with its own bytes, budget, and afterwards the host parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from offload_core.planning.plan import HostTier, Plan
from offload_core.runtime import Change, DeviceQueue, OffloadController, discover, twin_of
from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.engine.prefetcher import Prefetcher
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.runtime.file_models import saved
from tests.support.hand_plan import hand_plan
from tests.support.race_port import RacePort
from tests.support.tiny_torch_models import DIM, Block, Model, on_run

SLOT_BYTES = 1024
"""Of the staging slots: less than most layers have, so that a layer takes several."""


class Interrupt(BaseException):
    """As the app's: not an Exception."""


class World:
    """A device. Leaving the `with` block checks that it is quiet, empty and free of races."""

    def __init__(self, late: bool = False, tier: HostTier = "pinned", folder: Path | None = None) -> None:
        """`tier`: where layers are copied from; what is not page-locked is staged. `folder`: for files, which `mapped`
        needs, and in which the masters of `peer` may lie."""
        self.port = RacePort(late=late)
        self.tier, self.folder = tier, folder
        staged = StagedPort(self.port, slot_bytes=SLOT_BYTES, slots=3, threads=False)
        staged.tier = tier  # type: ignore[attr-defined]  # for `hand_plan`
        self.queue = DeviceQueue(self.port if tier == "pinned" else staged)
        self.components: list[Component] = []
        self.port.in_pass = lambda: any(one.controller.prefetcher.in_pass for one in self.components)

    def add(self, kilobytes: Sequence[int], exotic: Sequence[int] = (), **options: Any) -> Component:
        model = Model(kilobytes, exotic)
        if self.folder is not None and not exotic:  # strange strides cannot be written to a file
            weights_from_file(model, saved(model, self.folder / f"{len(self.components)}.safetensors"))
        component = Component(self, model, pinned=self.tier == "pinned", **options)
        self.components.append(component)
        return component

    def __enter__(self) -> World:
        self._watch = self.port.watching()
        self._watch.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                for component in self.components:
                    component.detach()
                self.queue.close()
                assert self.port.live_bytes == 0, f"{self.port.live_bytes} bytes were not given back"
                assert self.port.peer_reserved_bytes == 0, (
                    f"{self.port.peer_reserved_bytes} bytes of the other device were not given back"
                )
        finally:
            self._watch.__exit__(kind, error, trace)
        if error is None or not isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.port.check()

    def allowed_bytes(self) -> int:
        """What all components together may hold: they share the largest ring."""
        plans = [c.controller.plan for c in self.components if c.controller.plan is not None]
        return sum(p.device_bytes - p.ring_bytes for p in plans) + max((p.ring_bytes for p in plans), default=0)


class Component:
    """A model, its twin, and its controller."""

    def __init__(self, world: World, model: Model, pinned: bool = True) -> None:
        self.world = world
        self.model = model
        self.twin = copy.deepcopy(model)
        self.masters: dict[str, torch.Tensor] = {}
        """What parameters that were ever patched are on the host."""
        self.remember_parameters()
        self.strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
        found = discover(model, min_layer_bytes=1)
        self.controller = OffloadController(model, world.queue, discovery=found, pinned=pinned)
        self.attached = True

    # ------------------------------------------------------------------ doing

    def load(self, ring_bytes: int, residents: Sequence[int] = (), offsets: Sequence[int] | None = None) -> Plan:
        plan = hand_plan(self.controller, ring_bytes, residents, offsets)
        self.controller.load(plan)
        assert self.controller.device_bytes() == plan.device_bytes
        assert self.world.port.live_bytes <= self.world.allowed_bytes()
        return plan

    def run(
        self, order: Sequence[int] | None = None, inside: dict[int, Callable[[], None]] | None = None, **options: Any
    ) -> None:
        """A pass, checked in every way. `inside`: what to do in the middle of a block."""
        x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(7))

        def visited(block: Block) -> None:
            if inside is not None and block.number in inside:
                inside[block.number]()
            self._visited(block)

        with on_run(visited):
            given = self.model(x, order, **options)
        options.pop("between", None)
        with on_run(None):
            expected = self.twin(x, order, **options)
        assert torch.equal(given, expected), "another output than the plain module's"
        self.check_host()

    def fail(self, at: int, error: type[BaseException], order: Sequence[int] | None = None) -> None:
        """A pass in which visit number `at` raises. Afterwards nothing is in flight."""
        visits = 0

        def visited(block: Block) -> None:
            nonlocal visits
            visits += 1
            if visits > at:
                raise error("on purpose")

        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            with on_run(visited):
                self.model(torch.ones(2, DIM), order)
        except error:
            pass
        else:
            raise AssertionError("the error got lost")
        for name, buffer in self.model.named_buffers():  # the twin did not run: undo what visits before did
            buffer.copy_(buffers[name])
        self.check_nothing_in_flight("an error")
        assert not any(layer.in_use or layer.pending for layer in self.controller.layers)
        self.check_host()

    def write(self, number: int, value: float) -> None:
        """Change a weight, here and in the twin. The copies of it that are on their way must not see half of it."""
        weight = torch.full((DIM, DIM), value)
        self.controller.write_master(self.model.blocks[number].weight, weight)
        with torch.no_grad():
            self.twin.blocks[number].weight.copy_(weight)
        self.check_host()

    def set_changes(self, factors: Mapping[str, float], fail: bool = False) -> None:
        """Have these parameters multiplied when they arrive on the device. `fail`: the arithmetic raises, half way."""
        for name in factors:
            self.masters.setdefault(name, self.twin.get_parameter(name).detach().clone())
        with torch.no_grad(), on_run(None):
            for name, master in self.masters.items():
                self.twin.get_parameter(name).copy_(master * factors.get(name, 1))
        self.controller.set_changes({name: self._change(name, factor, fail) for name, factor in factors.items()})
        self.check_host()

    def _change(self, name: str, factor: float, fail: bool) -> Change:
        def compute() -> torch.Tensor:
            shown = self.model.get_parameter(name)
            value = shown.detach() * factor
            if fail:
                shown.data.fill_(5)
                raise torch.OutOfMemoryError("on purpose")
            return value

        return Change((factor, fail), compute)

    def detach(self) -> None:
        if not self.attached:
            return
        self.attached = False
        self.controller.detach()
        assert not self.world.port.in_flight(), "copies in flight after detach"
        before = self.own
        self.remember_parameters()
        assert self.own == before, "other parameter objects than before"
        assert "forward" not in vars(self.model) and not any("forward" in vars(b) for b in self.model.blocks)
        self.check_state()
        for parameter in self.model.parameters():  # frees the old memory
            with torch.no_grad(), torch.inference_mode(parameter.is_inference()):
                parameter.data = parameter.data.clone()
        self.strides = {name: tensor.stride() for name, tensor in self.model.state_dict().items()}

    def remember_parameters(self) -> None:
        """Which objects the parameters are, while the component is not loaded: the ones that `detach` has to leave."""
        self.own = {name: id(parameter) for name, parameter in self.model.named_parameters(remove_duplicate=False)}

    # ------------------------------------------------------------------ checking

    def _visited(self, block: Block) -> None:
        port = self.world.port
        if self.controller.loaded:
            assert port.holds(block.tag) and port.holds(block.weight), f"block {block.number} ran from the host"
        check_look_ahead(self.controller.prefetcher)
        everybody = [layer for component in self.world.components for layer in component.controller.layers]
        unplaced = sum(layer.nbytes for layer in everybody if layer.in_use and not layer.valid)
        allowed = self.world.allowed_bytes() + unplaced
        assert port.live_bytes <= allowed, f"{port.live_bytes} bytes on the device, {allowed} allowed"

    def check_nothing_in_flight(self, when: str) -> None:
        """Checked while loaded: otherwise copies in flight are another component's."""
        assert not (self.controller.loaded and self.world.port.in_flight()), f"copies in flight after {when}"

    def check_host(self) -> None:
        """Between passes: streamed layers' parameters are the host's, and all values are right."""
        check_look_ahead(self.controller.prefetcher)
        for layer in self.controller.layers:
            if not layer.keep_resident:
                for params, name, host in layer.host_bindings:
                    assert params[name] is host, f"{layer.name}.{name} is not the host's after the pass"
        self.check_state()

    def check_state(self) -> None:
        """The masters are untouched. What readers are shown of them is `test_readers_and_writers.py`'s business."""
        shown = self.model.state_dict(keep_vars=True)
        mine, theirs = {name: twin_of(tensor) for name, tensor in shown.items()}, self.twin.state_dict()
        for name in theirs:
            assert mine[name].dtype == theirs[name].dtype and mine[name].stride() == self.strides[name], name
            right = [theirs[name]]
            if name in self.masters:  # the host shows the master's value; what stays on the device, either one's
                right = [self.masters[name], *(right if self.world.port.holds(mine[name]) else [])]
            equal = [torch.equal(as_bytes(mine[name]), as_bytes(value)) for value in right]
            assert any(equal), f"{name} has another value"


def check_look_ahead(prefetcher: Prefetcher) -> None:
    """The invariants that the prefetcher promises in its first lines, and that look-ahead ends where the road does."""
    road, layers = prefetcher.look_ahead, prefetcher._layers
    ahead = road._ahead
    counted_on = road._road[road._next : road._next + ahead]
    assert sum(layer.pending for layer in layers) == ahead == len(counted_on), "pending does not add up to ahead"
    for layer in layers:
        assert layer.pending == counted_on.count(layer), f"{layer.name} is pending, and not on the road"
        assert layer.valid or not layer.pending, f"{layer.name} is pending, and not valid"
        for other in layer.overlaps:
            assert not (layer.valid and other.valid), f"{layer.name} and {other.name} are valid in the same bytes"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.data.contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def a_world(late: bool = False) -> Iterator[World]:
    with torch.no_grad(), World(late) as world:
        yield world
