"""The rules of discovery, each on the smallest module that shows it."""

import pytest
import torch
from torch import nn

from bench.full_size import give_memory
from offload_core.files import layer_walk
from offload_core.runtime.layers.discovery import discover

MB = 1 << 20
WIDTH = 1024  # a square fp32 matrix is 4 MB


class Block(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Model(nn.Module):
    """Two lists of blocks, and small things around them."""

    def __init__(self, **more):
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.first = nn.ModuleList(Block() for _ in range(2))
        self.second = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 8)
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        for block in (*self.first, *self.second):
            x = block(x)
        return x


def names(found):
    return [layer.name for layer in found.layers]


def test_blocks_of_several_lists_are_found_in_order():
    assert names(discover(Model())) == ["first.0", "first.1", "second.0", "second.1", "second.2"]


def test_every_byte_is_in_a_layer_or_loose():
    model = Model()
    found = discover(model)
    streamed = {id(p) for layer in found.layers for p in layer.parameters}
    rest = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in streamed)
    assert rest <= found.loose_bytes <= rest + 256 * len(list(model.parameters()))


def test_small_tensors_of_a_block_stay_on_the_device():
    layer = discover(Model()).layers[0]
    assert [tuple(p.shape) for p in layer.parameters] == [(WIDTH, WIDTH)]


def test_a_list_inside_a_wrapper_without_forward():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = Model()

    assert names(discover(Wrapper()))[0] == "diffusion_model.first.0"


def test_a_module_that_is_itself_a_list():
    assert names(discover(nn.Sequential(*(Block() for _ in range(3))))) == ["0", "1", "2"]


def test_a_sequential_of_leaves_is_one_unit():
    lists = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
    assert names(discover(Model(mlps=lists)))[-2:] == ["mlps.0", "mlps.1"]


def test_a_walked_sequential_subclass_is_gone_through():
    """A UNet's elements are iterated by their parent and never called themselves."""

    class Walked(nn.Sequential):
        pass

    walked = nn.ModuleList(Walked(Block(), Block()) for _ in range(2))
    assert names(discover(Model(blocks=walked)))[-4:] == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]


def test_large_blocks_are_split_where_they_hold_blocks(monkeypatch):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x):
            return x

    model = nn.ModuleList(Stack() for _ in range(2))
    assert names(discover(model)) == ["0", "1"]
    monkeypatch.setattr(layer_walk, "SPLIT_LAYER_BYTES", 8 * MB)
    assert names(discover(model))[:3] == ["0.inner.0", "0.inner.1", "0.inner.2"]


def test_an_outsized_layer_is_cut_into_what_is_called(monkeypatch):
    """Not into its lists, which are never called themselves: their weights would be copied one by one."""

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.resnets = nn.ModuleList(Block() for _ in range(3))
            self.upsamplers = nn.ModuleDict({"by_two": Block()})
            self.out = Block()

        def forward(self, x):
            return x

    monkeypatch.setattr(layer_walk, "MIN_SINGLE_LAYER_BYTES", 8 * MB)
    found = names(discover(Model(stages=nn.ModuleList([Block(), Stage(), Block()]))))
    cut = ["resnets.0", "resnets.1", "resnets.2", "upsamplers.by_two", "out"]
    assert found[-7:] == ["stages.0", *(f"stages.1.{name}" for name in cut), "stages.2"]


def test_a_huge_module_outside_lists_is_a_layer():
    model = Model(modulation=nn.Linear(4096, 6 * 4096, device="meta"))
    assert names(discover(give_memory(model, torch.float32)))[-1] == "modulation"
    small = Model(modulation=nn.Linear(WIDTH, WIDTH))
    assert "modulation" not in names(discover(small))


def test_a_large_table_is_gathered_on_the_host_and_in_no_layer():
    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(40000, 512, device="meta")
            self.position = nn.Embedding(77, 512, device="meta")

        def forward(self, ids):
            return self.token(ids)

    found = discover(give_memory(Model(embeddings=Embeddings()), torch.float32))
    assert [table.name for table in found.tables] == ["embeddings.token"]
    assert not [name for name in names(found) if name.startswith("embeddings")]
    assert found.loose_bytes < MB
    (table,) = found.inventory("x", 1).tables
    assert (table.name, table.bytes, table.used_whole) == ("embeddings.token", 40000 * 512 * 4, False)


def test_one_table_in_two_embeddings_is_gathered_in_both():
    one, two = nn.Embedding(40000, 512, device="meta"), nn.Embedding(40000, 512, device="meta")
    two.weight = one.weight
    found = discover(give_memory(Model(one=one, two=two), torch.float32))
    (table,) = found.tables
    assert table.weight is one.weight and table.modules == [one, two]
    assert [table.name for table in found.inventory("x", 1).tables] == ["one"]


@pytest.mark.parametrize("order", [("token", "lm_head"), ("lm_head", "token")])
def test_a_table_tied_to_a_projection_stays_whole(order):
    token, lm_head = nn.Embedding(40000, 512, device="meta"), nn.Linear(512, 40000, bias=False, device="meta")
    lm_head.weight = token.weight
    parts = {"token": token, "lm_head": lm_head}
    found = discover(give_memory(Model(**{name: parts[name] for name in order}), torch.float32))
    assert not found.tables
    assert "lm_head" not in names(found)
    assert 40000 * 512 * 4 <= found.loose_bytes < 40000 * 512 * 4 + MB


def test_a_parameter_tied_between_layers_is_loose():
    model = Model()
    model.second[0].linear.weight = model.first[1].linear.weight
    found = discover(model)
    assert names(found) == ["first.0", "second.1", "second.2"]
    assert found.loose_bytes > 4 * MB
    assert any("shares its storage" in note for note in found.notes)


def test_views_of_one_storage_that_overlap_are_loose_and_neighbours_are_not():
    model = Model()
    storage = torch.empty(2 * WIDTH * WIDTH)
    model.first[0].linear.weight = nn.Parameter(storage[: WIDTH * WIDTH].view(WIDTH, WIDTH))
    model.first[1].linear.weight = nn.Parameter(storage[WIDTH * WIDTH :].view(WIDTH, WIDTH))
    assert len(discover(model).layers) == 5
    model.first[1].linear.weight = nn.Parameter(storage[WIDTH : WIDTH + WIDTH * WIDTH].view(WIDTH, WIDTH))
    assert names(discover(model)) == ["second.0", "second.1", "second.2"]


def test_a_block_listed_twice_is_one_layer():
    block = Block()
    model = Model(again=nn.ModuleList([block, block]))
    assert names(discover(model))[-1] == "again.0"


def test_a_block_in_two_lists_is_one_layer():
    model = Model()
    model.taps = nn.ModuleList([model.second[1], model.first[0]])
    assert names(discover(model)) == ["first.0", "first.1", "second.0", "second.1", "second.2"]


@pytest.mark.parametrize("first", [True, False])
def test_a_block_that_hangs_inside_another_is_moved_with_it(first):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.own = inner, nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.own(self.inner(x))

    blocks = [Block(), Block()]
    lists = [nn.ModuleList(blocks), nn.ModuleList(Outer(block) for block in blocks)]
    found = discover(nn.ModuleList(lists if first else reversed(lists)))
    assert [type(layer.module) for layer in found.layers] == [Outer, Outer]
    assert [len(layer.parameters) for layer in found.layers] == [2, 2]


def test_a_tensor_subclass_stays_resident_and_is_named():
    class Quantised(torch.Tensor):
        pass

    model = Model()
    model.first[0].linear.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH).as_subclass(Quantised), requires_grad=False)
    found = discover(model)
    assert "first.0" not in names(found)
    assert any("first.0.linear.weight" in note and "cannot be moved as bytes" in note for note in found.notes)


def test_no_blocks_and_small_blocks_say_so():
    assert "no repeated blocks" in discover(nn.Linear(8, 8)).notes[-1]
    small = discover(nn.ModuleList(Block(64) for _ in range(20)))
    assert not small.layers
    assert any("kept resident" in note for note in small.notes)
    assert len(small.notes) <= 13


def test_discovery_moves_nothing():
    model = Model()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    discover(model)
    assert before == {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    assert not any("forward" in vars(module) for module in model.modules())
