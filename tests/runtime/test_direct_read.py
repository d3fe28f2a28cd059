"""Reads around the page cache give the bytes of an ordinary read, or leave them to one."""

from __future__ import annotations

import errno
import os
import random
import threading

import pytest
import safetensors.torch
import torch
from torch import nn

from offload_core.runtime import attach
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.device.device_queue import DeviceQueue
from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.files import direct_read
from offload_core.runtime.files.direct_read import BLOCK_BYTES, LEAST_BYTES, PIECE_BYTES, DirectFile, direct_reads
from offload_core.runtime.files.weight_file import FileReadError, WeightFile
from offload_core.runtime.tensors.safetensors_map import weights_from_file

fcntl = pytest.importorskip("fcntl")
SIZE = 3 * PIECE_BYTES + 5 * BLOCK_BYTES + 77


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "bytes"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


def reads_directly(path) -> bool:
    with direct_reads():
        return DirectFile(path).read(memoryview(bytearray(LEAST_BYTES)), 0) == LEAST_BYTES


@pytest.fixture
def direct(path):
    if not reads_directly(path):
        pytest.skip("the file system of the tests' folder has no direct I/O")


RANGES = [
    *((0, SIZE), (0, LEAST_BYTES), (1, LEAST_BYTES), (BLOCK_BYTES, 2 * PIECE_BYTES), (PIECE_BYTES - 1, LEAST_BYTES)),
    *((PIECE_BYTES - 100, PIECE_BYTES + 200), (SIZE - LEAST_BYTES, LEAST_BYTES), (777, SIZE - 777)),
]


@pytest.mark.parametrize(("start", "nbytes"), RANGES)
def test_any_range_is_what_the_file_has_and_nothing_beside_it(path, direct, start, nbytes):
    given = bytearray(b"\xaa" * (nbytes + 64))
    file = DirectFile(path)
    with direct_reads():
        for _ in range(2):  # the second time with buffers that have been used
            assert file.read(memoryview(given)[32 : 32 + nbytes], start) == nbytes
    assert given[:32] == given[-32:] == b"\xaa" * 32
    assert given[32:-32] == path.read_bytes()[start : start + nbytes]
    file.close()


def test_at_the_end_of_the_file_it_says_how_far_it_came(path, direct):
    given = memoryview(bytearray(2 * PIECE_BYTES))
    with direct_reads():
        assert DirectFile(path).read(given, SIZE - PIECE_BYTES - 5) == PIECE_BYTES + 5
        assert DirectFile(path).read(given, SIZE + PIECE_BYTES) == 0


def test_only_threads_that_say_so_and_only_what_is_large(path, direct):
    file = DirectFile(path)
    given = memoryview(bytearray(LEAST_BYTES))
    assert file.read(given, 0) == 0
    with direct_reads():
        assert file.read(given[:-1], 0) == 0
        assert file.read(given, 0) == LEAST_BYTES
        helpers = [t for t in threading.enumerate() if t.name.startswith("layerwise-offload-direct")]
        assert helpers
    assert not any(thread.is_alive() for thread in helpers), "they end with the block"


def refuse(patch, number):
    """From now on every direct request fails; returns how many were made."""
    made, real = [], os.preadv

    def preadv(descriptor, views, offset):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            return real(descriptor, views, offset)
        made.append(offset)
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "preadv", preadv)
    return made


def test_a_file_system_that_refuses_is_asked_once_and_the_bytes_are_read_all_the_same(path, direct, monkeypatch):
    file = WeightFile(path)
    file.drop_behind = True
    made = refuse(monkeypatch, errno.EINVAL)
    with direct_reads():
        for _ in range(2):
            given = torch.zeros(SIZE, dtype=torch.uint8)
            file.read_into(given.data_ptr(), SIZE, 0)
            assert bytes(given.numpy()) == path.read_bytes()
    assert 0 < len(made) <= direct_read.BOUNCES


def test_a_disk_error_names_the_place(path, direct, monkeypatch):
    file = WeightFile(path)
    file.drop_behind = True
    given = torch.empty(SIZE, dtype=torch.uint8)
    refuse(monkeypatch, errno.EIO)
    with direct_reads(), pytest.raises(FileReadError, match=f"byte 77 of {path}.*put the file back"):
        file.read_into(given.data_ptr(), SIZE - 77, 77)


@pytest.mark.parametrize("change", ["replaced", "truncated"])
def test_a_file_that_is_another_by_now_gives_no_bytes(tmp_path, path, direct, change):
    mine = tmp_path / "mine"
    mine.write_bytes(path.read_bytes())
    file = WeightFile(mine)
    file.drop_behind = True
    if change == "replaced":
        (tmp_path / "other").write_bytes(bytes(SIZE))
        os.replace(tmp_path / "other", mine)
    else:
        os.truncate(mine, PIECE_BYTES)
    given = torch.full((SIZE,), 7, dtype=torch.uint8)
    with direct_reads():
        if change == "replaced":  # the old bytes, and `check`, which every read of weights is followed by, refuses them
            file.read_into(given.data_ptr(), SIZE, 0)
            assert bytes(given.numpy()) == path.read_bytes()
            with pytest.raises(FileReadError, match="another file in its place"):
                file.check()
        else:
            with pytest.raises(FileReadError, match="truncated from"):
                file.read_into(given.data_ptr(), SIZE, 0)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(768, 768) for _ in range(6))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.mark.parametrize("port", [ThreadedCpuPort, lambda: StagedPort(ThreadedCpuPort())], ids=["in place", "staged"])
def test_a_model_larger_than_memory_is_streamed_around_the_page_cache(tmp_path, direct, monkeypatch, port):
    monkeypatch.setattr("offload_core.runtime.engine.tier_moves.available_bytes", lambda: 1)
    twin = Stack().requires_grad_(False)
    safetensors.torch.save_file(twin.state_dict(), tmp_path / "stack.safetensors")
    with torch.device("meta"):
        model = Stack().requires_grad_(False)
    file = weights_from_file(model, tmp_path / "stack.safetensors")
    queue, x = DeviceQueue(port()), torch.ones(2, 768)
    options = {"budget_bytes": 8 << 20, "pinned": False, "min_layer_bytes": 1 << 16}
    with torch.no_grad(), attach(model, device="cpu", queue=queue, **options):
        for _ in range(4):
            assert torch.equal(model(x), twin(x))
        weights = sum(block.weight.numel() * 4 for block in twin.blocks)
        streamed = file._direct is not None and file._direct.bytes_read
        assert streamed >= weights, "at least the first pass"
    queue.close()
    assert not any(thread.name.startswith("layerwise-offload-direct") for thread in threading.enumerate())
