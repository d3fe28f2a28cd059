"""The adviser, which has a file's names and sizes, and the engine, which has the module, find the same layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.full_size import give_memory
from bench.full_size_advised import tensor_infos
from offload_core.files.model_shape import Compute, inventory_of
from offload_core.planning.planner import smallest_budget
from offload_core.runtime.layers.discovery import discover

WIDTH = 4096  # a square bf16 matrix is 34 MB, and a block of four 134 MB


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.qkv(x))


class Block(nn.Module):
    """Its parts are in a list of its own, as those of Cosmos 1."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.parts = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = x + part(self.norm(x))
        return x


class Silent(nn.Module):
    """A container without a forward of its own."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class OwnList(nn.ModuleList):
    pass


class OwnDictionary(nn.ModuleDict):
    pass


class OwnSequential(nn.Sequential):
    pass


def blocks(*names: str) -> dict[str, nn.Module]:
    return {name: Block() for name in names}


NUMBERED = tuple(f"block{number}" for number in range(12))
CONTAINERS = {
    "module list": lambda: nn.ModuleList(Block() for _ in range(12)),
    "own list": lambda: OwnList(Block() for _ in range(12)),
    "sequential": lambda: nn.Sequential(*(Block() for _ in range(12))),
    "own sequential": lambda: OwnSequential(*(Block() for _ in range(12))),
    "dictionary": lambda: nn.ModuleDict(blocks(*NUMBERED)),
    "own dictionary": lambda: OwnDictionary(blocks(*NUMBERED)),
    "dictionary with words": lambda: nn.ModuleDict(blocks("first", "second", "third")),
    "without a forward": lambda: Silent(blocks(*NUMBERED)),
    "list of dictionaries": lambda: nn.ModuleList(nn.ModuleDict(blocks("a", "b")) for _ in range(3)),
    "dictionary of lists": lambda: nn.ModuleDict({f"stage{i}": nn.ModuleList([Block(), Block()]) for i in range(3)}),
}


class Network(nn.Module):
    """Blocks in a container, a projection of 134 MB, and what is loose."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(64, WIDTH)
        self.stack = container
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 4 * WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.modulation(self.embed(x))


class Holder(nn.Module):
    """A module with a forward of its own around the network, as an encoder's classes have it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def both(module: nn.Module) -> tuple[list[str], list[str]]:
    """The names of the layers, sorted: as the adviser has them, and as discovery has."""
    found = discover(give_memory(module, torch.bfloat16))
    advised = inventory_of("dit", tensor_infos(module), Compute(100.0))
    sizes = {layer.name: layer.bytes for layer in advised.layers if layer.keep is None}
    assert sizes == {layer.name: layer.nbytes for layer in found.layers}, "norms and biases stay outside for both"
    assert advised.loose_bytes == pytest.approx(found.loose_bytes, rel=0.02)
    assert smallest_budget(advised) == pytest.approx(smallest_budget(found.inventory("dit", 1)), rel=0.02)
    return sorted(layer.name for layer in advised.layers if layer.keep is None), sorted(x.name for x in found.layers)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("held", [False, True], ids=["at the root", "inside"])
def test_blocks_in_any_container_are_layers_for_both(name, held):
    with torch.device("meta"):
        network = Network(CONTAINERS[name]())
    advised, found = both(Holder(network) if held else network)
    assert advised == found
    expected = sum(isinstance(module, Block) for module in network.modules())
    assert len(found) == expected + 1 and sum("stack." in layer for layer in found) == expected


@pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "without a forward"])
def test_the_container_itself_may_be_the_model(name):
    """But for a module without a forward: at the root that is the app's frame around whole models, not a list."""
    with torch.device("meta"):
        container = CONTAINERS[name]()
    advised, found = both(container)
    assert advised == found and len(found) == sum(isinstance(module, Block) for module in container.modules())


def test_two_large_leaves_in_one_module_are_one_layer_for_both():
    """A projection of two matrices is called as one."""

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.video = nn.Linear(WIDTH, 2 * WIDTH)
            self.audio = nn.Linear(WIDTH, 2 * WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.video(x) + self.audio(x)

    with torch.device("meta"):
        network = Network(nn.ModuleList(Block() for _ in range(3)))
        network.projection = Projection()
    advised, found = both(network)
    assert advised == found and "projection" in found
