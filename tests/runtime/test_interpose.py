"""Wrapping a method and unwrapping it again, while others wrap it too."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from offload_core.runtime.engine.interpose import HostGather, Interposed
from offload_core.runtime.layers.discovery import DiscoveredTable
from offload_core.runtime.layers.tables import HostTable


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


def test_another_wrapper_in_front_keeps_ours_and_installing_again_makes_no_circle():
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


def test_the_classs_method_is_the_one_at_the_call():
    class Patched(Plain):
        pass

    module = Patched()
    loud = Loud(module)
    loud.install()
    Patched.forward = lambda self, x: x + 10
    assert module(1) == ("loud", 11)
    del Patched.forward
    assert module(1) == ("loud", 2)
    Patched.forward = staticmethod(lambda x: x + 20)
    assert module(1) == ("loud", 21)
    del Patched.forward
    Patched.forward = functools.partial(lambda x: x + 30)
    assert module(1) == ("loud", 31), "a callable without a binding of its own gets no module, as in Python"
    del Patched.forward


def test_a_class_that_was_patched_when_we_came_is_not_kept():
    class Patched(Plain):
        def forward(self, x):
            return x + 10

    module = Patched()
    loud = Loud(module)
    loud.install()
    del Patched.forward
    assert module(1) == ("loud", 2)


def test_the_class_of_a_module_may_change():
    class Other(Plain):
        def forward(self, x):
            return x + 10

    module = Plain()
    loud = Loud(module)
    loud.install()
    module.__class__ = Other
    assert module(1) == ("loud", 11)
    module.__class__ = Plain
    assert module(1) == ("loud", 2)


def test_comes_back_where_a_replaced_method_was_put_back_over_us():
    """A pack replaces the forward of a module, we come, and it puts back what it had found."""
    module = Plain()
    own = module.forward
    module.forward = lambda x: own(x) * 100
    loud = Loud(module)
    loud.install()
    assert module(1) == ("loud", 200)
    for put_back in (lambda: setattr(module, "forward", own), lambda: delattr(module, "forward")):
        put_back()
        assert module(1) == 2, "we are gone"
        loud.install()
        assert module(1) == ("loud", 2)


def test_hooks_that_others_add_later_run():
    module = Plain()
    Loud(module).install()
    handles = [
        module.register_forward_hook(lambda _module, _args, result: ("hooked", *result)),
        module.register_forward_pre_hook(lambda _module, args: (args[0] * 10,)),
    ]
    assert module(1) == ("hooked", "loud", 11)
    for handle in handles:
        handle.remove()
    assert module(1) == ("loud", 2)


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


def test_a_copy_keeps_a_method_that_was_replaced_before():
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
    gather = HostGather(table, HostTable(DiscoveredTable("table", table.weight, [table])))
    gather.install()
    assert torch.equal(table(torch.tensor([[1, 4]])), table.weight[[1, 4]][None])
