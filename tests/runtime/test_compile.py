"""torch.compile around and inside a streamed module: our code stays outside its graphs, the bits are the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from offload_core.runtime import attach

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
