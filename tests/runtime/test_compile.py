"""torch.compile around and inside a streamed module: our code stays outside its graphs, the bits are the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from offload_core.runtime import attach, discover

WIDTH = 128


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(number)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) / WIDTH**0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(number) for number in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.tanh(x)


class Graphs:
    """A backend that compiles nothing and remembers what it was given."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(model: Stack, backend) -> None:
    """As packs do it: each block is replaced by its compiled self."""
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend=backend, dynamic=False)


@pytest.mark.parametrize("what", ["before", "after", "whole"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_blocks_are_streamed_with_the_same_bits(what, backend):
    model = Stack()
    twin = copy.deepcopy(model)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = twin(x)
        if what == "before":
            compile_blocks(model, backend)
        attached = attach(model, device="cpu", budget_bytes=None, min_layer_bytes=1)
        called = model
        if what == "after":
            compile_blocks(model, backend)
        elif what == "whole":
            called = torch.compile(model, backend=backend, dynamic=False)
        for _ in range(4):
            assert torch.equal(called(x), expected)
        counters = attached.controller.counters
        assert counters.visits == 4 * 5 and counters.order_misses == 0 and counters.unplaced_visits == 0
        attached.detach()


def test_no_line_of_ours_is_in_a_compiled_graph_and_nothing_is_compiled_twice():
    """Every visit swaps parameters; a graph that had seen that would be made again on each."""
    model, backend = Stack(), Graphs()
    x = torch.randn(4, WIDTH)
    with torch.inference_mode():
        expected = model(x)
        attached = attach(model, device="cpu", budget_bytes=None, min_layer_bytes=1)
        compile_blocks(model, backend)
        model(x)
        model(x)
        compiled = len(backend.graphs)
        for _ in range(3):
            assert torch.equal(model(x), expected)
        assert 0 < len(backend.graphs) == compiled
        for graph in backend.graphs:
            called = [str(node.target) for node in graph.graph.nodes if node.op != "placeholder"]
            assert any("linear" in name for name in called), called
            assert not any("event" in name.lower() or "copy" in name.lower() for name in called)
        attached.detach()


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in discover(model, min_layer_bytes=1).layers]


class Frame(nn.Module):
    """What holds a model that a compile node replaces by its compiled self."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion_model = Stack()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.diffusion_model(x)


def compile_frame(frame: Frame) -> None:
    frame.diffusion_model = torch.compile(frame.diffusion_model, backend="eager", dynamic=False)


@pytest.mark.parametrize("what", ["whole", "blocks", "both"])
def test_layers_are_found_under_wrappers_by_the_names_they_have_without(what):
    plain, frame = names(Frame()), Frame()
    if what != "whole":
        compile_blocks(frame.diffusion_model, "eager")
    if what != "blocks":
        compile_frame(frame)
    assert names(frame) == plain == [f"diffusion_model.blocks.{number}" for number in range(5)]
    assert all(type(layer.module) is Block for layer in discover(frame, min_layer_bytes=1).layers)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("first", ["wrapped", "plain"])
def test_a_wrapper_may_come_and_go_while_the_model_is_streamed(first, backend):
    """The bits are those of the same wrapper without us, and each layer is visited, with the wrapper and without."""
    frame = Frame()
    inner = frame.diffusion_model
    wrapped = torch.compile(inner, backend=backend, dynamic=False)
    twin = copy.deepcopy(inner)
    twin_wrapped = torch.compile(twin, backend=backend, dynamic=False)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = {"plain": twin(x), "wrapped": twin_wrapped(x)}
        states = ["wrapped", "plain"] if first == "wrapped" else ["plain", "wrapped"]
        frame.diffusion_model = wrapped if first == "wrapped" else inner
        entries = [(inner, "forward")]
        attached = attach(frame, device="cpu", budget_bytes=None, min_layer_bytes=1, entries=entries)
        for count, state in enumerate(2 * states, 1):
            frame.diffusion_model = wrapped if state == "wrapped" else inner
            close = backend == "inductor" and state == "wrapped"  # its graphs end at our layers: other kernels
            torch.testing.assert_close(frame(x), expected[state], **({} if close else {"rtol": 0, "atol": 0}))
            counters = attached.controller.counters
            assert (counters.visits, counters.passes, counters.unplaced_visits) == (5 * count, count, 0)
        attached.detach()


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_a_parametrised_weight_is_part_of_its_module():
    """What computes the weight is called in no order of its own."""
    model = Stack()
    for block in model.blocks:
        nn.utils.parametrize.register_parametrization(block.up, "weight", Half())
        nn.utils.parametrizations.weight_norm(block.down)
    assert names(model) == [f"blocks.{number}" for number in range(5)]
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        expected = copy.deepcopy(model)(x)
        with attach(model, device="cpu", budget_bytes=None, min_layer_bytes=1) as attached:
            for _ in range(2):
                assert torch.equal(model(x), expected)
            assert attached.controller.counters.unplaced_visits == 0
