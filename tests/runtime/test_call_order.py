"""The guess of the order in which modules are called, from code that was never run."""

import functools
import importlib
import linecache

import torch
from torch import nn

from offload_core.runtime import discover
from offload_core.runtime.layers.call_order import in_call_order

WIDTH = 600
"""A Linear of 1.4 MB: each is a layer of its own in a list of these blocks."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.inner(x)


def blocks(count=2):
    return nn.ModuleList(Block() for _ in range(count))


class Refined(nn.Module):
    """Registered last, called first, by a method that another one calls."""

    def __init__(self):
        super().__init__()
        self.blocks = blocks(3)
        self.single = blocks()
        self.refiners = blocks()
        self.made_up_0 = blocks()

    def forward(self, x):
        return self._run(self._refined(x))

    def _refined(self, x):
        for block in self.refiners:
            x = block(x)
        return x

    def _run(self, x):
        for block in self.blocks:
            x = block(x)
        x = list(self.single)[-1](x)
        return getattr(self, "made_up_" + "0")[0](x)


class Stages(nn.Module):
    """As decoders are: what is in `up` is walked backwards, and what is behind it is not."""

    def __init__(self):
        super().__init__()
        self.levels = 3
        self.tail = blocks()
        self.up = blocks(3)
        self.mid = blocks()

    def forward(self, x):
        for block in self.mid:
            x = block(x)
        for level in reversed(range(self.levels)):
            x = self.up[level](x)
        for block in self.tail:
            x = block(x)
        return x


class Both(nn.Module):
    """An autoencoder: encoded with first, and no forward."""

    def __init__(self):
        super().__init__()
        self.decoder = Stages()
        self.encoder = blocks()

    def encode(self, x):
        return self.encoder[0](x)

    def decode(self, x):
        return self.decoder(x)


class Refuses(nn.Module):
    """Whose methods are not Python's."""

    forward = torch.relu

    def __init__(self):
        super().__init__()
        self.b = blocks()
        self.a = blocks()


def order_of(model):
    found = discover(model, min_layer_bytes=1)
    assert sorted(found.order) == list(range(len(found.layers)))
    assert found.inventory("x", 1).visits == found.order
    return [found.layers[index].name for index in found.order]


def test_what_the_code_names_first_comes_first():
    names = [name.split(".")[0] for name in order_of(Refined())]
    assert list(dict.fromkeys(names)) == ["refiners", "blocks", "single", "made_up_0"]
    assert order_of(Refined())[2:5] == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_list_that_is_walked_backwards():
    assert order_of(Stages()) == ["mid.0", "mid.1", "up.2", "up.1", "up.0", "tail.0", "tail.1"]


def test_an_autoencoder_is_encoded_with_first():
    names = order_of(Both())
    assert names[:2] == ["encoder.0", "encoder.1"] and names[2].startswith("decoder.mid")


def test_what_cannot_be_read_stays_as_it_is_registered():
    assert order_of(Refuses()) == ["b.0", "b.1", "a.0", "a.1"]


def test_each_module_comes_once_and_after_its_parent():
    model = Refined()
    model.single[0] = model.blocks[0]
    modules = list(in_call_order(model))
    assert len(modules) == len(set(modules)) == len(list(model.modules()))
    places = {module: place for place, module in enumerate(modules)}
    for parent in model.modules():
        assert all(places[child] > places[parent] for child in parent.children() if child is not model.blocks[0])


def test_code_that_another_pack_has_wrapped_is_read_through():
    class Patched(Refined):
        pass

    original = Refined.forward

    @functools.wraps(original)
    def patched(self, x):
        return original(self, x)

    Patched.forward = patched
    assert order_of(Patched()) == order_of(Refined())


def test_source_that_is_another_one_by_now_costs_the_guess_and_nothing_else(tmp_path, monkeypatch):
    """A pack that is updated while the app runs; and methods that call each other without an end."""
    text = "from torch import nn\nfrom tests.runtime.test_call_order import blocks\n"
    text += "class Loaded(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    text += "        self.b = blocks()\n        self.a = blocks()\n"
    text += "    def forward(self, x):\n        return self.a[0](self.forward(x)) + self.b[0](x)\n"
    (tmp_path / "a_pack_of_another.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("a_pack_of_another")
    assert [name[0] for name in order_of(module.Loaded())] == ["a", "a", "b", "b"]
    for now in ("", "(((\n" * 20, 'x = """\n' * 9):
        (tmp_path / "a_pack_of_another.py").write_text(now)
        linecache.clearcache()
        assert sorted(order_of(module.Loaded())) == ["a.0", "a.1", "b.0", "b.1"]
