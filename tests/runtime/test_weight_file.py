"""Reads from weight files: the right bytes or an error that names file and offset, whatever happens to the file."""

from __future__ import annotations

import os
import threading

import pytest
import safetensors.torch
import torch
from torch import nn

from offload_core.errors import OffloadError
from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.files.weight_file import FileReadError, WeightFile, slice_of
from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.tensors.host_source import FileSource, MemorySource
from offload_core.runtime.tensors.layout import Flattened
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from offload_core.trace.events import Trace
from tests.runtime.world import hand_plan


class Net(nn.Module):
    """Blocks of weights that differ in every byte."""

    def __init__(self, blocks=4, size=96):
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.blocks = nn.ModuleList(nn.Linear(size, size) for _ in range(blocks))
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=random))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.fixture
def net(tmp_path):
    """A module whose weights lie in `tmp_path / "net.safetensors"`, and a plain twin."""
    twin, model = Net(), Net()
    safetensors.torch.save_file(twin.state_dict(), tmp_path / "net.safetensors")
    for parameter in model.parameters():
        parameter.zero_()
    weights_from_file(model, tmp_path / "net.safetensors")
    return model, twin, tmp_path / "net.safetensors"


def streamed(model, port, ring_bytes=1 << 17):
    controller = OffloadController(model, DeviceQueue(port), discovery=discover(model, min_layer_bytes=1))
    controller.load(hand_plan(controller, ring_bytes, tiers="mapped"))
    return controller


def run(model):
    with torch.no_grad():
        return model(torch.ones(3, 96))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [512, 4096, 1 << 20])
def test_any_range_is_what_the_file_has_converted_as_a_loader_would(tmp_path, stored, chunk):
    content = {f"blocks.{n}.{kind}": t.to(stored) for n in range(4) for kind, t in (
        ("weight", torch.randn(96, 96)), ("bias", torch.randn(96)))}  # fmt: skip
    safetensors.torch.save_file(content, tmp_path / "x.safetensors")
    model = Net()
    weights_from_file(model, tmp_path / "x.safetensors")
    flat = Flattened(list(model.parameters()))
    source = FileSource(flat.layout.slots, [slice_of(p) for p in model.parameters()], flat.layout.nbytes)
    buffer = torch.zeros(source.nbytes, dtype=torch.uint8)
    for start in range(0, source.nbytes, chunk):
        source.read(buffer[start : start + chunk], start)
    for (name, _), views in zip(model.named_parameters(), flat.views(buffer)):
        assert torch.equal(views[0], content[name].float())


def test_streamed_from_the_file_with_threads_and_back(net):
    model, twin, path = net
    controller = streamed(model, StagedPort(ThreadedCpuPort(), slot_bytes=4096))
    for _ in range(3):
        assert torch.equal(run(model), run(twin))
    controller.load(hand_plan(controller, 1 << 17, tiers="pinned"))
    assert all(layer.host.tier == "pageable" for layer in controller.layers), "nothing can be pinned here"
    assert torch.equal(run(model), run(twin))
    controller.load(hand_plan(controller, 1 << 17, tiers="mapped"))
    assert all(layer.host.tier == "mapped" for layer in controller.layers)
    assert torch.equal(run(model), run(twin))
    with torch.no_grad():
        twin.blocks[1].weight.fill_(0.25)
    controller.write_master(model.blocks[1].weight, torch.full((96, 96), 0.25))
    assert [layer.host.in_file for layer in controller.layers] == [True, False, True, True]
    assert torch.equal(run(model), run(twin)), "what was written counts, and no longer the file"
    controller.detach()
    assert torch.equal(run(model), run(twin))
    controller.queue.close()


def overwrite(path):
    """In one step: look-ahead may be reading the file at this moment."""
    with path.open("r+b") as file:
        file.write(b"x")


def replace(path):
    other = path.with_suffix(".other")
    other.write_bytes(b"other")
    other.replace(path)


CHANGES = {
    "changed": (overwrite, "its content was changed"),
    "truncated": (lambda path: os.truncate(path, 9000), "truncated from"),
    "grown": (lambda path: path.open("ab").write(b"more"), "grown from"),
    "deleted": (lambda path: path.unlink(), "was deleted"),
    "replaced": (replace, "another file in its place"),
}


@pytest.mark.parametrize("make_port", [ThreadedCpuPort, lambda: StagedPort(ThreadedCpuPort(), slot_bytes=4096)],
                         ids=["read into the ring", "staged"])  # fmt: skip
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_no_longer_what_was_loaded(net, change, make_port):
    model, twin, path = net
    kept = path.read_bytes()
    status = path.stat()
    controller = streamed(model, make_port())
    assert torch.equal(run(model), run(twin))
    what, words = CHANGES[change]
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    what(path)
    for _ in range(2):  # every attempt fails
        with pytest.raises(FileReadError, match=words) as error:
            for _ in range(2):  # what was fetched before the change is still good
                run(model)
        assert str(path) in str(error.value) and "at byte" in str(error.value)
    if change in ("changed", "truncated", "grown"):
        path.write_bytes(kept)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert torch.equal(run(model), run(twin)), "put back as it was, it runs again"
    controller.unload()
    controller.queue.close()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("good_passes", [0, 1, 3, 8])
@pytest.mark.parametrize("staged", [True, False])
def test_a_read_error_names_the_place_and_the_next_pass_asks_again(net, monkeypatch, staged, good_passes, watched):
    """In passes that are measured, which are the first two, every eighth and all that are watched, and in others."""
    model, twin, path = net
    controller = streamed(model, StagedPort(ThreadedCpuPort(), slot_bytes=4096) if staged else ThreadedCpuPort())
    trace = Trace()
    trace.watch(watched)
    controller.record(trace, "net-1")
    for _ in range(good_passes):
        assert torch.equal(run(model), run(twin))
    controller.prefetcher.look_ahead.forget()
    controller.prefetcher.drain()
    for layer in controller.layers:
        layer.invalidate()  # what look-ahead has read is read again
    real, bad = WeightFile._read, [True]

    def read(self, view, offset):
        if bad[0] and offset > 80_000:
            raise OSError(5, "Input/output error")
        return real(self, view, offset)

    monkeypatch.setattr(WeightFile, "_read", read)
    with pytest.raises(FileReadError, match="Input/output error"):
        run(model)
    assert not any(layer.in_use or layer.pending for layer in controller.layers)
    bad[0] = False
    assert torch.equal(run(model), run(twin))
    controller.detach()


def test_reads_that_come_in_pieces_are_put_together(net, monkeypatch):
    model, twin, path = net
    real = WeightFile._read
    monkeypatch.setattr(WeightFile, "_read", lambda self, view, offset: real(self, view[:1000], offset))
    controller = streamed(model, ThreadedCpuPort())
    assert torch.equal(run(model), run(twin))
    controller.detach()


def test_a_slow_file_keeps_a_pass_waiting_and_a_pass_that_is_given_up_does_not_wait_for_the_rest(net, monkeypatch):
    model, twin, path = net
    port = StagedPort(ThreadedCpuPort(), slot_bytes=4096)
    controller = streamed(model, port)
    gate, reads, real = threading.Event(), [], WeightFile._read

    def read(self, view, offset):
        reads.append(offset)
        gate.wait(20)
        return real(self, view, offset)

    monkeypatch.setattr(WeightFile, "_read", read)
    polls = []

    def interrupt():
        polls.append(1)
        gate.set()  # the stalled reads come to an end; those that had not begun never begin
        raise KeyboardInterrupt

    port.while_waiting = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(model)
    total = sum(layer.nbytes for layer in controller.layers)
    assert polls and len(reads) * 4096 < total / 2, "reads after interrupt"
    port.while_waiting = None
    assert torch.equal(run(model), run(twin))
    controller.detach()
    controller.queue.close()


def test_a_wait_for_a_read_on_the_cpu_may_be_given_up(net, monkeypatch):
    model, twin, path = net
    port = ThreadedCpuPort()
    controller = streamed(model, port)
    gate, real = threading.Event(), WeightFile._read
    monkeypatch.setattr(WeightFile, "_read", lambda self, view, offset: gate.wait(20) and real(self, view, offset))

    def interrupt():
        gate.set()
        raise KeyboardInterrupt

    port.while_waiting = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(model)
    port.while_waiting = None
    assert torch.equal(run(model), run(twin))
    controller.detach()
    controller.queue.close()


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileReadError, match="FileNotFoundError"):
        WeightFile(tmp_path / "nothing.safetensors")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(FileReadError, match="Permission denied"):
        WeightFile(tmp_path / "x.safetensors")


def test_page_locking_that_fails_leaves_a_layer_pageable(net, monkeypatch):
    model, twin, path = net
    calls = []
    monkeypatch.setattr(ThreadedCpuPort, "host_pin", lambda self, buffer: calls.append(buffer.numel()) or False)
    host = HostLayer(list(model.blocks[0].parameters()), StagedPort(ThreadedCpuPort()), pinned=True)
    host.move_to("pinned")
    assert calls and host.tier == "pageable" and isinstance(host.source, MemorySource)
    assert torch.equal(model.blocks[0].weight, twin.blocks[0].weight)


def test_names_and_shapes_that_the_file_does_not_have(net):
    _, _, path = net
    with pytest.raises(OffloadError, match=r"found no tensor of that name"):
        weights_from_file(Net(5), path)
    with pytest.raises(OffloadError, match=r"in the file and .* in the model"):
        weights_from_file(Net(size=64), path)


def test_many_threads_read_one_file(net):
    _, twin, path = net
    file = WeightFile(path)
    content = path.read_bytes()
    wrong = []

    def reader(seed):
        for number in range(50):
            offset = (seed * 7919 + number * 104_729) % (len(content) - 5000)
            buffer = torch.empty(5000, dtype=torch.uint8)
            file.read_into(buffer.data_ptr(), 5000, offset)
            if bytes(buffer.tolist()) != content[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and file.bytes_read == 4 * 50 * 5000
