"""One file in memory once: who shares a host master, who does not, who may write to it, and when it goes.

The engine runs on the simulated accelerator, whose page-locked bytes are counted by the device and not by us.
"""

from __future__ import annotations

import copy
import gc
import os
import threading

import pytest
import torch
from torch import nn

from offload_core.runtime import Change, DeviceQueue, OffloadController, discover, port_for, twin_of
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.device.staging import SLOT_BYTES, SLOTS, StagedPort
from offload_core.runtime.files.weight_file import FileReadError, WeightFile
from offload_core.runtime.host import host_layer
from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.host.masters import distinct
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.runtime.file_models import saved
from tests.runtime.world import hand_plan
from tests.support import simdev

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")
DIM = 64
LAYER_BYTES = DIM * DIM * 4
BLOCKS = 5
RING = 3 * LAYER_BYTES


class Block(nn.Linear):
    def forward(self, x):
        return torch.tanh(nn.functional.linear(x, self.weight.to(x.dtype), self.bias))


class Net(nn.Module):
    """Blocks whose weights are layers; the biases are too small and stay outside."""

    def __init__(self, blocks=BLOCKS):
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.blocks = nn.ModuleList(Block(DIM, DIM) for _ in range(blocks))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Stage:
    """A queue, a file, and users of it: modules that lie in the file, each with a plain twin on the device."""

    def __init__(self, folder):
        self.queue = DeviceQueue(port_for("npu"))
        self.path = saved(Net(), folder / "model.safetensors")
        self.users = []

    def user(self, tier="pinned", residents=(), path=None, dtype=None):
        model = Net()
        if dtype is not None:
            for block in model.blocks:
                block.weight.data = block.weight.data.to(dtype)
        file = weights_from_file(model, path or self.path)
        twin = copy.deepcopy(model)
        if dtype is not None:
            for block in twin.blocks:
                block.weight.data = block.weight.data.to(dtype)
        user = OffloadController(model, self.queue, discovery=discover(model, min_layer_bytes=1))
        user.file, user.twin = file, twin.to("npu")
        self.users.append(user)
        user.load(hand_plan(user, RING, residents, tiers=tier))
        return user

    def close(self):
        for user in self.users:
            user.detach()
        self.queue.close()


@pytest.fixture
def stage(npu, tmp_path):
    with torch.no_grad():
        one = Stage(tmp_path)
        yield one
        one.close()


def right(*users):
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(1)).to("npu")
    for user in users:
        assert torch.equal(user.root(x), user.twin(x)), "another output than the plain module's"


def masters(*users):
    return list(distinct(layer.host.use for user in users for layer in user.layers))


def payload(user):
    return sum(layer.nbytes for layer in user.layers)


def outside_of(first):
    """Bytes outside the layers, which everybody reads for himself, by what the first user of a file has read."""
    return first.file.bytes_read - payload(first)


# ---------------------------------------------------------------------- sharing


def test_a_second_user_of_a_file_reads_nothing_and_takes_no_memory(npu, stage):
    before = npu.stats()["pinned"]
    one = stage.user()
    assert one.file.bytes_read > 0
    two = stage.user()
    assert two.file.bytes_read == outside_of(one), "what is in memory was read again"
    assert len(masters(one, two)) == len(one.layers) == len(masters(one))
    assert npu.stats()["pinned"] - before == payload(one), "page-locked twice"
    assert two.pinned_bytes() == payload(two)
    right(one, two, one)


def test_what_is_resident_comes_from_another_ones_memory_and_holds_none_of_it(npu, stage):
    one = stage.user()
    two = stage.user("mapped", residents=range(BLOCKS))
    right(two, one)
    assert two.file.bytes_read == outside_of(one) and two.host_bytes() == {
        "peer": 0,
        "pinned": 0,
        "pageable": 0,
        "mapped": payload(two),
    }
    one.detach()
    two.load(hand_plan(two, RING, tiers="mapped"))
    right(two)
    assert two.file.bytes_read >= payload(two), "where did it come from?"
    assert not masters(two)


def test_the_last_user_frees_it(npu, stage):
    before = npu.stats()["pinned"]
    one, two = stage.user(), stage.user()
    kept = masters(one)
    one.detach()
    assert npu.stats()["pinned"] - before - SLOTS * SLOT_BYTES <= payload(two) and all(m.locked for m in kept)
    right(two)
    two.detach()
    assert npu.stats()["pinned"] <= before + SLOTS * SLOT_BYTES and not any(m.locked for m in kept)
    del kept
    three = stage.user()
    assert three.file.bytes_read > 0, "masters without a user were kept"
    right(three)


def test_a_user_that_is_dropped_without_a_word_frees_it_too(npu, stage):
    before = npu.stats()["pinned"]
    stage.user()
    assert npu.stats()["pinned"] > before
    stage.users.clear()
    gc.collect()
    assert npu.stats()["pinned"] == before


def test_a_tier_is_a_users_own_and_the_page_lock_the_buffers(npu, stage):
    one, two = stage.user("pinned"), stage.user("pageable")
    assert two.host_bytes()["pageable"] == payload(two) and len(masters(one, two)) == len(one.layers)
    right(one, two)
    one.load(hand_plan(one, RING, tiers="mapped"))
    assert not any(master.locked for master in masters(two)), "unneeded page-lock"
    right(one, two)
    two.load(hand_plan(two, RING, tiers="pinned"))
    one.load(hand_plan(one, RING, tiers="pinned"))
    two.load(hand_plan(two, RING, tiers="pageable"))
    assert all(master.locked for master in masters(one)), "one user's page-lock ended by another's move"
    right(one, two)


@pytest.mark.parametrize("tier", ["mapped", "pageable"])
def test_two_users_of_other_tiers_read_right_while_the_other_moves(npu, stage, tier):
    npu.configure(bandwidth=30e6)  # copies are really late
    one, two = stage.user("pinned"), stage.user("pinned")
    for turn in range(3):
        right(one)
        two.load(hand_plan(two, RING, tiers=tier if turn % 2 else "pinned"))
        right(two, one)


# ---------------------------------------------------------------------- who does not share


def test_other_types_places_and_contents_are_not_shared(stage, tmp_path):
    one = stage.user()
    converted = stage.user(dtype=torch.float64)
    assert len(masters(one, converted)) == 2 * len(one.layers), "of another type"
    halves = [stage.user(dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    assert len(masters(*halves)) == 2 * len(one.layers), "of another type of the same size"
    right(*halves)
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(stage.path.read_bytes())
    other = stage.user(path=copied)
    assert len(masters(one, other)) == 2 * len(one.layers), "of another file"
    status = stage.path.stat()
    os.utime(stage.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000))
    changed = stage.user()
    assert changed.file.bytes_read and len(masters(one, changed)) == 2 * len(one.layers), "of a file changed since"
    right(one, converted, other, changed)


def test_a_changed_file_is_refused_although_another_has_its_old_bytes(stage):
    one, late = stage.user(), stage.user("mapped")
    stage.path.write_bytes(stage.path.read_bytes())
    right(one)
    with pytest.raises(FileReadError, match="since it was loaded"):
        late.load(hand_plan(late, RING, tiers="pageable"))
    with pytest.raises(FileReadError, match="since it was loaded"):
        stage.users[1].load(hand_plan(late, RING, tiers="mapped"))
        right(late)


# ---------------------------------------------------------------------- writes stay private


def test_a_written_master_is_the_writers_own(npu, stage):
    one, two = stage.user(), stage.user()
    value = torch.full((DIM, DIM), 0.125)
    one.write_master(one.root.blocks[1].weight, value)
    one.twin.blocks[1].weight.copy_(value)
    right(one, two)
    assert len(masters(one, two)) == len(one.layers) + 1 and one.layers[1].host.pinned
    three = stage.user()
    right(three)


@pytest.mark.parametrize("tier", ["pinned", "mapped"])
def test_what_others_do_to_an_unloaded_module_stays_in_it(stage, tier):
    one, two = stage.user(tier), stage.user("pinned")
    one.unload()
    with torch.no_grad():
        one.root.blocks[0].weight.data.fill_(3.0)
        one.root.blocks[1].weight = torch.nn.Parameter(torch.full((DIM, DIM), 0.5), requires_grad=False)
        one.twin.blocks[1].weight.copy_(one.root.blocks[1].weight)
    right(two)
    three = stage.user()
    right(three)
    one.root.blocks[0].weight.data.copy_(one.twin.blocks[0].weight)
    one.load(hand_plan(one, RING, tiers=tier))
    right(one, two, three)


@pytest.mark.parametrize("tier", ["pinned", "mapped"])
@pytest.mark.parametrize("when", ["loaded", "unloaded"])
def test_another_value_in_the_same_parameter_is_taken_over_also_from_a_file(stage, tier, when):
    one, two = stage.user(tier), stage.user("pinned")
    right(one)
    if when == "unloaded":
        one.unload()
    one.root.blocks[2].weight.data = torch.full((DIM, DIM), -0.5)
    one.twin.blocks[2].weight.fill_(-0.5)
    one.unload()
    one.load(hand_plan(one, RING, tiers=tier))
    right(one, two)


def test_detached_it_is_the_files_again_and_no_memory_of_others(stage):
    one, two = stage.user(), stage.user()
    one.detach()
    for block in one.root.blocks:
        block.weight.data.zero_()
    right(two)
    assert not any(master.is_shared() for master in masters(two))


def test_detached_from_a_file_that_is_gone_it_keeps_its_values(stage):
    one, two = stage.user(), stage.user()
    stage.path.unlink()
    one.detach()
    for name, parameter in one.root.blocks.named_parameters():
        assert torch.equal(parameter, one.twin.blocks.get_parameter(name).cpu())
        parameter.data.zero_()
    right(two)


def test_patched_versions_never_leak_into_the_other(stage):
    one, two = stage.user(), stage.user()
    weight = one.root.blocks[1].weight

    def compute():
        return one.root.blocks[1].weight.detach() * 2

    one.set_changes({"blocks.1.weight": Change(2, compute)})
    one.twin.blocks[1].weight.mul_(2)
    for _ in range(3):
        right(one, two)
    assert one.versions.held_bytes and torch.equal(twin_of(weight), two.root.blocks[1].weight)
    two.set_changes({})
    one.set_changes({})
    one.twin.blocks[1].weight.div_(2)
    right(one, two)


def test_on_the_cpu_what_is_used_in_place_is_shared_and_written_apart(tmp_path):
    path = saved(Net(), tmp_path / "model.safetensors")
    queue = DeviceQueue(ThreadedCpuPort())
    users = []
    for _ in range(2):
        model = Net()
        weights_from_file(model, path)
        users.append(OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1)))
        users[-1].load(hand_plan(users[-1], 0, residents=range(BLOCKS), tiers="pageable"))
    one, two = users
    x = torch.ones(2, DIM)
    with torch.no_grad():
        expected = two.root(x)
        assert len(masters(one, two)) == BLOCKS and torch.equal(one.root(x), expected)
        one.write_master(one.root.blocks[0].weight, torch.zeros(DIM, DIM))
        assert one.layers[0].is_in_place and not torch.equal(one.root(x), expected)
        assert torch.equal(two.root(x), expected)
    one.detach()
    two.detach()
    queue.close()


def test_loaded_again_on_the_cpu_what_is_used_in_place_has_its_own_type(tmp_path):
    """The file's type is shown while it is not loaded, and the one that the model computes in while it is."""
    model = Net()
    for block in model.blocks:
        block.weight.data = block.weight.data.double()
    weights_from_file(model, saved(Net(), tmp_path / "model.safetensors"))
    queue = DeviceQueue(ThreadedCpuPort())
    one = OffloadController(model, queue, discovery=discover(model, min_layer_bytes=1))
    for _ in range(2):
        one.load(hand_plan(one, 0, residents=range(BLOCKS), tiers="pageable"))
        assert {block.weight.dtype for block in model.blocks} == {torch.float64}
        one.unload()
        assert {block.weight.dtype for block in model.blocks} == {torch.float32}
    one.detach()
    queue.close()


# ---------------------------------------------------------------------- threads, failures


def layers_of(path, port, count):
    found = []
    for _ in range(count):
        model = Net(1)
        weights_from_file(model, path)
        found.append((model, HostLayer([model.blocks[0].weight], port, pinned=False)))
    return found


def test_many_threads_ask_for_the_same_and_one_reads(tmp_path, monkeypatch):
    path = saved(Net(1), tmp_path / "one.safetensors")
    read, real = [], WeightFile.read_into
    monkeypatch.setattr(
        WeightFile, "read_into", lambda self, address, n, offset: (read.append(n), real(self, address, n, offset))
    )
    for _ in range(20):
        read.clear()
        found = layers_of(path, StagedPort(ThreadedCpuPort()), 6)
        start = threading.Barrier(6)

        def take(host, start=start):
            start.wait()
            host.move_to("pageable")

        threads = [threading.Thread(target=take, args=(host,)) for _, host in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        buffers = {host.buffer.data_ptr() for _, host in found}
        assert len(buffers) == 1 and sum(read) == LAYER_BYTES


def test_a_read_that_fails_leaves_nothing_for_the_next(tmp_path, monkeypatch):
    path = saved(Net(1), tmp_path / "one.safetensors")
    (_, one), (model, two) = layers_of(path, StagedPort(ThreadedCpuPort()), 2)
    real = WeightFile._read

    def fail(self, view, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(WeightFile, "_read", fail)
    with pytest.raises(FileReadError):
        one.move_to("pageable")
    assert one.tier == "mapped" and two.master is None
    monkeypatch.setattr(WeightFile, "_read", real)
    two.move_to("pageable")
    assert torch.equal(model.blocks[0].weight, Net(1).blocks[0].weight)


# ---------------------------------------------------------------------- that the tests above can fail


def test_sharing_what_differs_in_anything_but_length_is_found(stage, monkeypatch):
    monkeypatch.setattr(host_layer, "_content_key", lambda slices, layout: layout.nbytes)
    one = stage.user()
    other = Net()
    for block in other.blocks:
        block.weight.data.neg_()
    two = stage.user(path=saved(other, stage.path.with_name("other.safetensors")))
    with pytest.raises(AssertionError, match="another output"):
        right(one, two)


def test_a_module_left_looking_into_a_shared_buffer_is_found(stage, monkeypatch):
    monkeypatch.setattr(HostLayer, "show_file", lambda self: None)
    one, two = stage.user(), stage.user()
    one.unload()
    one.root.blocks[0].weight.data.fill_(3.0)
    with pytest.raises(AssertionError, match="another output"):
        right(two)
