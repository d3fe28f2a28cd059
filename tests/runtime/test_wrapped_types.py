"""Quantised weights and other wrapped types: moved as bytes through their own parts, or resident with the reason."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from offload_core.errors import OffloadError
from offload_core.runtime import Change, DeviceQueue, OffloadController, attach, discover
from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.tensors.parts import UnmovableTensor, parts_of, stored_bytes
from tests.runtime.world import hand_plan
from tests.runtime.wrapped_types import Fleeting, Forgetful, GGUFLike, Pair, QuantisedLinear, Scaled, Silent
from tests.support.race_port import RacePort

MOVABLE = (Scaled, Pair, GGUFLike)
DIM = 16


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.first = QuantisedLinear(kind.of(torch.randn(DIM, DIM)))
        self.second = nn.Linear(DIM, DIM)

    def forward(self, x):
        return x + self.second(self.first(self.norm(x)))


class Model(nn.Module):
    def __init__(self, kind, count=5):
        super().__init__()
        torch.manual_seed(1)
        self.head = QuantisedLinear(kind.of(torch.randn(DIM, DIM)))
        self.blocks = nn.ModuleList([Block(kind) for _ in range(count)])

    def forward(self, x):
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return x


def bytes_of(tensor):
    return [part.data.contiguous().view(-1).view(torch.uint8).clone() for part in parts_of(tensor).leaves]


def equal_bytes(one, other):
    return all(torch.equal(a, b) for a, b in zip(bytes_of(one), bytes_of(other), strict=True))


@pytest.mark.parametrize("kind", MOVABLE)
def test_a_type_is_taken_apart_and_put_together_over_other_bytes(kind):
    weight = kind.of(torch.randn(DIM, DIM))
    parts = parts_of(weight)
    twin = parts.as_parameter([leaf.clone(memory_format=torch.preserve_format) for leaf in map(raw, parts.leaves)])
    assert type(twin) is kind and isinstance(twin, nn.Parameter) and not twin.requires_grad
    assert twin.shape == weight.shape and torch.equal(twin.plain(), weight.plain())
    assert parts_of(twin).like(parts)
    raw(parts_of(twin).leaves[0]).zero_()
    assert not torch.equal(twin.plain(), weight.plain()), "the twin has bytes of its own"


def raw(leaf):
    return torch.Tensor.as_subclass(leaf, torch.Tensor)


def test_types_of_another_kind_or_context_are_told_apart():
    weight = torch.randn(DIM, DIM)
    scaled = parts_of(Scaled.of(weight))
    assert not scaled.like(parts_of(Pair.of(weight))) and not scaled.like(parts_of(weight))
    assert not scaled.like(parts_of(Scaled.of(weight.to(torch.float64))))
    assert scaled.like(parts_of(Scaled.of(weight * 2)))


def test_what_is_stored_is_what_counts():
    assert stored_bytes(Scaled.of(torch.randn(DIM, DIM))) == DIM * DIM + 4
    assert stored_bytes(torch.randn(DIM, DIM)) == 4 * DIM * DIM


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Silent, "a Silent tensor, a type that says nothing of the parts it is made of"),
        (Forgetful, "another one when put together again"),
        (Fleeting, "made anew each time"),
    ],
)
def test_what_cannot_be_moved_says_why(kind, reason):
    assert issubclass(UnmovableTensor, OffloadError)
    with pytest.raises(UnmovableTensor, match=reason):
        parts_of(kind.of(torch.randn(DIM, DIM)))


def test_an_unknown_type_stays_resident_and_the_plan_says_so():
    model = Model(Silent)
    reference = model(torch.ones(2, DIM))
    port = RacePort()
    handle = attach(model, device="cpu", queue=DeviceQueue(port), min_layer_bytes=1, budget_bytes=1 << 16)
    assert any("blocks.0.first.weight is a Silent tensor" in line for line in handle.plan.decisions)
    with torch.no_grad():
        assert torch.equal(model(torch.ones(2, DIM)), reference)
    handle.detach()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", MOVABLE)
def test_wrapped_weights_are_streamed(kind, late):
    """Bit for bit, without a race, from the ring, with nothing built after the plan."""
    model = Model(kind)
    own = {name: id(parameter) for name, parameter in model.named_parameters()}
    before = {name: bytes_of(parameter) for name, parameter in model.named_parameters()}
    x = torch.randn(2, DIM)
    with torch.no_grad():
        reference = model(x)
    port = RacePort(late=late)
    queue = DeviceQueue(port)
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    largest = max(layer.bytes for layer in controller.inventory.layers)
    assert largest >= sum(stored_bytes(p) for p in model.blocks[0].parameters() if p.ndim == 2)
    controller.load(hand_plan(controller, 2 * largest + 512, residents=(3,)))

    def on_device(module, args):
        assert all(port.holds(raw(leaf)) for leaf in parts_of(module.weight).leaves), "ran from the host"

    hooks = [block.first.register_forward_pre_hook(on_device) for block in model.blocks]
    hooks.append(model.head.register_forward_pre_hook(on_device))
    with torch.no_grad(), port.watching():
        for _ in range(3):
            assert torch.equal(model(x), reference)
        shown = [id(parameter) for _, _, parameter in controller.layers[0].device_bindings]
        model(x)
        assert shown == [id(parameter) for _, _, parameter in controller.layers[0].device_bindings]
        for hook in hooks:
            hook.remove()
        controller.detach()
        queue.close()
    port.check()
    assert port.live_bytes == 0
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == own
    for name, parameter in model.named_parameters():
        assert type(parameter) in (nn.Parameter, kind)
        assert all(torch.equal(a, b) for a, b in zip(bytes_of(parameter), before[name], strict=True))


@pytest.mark.parametrize("kind", MOVABLE)
def test_a_race_inside_a_wrapper_is_seen(kind, monkeypatch):
    """The check looks into wrapped weights: an engine that does not wait for its copies is found out by them alone."""
    model = Model(kind)
    for block in model.blocks:
        block.second = nn.Identity()
    port = RacePort()
    monkeypatch.setattr(port, "compute_waits", lambda event: None)
    handle = attach(model, device="cpu", queue=DeviceQueue(port), min_layer_bytes=1, ring_bytes=1 << 12)
    with torch.no_grad(), port.watching():
        model(torch.ones(2, DIM))
        handle.detach()
    assert any("read by the compute lane" in race for race in port.races)


@pytest.mark.parametrize("kind", MOVABLE)
def test_a_master_follows_a_weight_that_was_replaced(kind):
    given = kind.of(torch.randn(DIM, DIM))
    host = HostLayer([given], RacePort(1 << 14), pinned=False)
    other = kind.of(torch.randn(DIM, DIM))
    value = bytes_of(other)
    assert host.reclaim(0, other) and host.parameters[0] is other
    assert all(torch.equal(a, b) for a, b in zip(bytes_of(host.device_views(host.buffer)[0]), value, strict=True))
    assert not host.reclaim(0, nn.Parameter(torch.randn(DIM, DIM))), "another type"
    assert not host.reclaim(0, kind.of(torch.randn(DIM, 2 * DIM))), "another shape"
    third = kind.of(torch.randn(DIM, DIM))
    host.write(other, third)
    assert equal_bytes(other, third)


@pytest.mark.parametrize("kind", MOVABLE)
def test_while_it_lends_a_weight_is_still_of_its_type(kind):
    given = kind.of(torch.randn(DIM, DIM))
    given._is_param = True
    value, plain = bytes_of(given), given.plain().clone()
    host = HostLayer([given], RacePort(1 << 14), pinned=False)
    host.take_over()
    assert isinstance(given, kind) and isinstance(given, nn.Parameter) and torch.equal(given.plain(), plain)
    twin = copy.deepcopy(given)
    assert type(twin) is kind and torch.equal(twin.plain(), plain)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(parts_of(twin).leaves, given.parts.leaves, strict=True))
    host.hand_back()
    assert type(given) is kind
    assert all(torch.equal(a, b) for a, b in zip(bytes_of(given), value, strict=True))


def test_a_lending_wrapper_can_be_pickled():
    given = Scaled.of(torch.randn(DIM, DIM))
    host = HostLayer([given], RacePort(1 << 14), pinned=False)
    host.take_over()
    file = io.BytesIO()
    torch.save(given, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert type(back) is Scaled and torch.equal(back.plain(), given.plain())


def test_a_change_that_is_carried_by_attributes_moves_no_byte():
    """On what streams, what stays and what lies outside layers; gone with the next change and with the device."""
    model = Model(GGUFLike)
    x = torch.randn(2, DIM)
    port = RacePort()
    queue = DeviceQueue(port)
    controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    largest = max(layer.bytes for layer in controller.inventory.layers)
    plan = hand_plan(controller, 2 * largest + 512, residents=(3,))
    seen = {}

    def look(name):
        return lambda module, args: seen.__setitem__(name, list(module.weight.patches))

    for number, block in enumerate(model.blocks):
        block.first.register_forward_pre_hook(look(number))
    model.head.register_forward_pre_hook(look("head"))

    def carry(*values):
        names = {"head": "head.weight"} | {number: f"blocks.{number}.first.weight" for number in (1, 3)}
        changes = {}
        for key, name in names.items():
            weight = model.get_parameter(name)
            changes[name] = Change(key=values, compute=lambda w=weight: w, marks={"patches": [*values, key]})
        controller.set_changes(changes if values else {})

    with torch.no_grad():
        reference = model(x)
        controller.load(plan)
        carry("first")
        for values in (("first",), ("second", "third"), ()):
            carry(*values)
            for _ in range(2):
                assert torch.equal(model(x), reference)
                carried = {key: [*values, key] if values and key in (1, 3, "head") else [] for key in seen}
                assert seen == carried
        carry("last")
        controller.load(hand_plan(controller, 2 * largest + 512, residents=(1,)))
        model(x)
        assert (seen[1], seen[3], seen[0]) == (["last", 1], ["last", 3], []), "built anew with the new plan"
        controller.unload()
        model(x)
        assert set(map(tuple, seen.values())) == {()}, "the host's tensors are what they were"
        controller.load(plan)
        model(x)
        assert seen[1] == ["last", 1]
    assert controller.counters.revised_layers == 0
    controller.detach()
    queue.close()


def test_only_what_has_such_attributes_can_carry_a_change():
    weight = Scaled.of(torch.randn(DIM, DIM))
    with pytest.raises(UnmovableTensor, match="carries no patches"):
        parts_of(weight).set_marks({"patches": []})
