"""Masters that several threads fill from their file: the same bytes, and the buffer is left alone afterwards."""

from __future__ import annotations

import os
import threading
import time

import pytest
import safetensors.torch
import torch

from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.files.weight_file import FileReadError
from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.tensors import host_source
from offload_core.runtime.tensors.host_source import loaders, read_whole
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.runtime.world import hand_plan

PIECE = 4096


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(host_source, "PIECE_BYTES", PIECE)


class Noted:
    """A source that says who read what, and fails where it is told to."""

    def __init__(self, nbytes, bad=()):
        self.nbytes, self.bad, self.threads, self.reading = nbytes, bad, set(), 0

    def read(self, destination, start):
        self.reading += 1
        self.threads.add(threading.current_thread().name)
        try:
            time.sleep(0.005 if start else 0.0)
            if start in self.bad:
                raise FileReadError(f"no bytes at {start}")
            destination.fill_(start // PIECE + 1)
        finally:
            self.reading -= 1


def test_every_byte_is_read_once_and_by_threads_side_by_side():
    source, filled = Noted(10 * PIECE + 100), torch.zeros(10 * PIECE + 100, dtype=torch.uint8)
    with loaders() as threads:
        read_whole(source, filled, threads)
    assert torch.equal(filled, (torch.arange(filled.numel()) // PIECE + 1).to(torch.uint8))
    assert len(source.threads) > 1 and threading.current_thread().name not in source.threads


def test_the_first_failing_piece_is_raised_and_nothing_is_written_after_it():
    source = Noted(20 * PIECE, bad=(0, 7 * PIECE))
    with loaders() as threads:
        with pytest.raises(FileReadError, match="no bytes at 0$"):
            read_whole(source, torch.zeros(source.nbytes, dtype=torch.uint8), threads)
        assert source.reading == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_a_file_is_loaded_to_the_bit_also_into_another_type(tmp_path, dtype):
    """Pieces do not end where tensors do."""
    torch.manual_seed(1)
    twin = torch.nn.Sequential(*(torch.nn.Linear(61, 67) for _ in range(2)))
    safetensors.torch.save_file(twin.state_dict(), tmp_path / "net.safetensors")
    model = torch.nn.Sequential(*(torch.nn.Linear(61, 67) for _ in range(2)))
    for parameter in [*twin.parameters(), *model.parameters()]:
        parameter.requires_grad_(False)
    model.to(dtype)
    weights_from_file(model, tmp_path / "net.safetensors")
    layers = [HostLayer(list(block.parameters()), ThreadedCpuPort(), False) for block in model]
    with loaders() as threads:
        for layer in layers:
            layer.move_to("pageable", threads)
    assert layers[0].buffer is not None and layers[0].buffer.numel() > 2 * PIECE
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.dtype == dtype and torch.equal(mine, theirs.to(dtype))


def test_a_plan_is_loaded_by_threads_and_a_truncated_file_leaves_no_master_behind(tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4))).requires_grad_(False)
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    weights_from_file(model, path)
    controller = OffloadController(model, DeviceQueue(ThreadedCpuPort()), discovery=discover(model, min_layer_bytes=1))
    before = set(threading.enumerate())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FileReadError, match="truncated"):
        controller.load(hand_plan(controller, 1 << 16, tiers="pageable"))
    assert all(layer.host.buffer is None for layer in controller.layers)
    assert {thread for thread in threading.enumerate() if "offload-load" in thread.name} <= before
