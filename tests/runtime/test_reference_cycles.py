"""No reference cycle of ours holds a module or a controller: dropped, they are gone without a garbage collection.

ComfyUI forces full collections where a model outlives its patcher, and host memory of a finished model would stay
until the next one.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo  # noqa: F401 - imported later, in a test, it leaves the frames of its callers in a cycle
from torch import nn

from offload_core.errors import BudgetError
from offload_core.runtime import Change, OffloadController, attach, discover
from offload_core.runtime.device.device_queue import DeviceQueue
from offload_core.trace.events import Trace
from tests.runtime.world import World
from tests.support.hand_plan import hand_plan
from tests.support.tiny_torch_models import DIM, Block, on_run

SIZES = (4, 4, 8, 4, 4)
TABLE_ROWS = 1 << 14
"""Of 4 KiB each: an embedding table so large that it stays on the host."""


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Only reference counts free anything in the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Lives:
    """Weak references to all that has to be gone in the end, by name."""

    def __init__(self) -> None:
        self._refs: dict[str, weakref.ref[object]] = {}

    def watch(self, module: nn.Module, controller: OffloadController | None = None) -> None:
        for name, part in module.named_modules():
            self._refs[f"module {name}"] = weakref.ref(part)
        for name, parameter in module.named_parameters():
            self._refs[f"parameter {name}"] = weakref.ref(parameter)
        if controller is not None:
            self._refs["controller"] = weakref.ref(controller)
            self._refs["prefetcher"] = weakref.ref(controller.prefetcher)
            self._refs |= {f"master {layer.name}": weakref.ref(layer.host.use) for layer in controller.layers}

    def check_gone(self) -> None:
        alive = [name for name, ref in self._refs.items() if ref() is not None]
        assert self._refs
        assert not alive, f"held by a cycle: {', '.join(alive)}"


# ---------------------------------------------------------------------- what may have happened to a component before

Happening = Callable[[World, OffloadController, nn.Module], None]


def run(module: nn.Module) -> None:
    with torch.no_grad():
        module(torch.ones(2, DIM))


def failing(module: nn.Module, at: int, error: type[BaseException]) -> None:
    """A pass that raises in block `at`."""

    def visited(block: Block) -> None:
        if block.number == at:
            raise error("on purpose")

    try:
        with on_run(visited):
            run(module)
    except error:
        return
    raise AssertionError("the error got lost")


def changes_of(module: nn.Module) -> dict[str, Change]:
    """As the app's patches are: what computes them holds the model."""

    def doubled(name: str) -> torch.Tensor:
        return module.get_parameter(name).detach() * 2

    names = [f"blocks.{number}.weight" for number in range(len(SIZES))] + ["scale"]
    return {name: Change(2, lambda name=name: doubled(name)) for name in names}


def passes(world: World, controller: OffloadController, module: nn.Module) -> None:
    for _ in range(3):
        run(module)


def changed_weights(world: World, controller: OffloadController, module: nn.Module) -> None:
    controller.set_changes(changes_of(module))
    passes(world, controller, module)


def changed_weights_that_never_arrive(world: World, controller: OffloadController, module: nn.Module) -> None:
    controller.set_changes(changes_of(module))


def a_pass_fails(world: World, controller: OffloadController, module: nn.Module) -> None:
    controller.set_changes(changes_of(module))
    run(module)
    failing(module, 2, KeyError)


def the_device_is_full(world: World, controller: OffloadController, module: nn.Module) -> None:
    less = hand_plan(controller, 8192)
    asked: list[str] = []

    def ask(plan: object, layer: str, too_late: bool) -> object:
        asked.append(layer)
        return None if plan is less else less

    controller.when_full(ask, lambda args, kwargs: True)  # type: ignore[arg-type]
    failing(module, 2, torch.OutOfMemoryError)
    assert asked
    run(module)


def a_plan_is_asked_for(world: World, controller: OffloadController, module: nn.Module) -> None:
    passes(world, controller, module)
    controller.replan_when_measured(lambda plan, inventory, link: controller.plan)
    assert controller.plan_may_change


def a_second_pass_is_waited_for(world: World, controller: OffloadController, module: nn.Module) -> None:
    controller.replan_on_second_pass(lambda plan, inventory, link: controller.plan)


def gradients(world: World, controller: OffloadController, module: nn.Module) -> None:
    controller.no_ring_while_gradients_are_recorded()
    module.requires_grad_(False)
    x = torch.ones(2, DIM, requires_grad=True)
    module(x).sum().backward()
    run(module)


def another_plan(world: World, controller: OffloadController, module: nn.Module) -> None:
    run(module)
    controller.load(hand_plan(controller, 8192, residents=(1, 3)))
    run(module)


def masters_are_looked_at_and_written(world: World, controller: OffloadController, module: nn.Module) -> None:
    with controller.masters_shown():
        module.state_dict()
    controller.write_master(module.blocks[1].weight, torch.zeros(DIM, DIM))  # type: ignore[union-attr,index]
    run(module)


def it_is_recorded(world: World, controller: OffloadController, module: nn.Module) -> None:
    trace = Trace()
    trace.watched = True
    controller.record(trace, "one")
    passes(world, controller, module)


HAPPENINGS: tuple[Happening, ...] = (
    passes,
    changed_weights,
    changed_weights_that_never_arrive,
    a_pass_fails,
    the_device_is_full,
    a_plan_is_asked_for,
    a_second_pass_is_waited_for,
    gradients,
    another_plan,
    masters_are_looked_at_and_written,
    it_is_recorded,
)


def live(lives: Lives, world: World, happening: Happening, ends: Callable[[OffloadController], None]) -> None:
    """A component's whole life: all references to it are dropped on return."""
    one = world.add(SIZES, exotic=(1, 2) if happening is passes and world.folder is None else ())
    world.components.clear()
    model, controller = one.model, one.controller
    lives.watch(model, controller)
    controller.load(hand_plan(controller, 8192 * 2, residents=(0,)))
    happening(world, controller, model)
    ends(controller)


@pytest.mark.parametrize("tier", ["pinned", "pageable", "mapped"])
@pytest.mark.parametrize("ends", [OffloadController.detach, OffloadController.unload], ids=["detached", "unloaded"])
@pytest.mark.parametrize("happening", HAPPENINGS, ids=lambda happening: happening.__name__)
def test_a_component_dies_with_its_last_user(happening, ends, tier, tmp_path):
    """Unloaded is enough: what is not detached gives its masters back as it goes."""
    lives = Lives()
    with World(tier=tier, folder=tmp_path if tier == "mapped" else None) as world, no_collection():
        live(lives, world, happening, ends)
        lives.check_gone()


def test_a_component_that_was_never_loaded_dies_with_its_last_user():
    lives = Lives()

    def attached_only(world: World) -> None:
        one = world.add(SIZES)
        world.components.clear()
        lives.watch(one.model, one.controller)
        one.controller.replan_on_second_pass(lambda plan, inventory, link: None)
        one.controller.when_full(lambda plan, layer, too_late: None)

    with World() as world, no_collection():
        attached_only(world)
        lives.check_gone()


def test_loaded_it_keeps_its_controller():
    """Who drops the handle and not the module still has a streamed module."""
    with World() as world:
        one = world.add(SIZES)
        one.load(8192, residents=(0,))
        world.components.clear()
        controller, model, twin = weakref.ref(one.controller), one.model, one.twin
        del one
        gc.collect()
        with torch.no_grad():
            assert torch.equal(model(torch.ones(2, DIM)), twin(torch.ones(2, DIM)))
        found = controller()
        assert found is not None and found.counters.prefetch_hits + found.counters.demand_loads > 0
        found.detach()


# ---------------------------------------------------------------------- the library's two calls


class WithTable(nn.Module):
    """A stack of layers behind an embedding table that stays on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TABLE_ROWS, 1024)
        self.blocks = nn.ModuleList([nn.Linear(1024, 1024) for _ in range(4)])

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.table(indices)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def attached(lives: Lives, device: str, in_a_block: bool) -> None:
    model = WithTable()
    handle = attach(model, device=device, budget_bytes=13_000_000, passes=2)
    lives.watch(model, handle.controller)
    with handle if in_a_block else contextlib.nullcontext(), torch.inference_mode():
        for _ in range(3):
            model(torch.arange(8).to(device))
    handle.detach()


@pytest.mark.parametrize("in_a_block", [False, True])
@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_attach_and_detach_leave_no_cycle(device, in_a_block, npu):
    lives = Lives()
    with no_collection():
        attached(lives, device, in_a_block)
        lives.check_gone()


def refused(lives: Lives) -> None:
    model = WithTable()
    lives.watch(model)
    try:
        attach(model, device="cpu", budget_bytes=1000)
    except BudgetError:
        return
    raise AssertionError("a budget of 1000 bytes was taken")


def test_a_module_that_was_refused_is_not_held():
    lives = Lives()
    with no_collection():
        refused(lives)
        lives.check_gone()


@pytest.mark.parametrize("happening", [changed_weights, a_pass_fails], ids=lambda happening: happening.__name__)
def test_on_the_simulated_device(happening, npu):
    from offload_core.runtime.device.ports import port_for
    from tests.support.tiny_torch_models import Model

    def there(queue: DeviceQueue) -> None:
        model = Model(SIZES)
        controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
        lives.watch(model, controller)
        controller.load(hand_plan(controller, 8192, residents=(0,)))
        controller.set_changes(changes_of(model))
        with torch.no_grad():
            model(torch.ones(2, DIM, device="npu"))
        if happening is a_pass_fails:
            with contextlib.suppress(RuntimeError), torch.no_grad():
                model(torch.ones(2, DIM + 1, device="npu"))
        controller.detach()

    lives = Lives()
    queue = DeviceQueue(port_for("npu"))
    with no_collection():
        there(queue)
        lives.check_gone()
    queue.close()
