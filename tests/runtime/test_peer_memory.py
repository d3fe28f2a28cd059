"""Layers that lie in another device's memory: every life of the zoo again, and what only they can go through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offload_core.errors import StateError
from offload_core.runtime.device.peer_memory import PeerMemory, can_reach
from offload_core.runtime.engine import controller
from offload_core.runtime.engine.controller import OffloadController
from offload_core.runtime.engine.tier_moves import off_peer
from offload_core.runtime.files.weight_file import FileReadError
from offload_core.runtime.host.host_layer import HostLayer
from tests.runtime.file_models import visible_reads
from tests.runtime.test_seeded_faults import caught_by
from tests.runtime.world import DIM, World
from tests.runtime.zoo import ZOO, in_order, two_components, weights_change
from tests.support.hand_plan import hand_plan

SIZES = (4, 4, 4, 4, 4)


@pytest.fixture(params=[False, True], ids=["masters in memory", "masters in the file"])
def folder(request, tmp_path, monkeypatch):
    if not request.param:
        return None
    visible_reads(monkeypatch)
    return tmp_path


@pytest.mark.parametrize("late", [False, True], ids=["copies at once", "copies at the last moment"])
@pytest.mark.parametrize("scenario", ZOO, ids=lambda scenario: scenario.__name__)
def test_every_life(scenario, late, folder):
    with torch.no_grad(), World(late, "peer", folder) as world:
        scenario(world)


def test_every_copy_comes_from_there_and_no_master_takes_host_memory(folder):
    with torch.no_grad(), World(False, "peer", folder) as world:
        component = world.add(SIZES)
        component.load(8192, residents=(0,))
        controller = component.controller
        assert [layer.host.tier for layer in controller.layers[1:]] == ["peer"] * 4
        assert controller.peer_bytes() == world.port.peer_bytes == sum(layer.nbytes for layer in controller.layers[1:])
        if folder is not None:
            assert controller.host_bytes()["pageable"] == 0
        component.run()
        before = world.port.counts["copy_across"]
        copies = controller.counters.copies
        for _ in range(3):
            component.run()
        assert world.port.counts["copy_across"] - before == controller.counters.copies - copies > 0


def test_what_has_no_room_there_is_copied_from_its_master(folder):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        world.port.peer_limit_bytes = 2 * component.controller.layers[0].nbytes
        component.load(8192)
        tiers = [layer.host.tier for layer in component.controller.layers]
        assert tiers == ["peer"] * 2 + ["mapped" if folder is not None else "pageable"] * 3
        for _ in range(3):
            component.run()


def test_it_leaves_between_passes_and_comes_back(folder):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        component.load(8192)
        for _ in range(2):
            component.run()
            component.controller.give_back_peer()
            assert world.port.peer_bytes == 0 and component.controller.peer_bytes() == 0
            assert component.controller.plan.peer_device is None
            component.run()
            component.load(8192)
            assert world.port.peer_bytes > 0


def test_it_leaves_while_it_is_not_loaded(folder):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        component.load(8192)
        component.run()
        component.controller.unload()
        assert (world.port.peer_bytes > 0) == (folder is not None), "what lies in no file may be written meanwhile"
        component.controller.give_back_peer()
        assert world.port.peer_bytes == 0
        component.load(8192)
        component.run()


def test_it_gives_back_what_is_asked_for_and_what_is_copied_least_first():
    with torch.no_grad(), World(True, "peer") as world:
        component = world.add((4, 8, 4, 4, 4))
        component.load(16384)
        controller = component.controller
        component.run()
        before = controller.peer_bytes()
        freed = controller.give_back_peer(controller.layers[0].nbytes + 1)
        assert (
            freed
            == 2 * controller.layers[0].nbytes
            == before - controller.peer_bytes()
            == before - world.port.peer_bytes
        )
        assert controller.layers[1].host.peer_copy is not None, "the largest is worth most"
        assert controller.plan.peer_device is not None
        component.run()
        assert controller.give_back_peer(1 << 40) == before - freed
        assert controller.plan.peer_device is None and controller.give_back_peer() == 0
        component.run()


def test_it_does_not_leave_in_a_pass():
    with torch.no_grad(), World(False, "peer") as world:
        component = world.add(SIZES)
        component.load(8192)

        def leave():
            with pytest.raises(StateError, match="found a pass under way"):
                component.controller.give_back_peer()

        component.run(inside={2: leave})


def test_a_plan_made_in_a_pass_moves_nothing_there_before_the_pass_is_over():
    with torch.no_grad(), World(False, "pinned") as world:
        component = world.add(SIZES)
        component.load(8192)
        plan = hand_plan(component.controller, 8192, tiers="peer")
        taken = []

        def between(position):
            if position == 2:
                component.controller.change_to(plan)
            taken.append(world.port.peer_bytes)

        component.run(between=between)
        assert set(taken) == {0}
        component.run(between=between)
        assert min(taken[len(SIZES) :]) > 0


@pytest.mark.parametrize("between", ["passes", "loads"])
def test_a_weight_that_other_code_writes_in_place_is_the_one_that_counts(folder, between):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        component.load(8192)
        component.run()
        if between == "loads":
            component.controller.unload()
        component.model.blocks[2].weight.mul_(3)
        component.twin.blocks[2].weight.mul_(3)
        if between == "loads":
            component.load(8192)
        for _ in range(2):
            component.run()


def test_each_link_has_a_measured_rate():
    with torch.no_grad(), World(False, "peer") as world:
        world.port.measures_ns = 1000
        component = world.add(SIZES)
        component.load(8192)
        for _ in range(3):
            component.run()
        rates = component.controller.link_rates()
        assert rates.from_peer is not None and rates.from_host is None
        component.controller.give_back_peer()
        for _ in range(8):
            component.run()
        assert component.controller.link_rates().from_host is not None


def test_a_rate_is_of_the_device_that_the_plan_names():
    with torch.no_grad(), World(False, "peer") as world:
        world.port.measures_ns = 1000
        component = world.add(SIZES)
        component.load(8192)
        for _ in range(3):
            component.run()
        controller = component.controller
        of_first = controller.link_rates().from_peer
        controller.load(controller.plan)
        assert controller.link_rates().from_peer == of_first is not None
        world.port.measures_ns = 3000
        controller.load(replace(controller.plan, peer_device="peer:2"))
        assert controller.link_rates().from_peer is None
        for _ in range(9):  # the ninth pass is measured
            component.run()
        assert controller.link_rates().from_peer == pytest.approx(of_first / 3)


def test_a_read_that_fails_leaves_no_memory_there_taken(tmp_path):
    with torch.no_grad(), World(False, "peer", tmp_path) as world:
        component = world.add(SIZES)
        file = component.controller.layers[3].host.source.files[0]
        path = file.path
        content = path.read_bytes()
        path.write_bytes(content + b"more")
        with pytest.raises(FileReadError, match="grown"):
            component.load(8192)
        assert world.port.peer_bytes == 0
        world.port.peer_memory("peer:1").trim()  # of what the error's frames held until now
        component.attached = False
        component.controller.detach()


def test_what_is_given_back_is_not_taken_by_layers_that_had_found_no_room(folder):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        layer_bytes = component.controller.layers[0].nbytes
        world.port.peer_limit_bytes = 3 * layer_bytes
        component.load(8192)
        component.run()
        assert component.controller.give_back_peer(layer_bytes) == layer_bytes
        assert world.port.peer_bytes == 2 * layer_bytes
        component.run()
        assert component.controller.give_back_peer() == 2 * layer_bytes and world.port.peer_bytes == 0


def test_the_memory_of_a_copy_that_is_left_is_returned(folder):
    with torch.no_grad(), World(True, "peer", folder) as world:
        component = world.add(SIZES)
        controller = component.controller
        component.load(8192)
        whole = controller.peer_bytes()
        plan = hand_plan(controller, 8192, tiers="peer")
        controller.load(off_peer(plan, {1, 2}))
        assert world.port.peer_reserved_bytes == world.port.peer_bytes == controller.peer_bytes() < whole
        component.run()
        controller.load(hand_plan(controller, 8192, tiers="pinned"))
        assert world.port.peer_reserved_bytes == controller.peer_bytes() == 0
        component.run()


def test_layers_leave_the_host_before_others_are_page_locked(tmp_path, monkeypatch):
    visible_reads(monkeypatch)
    with torch.no_grad(), World(True, "mapped", tmp_path) as world:
        component = world.add(SIZES)
        controller, port, most = component.controller, world.queue.port, []
        pinned, peer = (hand_plan(controller, 8192, tiers=tier) for tier in ("pinned", "peer"))
        in_file = hand_plan(controller, 8192, tiers="mapped")
        controller.load(replace(pinned, layers=(*pinned.layers[:2], *in_file.layers[2:])))
        pin = port.host_pin

        def host_pin(buffer):
            locked = pin(buffer)
            most.append(controller.pinned_bytes() + buffer.numel())
            return locked

        monkeypatch.setattr(port, "host_pin", host_pin)
        world.port.peer_limit_bytes = controller.layers[0].nbytes  # the second finds no room
        controller.load(replace(peer, layers=(*peer.layers[:2], *pinned.layers[2:4], in_file.layers[4])))
        assert len(most) == 2 and max(most) == 2 * controller.layers[0].nbytes
        assert [layer.host.tier for layer in controller.layers] == ["peer", "mapped", "pinned", "pinned", "mapped"]
        component.run()


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_load_that_stops_leaves_nothing_there(folder, monkeypatch, error):
    with torch.no_grad(), World(False, "peer", folder) as world:
        component = world.add(SIZES)
        real, calls = PeerMemory.copy_of, []

        def copy_of(self, source):
            calls.append(source)
            if len(calls) == 4:
                raise error
            return real(self, source)

        monkeypatch.setattr(PeerMemory, "copy_of", copy_of)
        with pytest.raises(error):
            component.load(8192)
        assert not component.controller.loaded and world.port.peer_reserved_bytes == 0
        component.load(8192)
        component.run()


def test_moves_after_a_pass_that_stopped_go_on_where_they_were(monkeypatch):
    with torch.no_grad(), World(False, "pinned") as world:
        component = world.add(SIZES)
        component.load(8192)
        plan = hand_plan(component.controller, 8192, tiers="peer")
        real, calls = PeerMemory.copy_of, []

        def copy_of(self, source):
            calls.append(source)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return real(self, source)

        monkeypatch.setattr(PeerMemory, "copy_of", copy_of)
        component.run(between=lambda position: component.controller.change_to(plan) if position == 2 else None)
        with pytest.raises(KeyboardInterrupt):
            component.controller.load(plan) if len(calls) > 3 else component.run()
        component.run()
        assert len(calls) == len(SIZES) + 1, "each once, and once more the one that was interrupted"


def test_a_weight_that_is_written_in_a_pass_counts_from_the_next_copy_on():
    with torch.no_grad(), World(False, "peer") as world:
        component = world.add(SIZES)
        component.load(4096)
        component.run()

        def write(position):
            if position == 2:
                component.model.blocks[0].weight.mul_(3)  # of which no copy is on the device any more

        held, x = component.controller.peer_bytes(), torch.ones(2, DIM)
        assert torch.equal(component.model(x, None, between=write), component.twin(x, None))
        assert component.controller.peer_bytes() == world.port.peer_bytes == held, "copies may still read it"
        component.twin.blocks[0].weight.mul_(3)
        component.run()
        component.run()
        component.controller.load(hand_plan(component.controller, 4096, tiers="pageable"))
        assert world.port.peer_bytes == component.controller.peer_bytes() == 0


def test_a_residents_read_from_its_file_is_no_measure_of_the_link(tmp_path, monkeypatch):
    visible_reads(monkeypatch)
    with torch.no_grad(), World(False, "peer", tmp_path) as world:
        world.port.measures_ns = 1000
        component = world.add(SIZES)
        component.load(16384, residents=(0, 1))
        for _ in range(3):
            component.run()
        rates = component.controller.link_rates()
        assert rates.from_host is None and rates.from_peer is not None


@pytest.mark.parametrize(
    "device, peer", [("cpu", "cpu"), ("cpu", "cuda:1"), ("meta", "meta")], ids=lambda name: name.replace(":", "")
)
def test_only_two_accelerators_reach_each_other(device, peer):
    assert not can_reach(torch.device(device), torch.device(peer))


# ---------------------------------------------------------------------- seeded faults


def it_is_freed_while_copies_are_under_way(patch):
    patch.setattr(OffloadController, "give_back_peer", _leave_at_once)


def _leave_at_once(controller, nbytes=None):
    for layer in controller.layers:
        layer.host.drop_peer_copy()


def a_write_leaves_the_copy_as_it_was(patch):
    patch.setattr(HostLayer, "own_bytes", _own_bytes_only(HostLayer.own_bytes))
    patch.setattr(controller, "free_peer_copies", lambda layers, port: None)


def _own_bytes_only(real):
    def own_bytes(self):
        kept, self.peer_copy = self.peer_copy, None
        buffer = real(self)
        self.peer_copy = kept
        return buffer

    return own_bytes


def the_copy_has_other_bytes(patch):
    real = PeerMemory.copy_of

    def copy_of(self, source):
        copy = real(self, source)
        copy[: copy.numel() // 2] = 3
        return copy

    patch.setattr(PeerMemory, "copy_of", copy_of)


def leaves_early(world: World) -> None:
    component = world.add(SIZES)
    component.load(8192)
    component.run()
    component.controller.give_back_peer()
    component.run()


FAULTS = {
    it_is_freed_while_copies_are_under_way: (leaves_early, {"race"}),
    a_write_leaves_the_copy_as_it_was: (weights_change, {"value"}),
    the_copy_has_other_bytes: (in_order, {"value"}),
}


@pytest.mark.parametrize("scenario", [leaves_early, weights_change, in_order, two_components])
def test_nothing_is_caught_without_a_fault(scenario):
    assert caught_by(scenario, World(True, "peer")) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_seeded_fault_is_caught(fault, monkeypatch):
    scenario, kinds = FAULTS[fault]
    fault(monkeypatch)
    assert caught_by(scenario, World(True, "peer")) >= kinds
