"""What the controller promises beyond right passes: errors, budgets, changed weights, whole modules, no leaks."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from offload_core.errors import PlanError, StateError
from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.engine import controller as controller_module
from offload_core.runtime.layers.loose import LooseTensors
from tests.runtime.world import World, a_world, hand_plan
from tests.support.race_port import RacePort
from tests.support.tiny_torch_models import DIM, Model


def test_a_plan_for_other_layers_is_refused_and_nothing_happens():
    with a_world() as world:
        one, two = world.add([4, 4]), world.add([4, 2])
        with pytest.raises(PlanError, match="found 2 layers with other names or sizes"):
            one.controller.load(hand_plan(two.controller, 8192))
        assert not one.controller.loaded and world.port.live_bytes == 0


def _layer_changed(plan, index, **changes):
    layers = list(plan.layers)
    layers[index] = replace(layers[index], **changes)
    return replace(plan, layers=tuple(layers))


WRONG_PLANS = {
    "a layer over the ring's end": (
        lambda plan: _layer_changed(plan, 1, offset=plan.ring_bytes - 2048),
        "blocks.1 ends at byte 10240 of a ring of 8192",
    ),
    "a streamed layer without a place": (
        lambda plan: _layer_changed(plan, 1, offset=None),
        "blocks.1 is streamed and has no ring offset",
    ),
    "an offset that tensors cannot begin at": (
        lambda plan: _layer_changed(plan, 1, offset=7),
        "offset 7, not a multiple of 256",
    ),
    "a resident with a place in the ring": (
        lambda plan: _layer_changed(plan, 0, offset=0),
        "blocks.0 is resident and has the ring offset 0",
    ),
    "residents that are not in the sum": (lambda plan: replace(plan, resident_bytes=0), "resident_bytes is 0"),
    "loose tensors that are not in the sum": (lambda plan: replace(plan, loose_bytes=0), "loose_bytes is 0"),
    "a table that is not there": (lambda plan: replace(plan, tables=("table",)), "does not have: table"),
    "segments of another device": (lambda plan: replace(plan, segment_bytes=512), "segment_bytes is 512"),
    "a visit to no layer": (lambda plan: replace(plan, visits=(0, 1, 2, 4)), "visit 3 is to layer 4"),
    "a ring that is no number": (lambda plan: replace(plan, ring_bytes=8192.0), "ring_bytes is 8192.0"),
}


@pytest.mark.parametrize("name", WRONG_PLANS)
@pytest.mark.parametrize("way", ["first load", "load", "change_to", "replan", "table"])
def test_a_wrong_plan_is_refused_before_anything_moves(name, way):
    """Whatever made it and whichever way it comes. The plan before it stays in effect, and all that it holds."""
    change, words = WRONG_PLANS[name]
    with a_world() as world:
        one = world.add([4, 4, 4, 4])
        wrong = change(hand_plan(one.controller, 8192, residents=(0,)))
        controller, before = one.controller, None
        if way != "first load":
            before = one.load(8192, residents=(3,))
            one.run()
            one.run()
        copied, held = world.port.copied_bytes, world.port.live_bytes
        with pytest.raises(PlanError, match=re.escape(words)) as refusal:
            if way == "replan":
                controller.replan_on_second_pass(lambda plan, inventory, link: wrong)
                one.run()
                copied = world.port.copied_bytes
                one.run()
            elif way == "table":
                controller.plan_for_tables_by(lambda controller, table: wrong)
                controller._bring_table("a table")
            else:
                getattr(controller, "change_to" if way == "change_to" else "load")(wrong)
        assert str(refusal.value).startswith("model: asked to obey a plan; found that ")
        assert controller.plan is before and (world.port.copied_bytes, world.port.live_bytes) == (copied, held)
        if before is not None:
            assert all(layer.valid for layer in controller.layers if layer.keep_resident), "a resident was lost"
            one.run()
            assert world.port.live_bytes == held == before.device_bytes


def test_a_plan_is_looked_at_when_it_comes_into_force_and_never_in_a_pass(monkeypatch):
    looked = []
    check = controller_module.check_places
    monkeypatch.setattr(controller_module, "check_places", lambda *of: looked.append(1) or check(*of))
    with a_world() as world:
        one = world.add([4, 4, 4, 4])
        one.load(8192, residents=(3,))
        assert len(looked) == 1
        for _ in range(4):
            one.run()
        assert len(looked) == 1


@pytest.mark.parametrize("room", [0, 100, 4096, 9000])
def test_out_of_memory_while_loading_gives_everything_back(room):
    with a_world() as world:
        one = world.add([4, 4, 4, 4], exotic=[1])
        world.port.limit_bytes = room
        with pytest.raises(torch.OutOfMemoryError):
            one.load(8192, residents=(0, 1))
        assert world.port.live_bytes == 0 and not one.controller.loaded
        one.run()
        world.port.limit_bytes = 1 << 20
        one.load(8192, residents=(0, 1))
        one.run()


def test_one_component_out_of_memory_leaves_the_other_its_ring():
    with a_world() as world:
        one, two = world.add([4, 4, 4]), world.add([8, 8])
        one.load(8192)
        one.run()
        world.port.limit_bytes = 10_000
        with pytest.raises(torch.OutOfMemoryError):
            two.load(16_384)
        before = one.controller.counters.unplaced_visits
        one.run()
        one.run()
        assert one.controller.counters.unplaced_visits == before
        assert world.port.live_bytes == one.controller.device_bytes()


def test_the_ring_never_grows_under_a_layer_in_use():
    with a_world() as world:
        one, two = world.add([4, 4, 4]), world.add([8, 8])
        one.load(8192)

        def load():
            with pytest.raises(StateError, match="another component running"):
                two.load(16_384)

        one.run(inside={1: load})
        two.load(16_384)
        two.run()


def test_a_plan_that_shrinks_the_ring_and_grows_the_residents_stays_within_both():
    with a_world() as world:
        one = world.add([4] * 6)
        first = one.load(5 * 4096)
        one.run()
        world.port.peak_bytes = world.port.live_bytes
        second = one.load(4096, residents=(0, 1, 2))
        one.run()
        assert world.port.peak_bytes <= max(first.device_bytes, second.device_bytes)


def test_a_weight_is_named_by_what_hangs_in_the_module_host_or_device():
    with a_world() as world:
        one = world.add([4, 4], exotic=[0])
        one.load(4096, residents=(0,))
        one.run()
        assert world.port.holds(one.model.blocks[0].weight) and world.port.holds(one.model.scale)
        one.write(0, 0.5)
        assert not world.port.holds(one.model.blocks[0].weight), "the device's copy is out of date"
        value = torch.full((DIM,), 3.0)
        one.controller.write_master(one.model.scale, value)
        one.twin.scale.data.copy_(value)
        one.run()
        one.controller.unload()
        one.check_state()


@pytest.mark.parametrize("inference", [False, True])
def test_buffers_written_on_the_device_come_home(inference):
    with torch.inference_mode(inference), a_world() as world:
        one = world.add([4, 4], exotic=[0])
        one.load(8192)
        one.run()
        one.run()
        one.controller.unload()
        one.check_state()
        assert int(one.model.blocks[0].calls[0]) == 2


def test_parameters_made_in_inference_mode_whose_data_was_replaced_outside_of_it():
    """Torch then says they are ordinary, and fails at half of what one does with those."""
    with a_world() as world:
        with torch.inference_mode():
            one = world.add([1, 4])
        for parameter in one.model.parameters():
            parameter.data = parameter.data.clone()
        one.load(8192, residents=(0,))
        one.run()
        one.run()


def test_parameters_that_were_not_written_to_stay_in_their_file(monkeypatch):
    monkeypatch.setattr(LooseTensors, "_bring_buffers_home", lambda self: pytest.fail("a copy back for nothing"))
    with a_world() as world:
        one = world.add([4, 4])
        one.load(8192)
        one.run()


def test_a_component_that_is_only_dropped_leaves_no_copy_under_way_and_no_memory():
    port = RacePort()
    with port.watching(), torch.no_grad():
        queue = DeviceQueue(port)
        model = Model([4, 4, 4, 4])
        controller = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
        controller.load(hand_plan(controller, 8192, residents=(1,)))
        model(torch.ones(1, DIM))
        gone = weakref.ref(controller)
        del controller, model
        gc.collect()
        assert gone() is None, "the queue keeps components alive"
        queue.close()
        assert port.live_bytes == 0 and len(port._regions) == 1
    port.check()


def test_a_module_replaced_while_unloaded_is_taken_over_and_another_shape_refused():
    with a_world() as world:
        one = world.add([4, 4, 4])
        one.load(8192)
        one.run()
        one.controller.unload()
        new = nn.Parameter(torch.full((DIM, DIM), 0.25))
        one.model.blocks[1].weight = new
        one.twin.blocks[1].weight.data.fill_(0.25)
        one.load(8192)
        one.run()
        one.controller.unload()
        assert one.model.blocks[1].weight is new
        one.model.blocks[1].weight = nn.Parameter(torch.zeros(2, 2))
        with pytest.raises(StateError, match="blocks.1 has been replaced"):
            one.load(8192)
        one.model.blocks[1].weight = new
        one.load(8192)
        one.run()
        one.controller.unload()
        one.remember_parameters()


def test_tied_weights_that_were_untied_by_moving_the_module():
    with a_world() as world:
        one = world.add([4, 4], exotic=[1])
        block = one.model.blocks[1]
        one.load(8192)
        one.run()
        one.controller.unload()
        block.weight = nn.Parameter(block.weight.detach().clone())
        block.tied = nn.Parameter(block.tied.detach().clone())
        one.load(8192)
        one.run()
        one.controller.unload()
        one.remember_parameters()


@pytest.mark.parametrize("act", ["unload", "detach"])
def test_in_the_middle_of_a_pass(act):
    """The app's memory manager may do this: the rest of the pass runs from the host."""
    with a_world() as world:
        one = world.add([4, 4, 4, 4])
        one.load(8192, residents=(2,))
        one.run()
        end = getattr(one.controller, act)
        one.run(between=lambda position: position == 2 and end())
        assert world.port.live_bytes == 0
        one.run()


def test_attaching_is_undone_when_memory_for_the_masters_runs_out(monkeypatch):
    port = RacePort()
    queue = DeviceQueue(port)
    model = Model([4, 4, 4])
    given = [0]
    host_empty = RacePort.host_empty

    def limited(self, nbytes, pinned):
        given[0] += 1
        if given[0] > 2:
            raise MemoryError
        return host_empty(self, nbytes, pinned)

    monkeypatch.setattr(RacePort, "host_empty", limited)
    with pytest.raises(MemoryError):
        OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    assert all(type(p) is nn.Parameter for p in model.parameters())
    model(torch.ones(1, DIM))


def test_the_order_of_the_plan_is_the_first_guess():
    with a_world() as world:
        one = world.add([4] * 5)
        plan = replace(hand_plan(one.controller, 8192), visits=(4, 2, 0, 1, 3))
        one.controller.load(plan)
        one.run([4, 2, 0, 1, 3])
        assert one.controller.counters.order_misses == one.controller.counters.demand_loads == 0


def test_look_ahead_pauses_when_visits_come_in_another_order():
    with a_world() as world:
        one = world.add([4] * 8)
        one.load(3 * 4096)
        one.run()
        copies = one.controller.counters.copies
        one.run([7, 6, 5, 4, 3, 2, 1, 0])
        assert one.controller.counters.copies - copies <= 8 + 6, "unused copies are in the way of the others"
        demand = one.controller.counters.demand_loads
        one.run([7, 6, 5, 4, 3, 2, 1, 0])
        one.run([7, 6, 5, 4, 3, 2, 1, 0])
        assert one.controller.counters.demand_loads == demand


def test_a_skipped_block_costs_no_demand_load_and_the_order_is_kept():
    with a_world() as world:
        one = world.add([4] * 6)
        one.load(3 * 4096)
        one.run()
        one.run()
        demand = one.controller.counters.demand_loads
        one.run([0, 1, 2, 4, 5])
        assert one.controller.counters.demand_loads <= demand + 1
        demand = one.controller.counters.demand_loads
        one.run()
        one.run()
        assert one.controller.counters.demand_loads == demand


def test_a_component_without_a_ring_does_not_take_it_from_another():
    with a_world() as world:
        one, two = world.add([4] * 4), world.add([4, 4])
        one.load(2 * 4096)
        two.load(0, residents=(0, 1))
        one.run()
        two.run()
        one.run()
        two.run()
        demand = one.controller.counters.demand_loads
        one.run()
        assert one.controller.counters.demand_loads == demand == 0


def test_world_reports_what_is_left():
    with pytest.raises(AssertionError, match="not given back"), World() as world:
        world.kept = world.port.empty(100)
