"""Standing in front of a method, and going away again, whoever else does the same meanwhile."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from offload_core.runtime.interpose import HostGather, Interposed


class Loud(Interposed):
    def __call__(self, *args):
        return "loud", self.call(*args)


class Plain(nn.Module):
    def __init__(self, number=1):
        super().__init__()
        self.number = number

    def forward(self, x):
        return x + self.number


def test_goes_without_a_trace():
    module = Plain()
    loud = Loud(module)
    loud.install()
    loud.install()
    assert module(1) == ("loud", 2)
    loud.remove()
    loud.remove()
    assert module(1) == 2 and "forward" not in vars(module)


def test_puts_back_what_was_there():
    module = Plain()
    module.forward = there = functools.partial(Plain.forward, module)
    loud = Loud(module)
    loud.install()
    assert module(1) == ("loud", 2)
    loud.remove()
    assert vars(module)["forward"] is there


def test_somebody_in_front_keeps_us_there_and_installing_again_does_not_go_in_circles():
    module = Plain()
    loud = Loud(module)
    loud.install()
    ours = module.forward
    module.forward = lambda x: ("front", ours(x))
    loud.remove()
    assert module(1) == ("front", ("loud", 2))
    loud.install()
    assert module(1) == ("front", ("loud", 2))
    del module.forward


def test_a_copy_is_bound_to_itself():
    module = Plain()
    Loud(module).install()
    twin = copy.deepcopy(module)
    twin.number = 10
    assert twin(1) == 11 and module(1) == ("loud", 2)
    parent = nn.Sequential(module)
    twins = copy.deepcopy(parent)
    twins[0].number = 20
    assert twins(1) == 21


def test_a_copy_keeps_what_somebody_had_put_there_before():
    module = Plain()
    module.forward = functools.partial(Plain.forward, module, 5)
    Loud(module).install()
    twin = copy.deepcopy(module)
    twin.number = 10
    assert twin() == 15


def test_a_copy_of_only_the_callable_is_the_callable():
    loud = Loud(Plain())
    assert copy.deepcopy(loud) is loud


def test_tables_are_looked_up_on_the_host():
    table = nn.Embedding(5, 3)
    gather = HostGather(table)
    gather.install()
    assert torch.equal(table(torch.tensor([[1, 4]])), table.weight[[1, 4]][None])
