"""Staging with its threads, on the simulated accelerator: what they read arrives, and they keep nothing alive."""

from __future__ import annotations

import gc

import pytest
import torch

from offload_core.runtime.device.accelerator_port import AcceleratorPort
from offload_core.runtime.device.staging import StagedPort
from tests.support import simdev

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")


class Pattern:
    """A source of bytes that count up."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def read(self, destination: torch.Tensor, start: int) -> None:
        destination.copy_(((torch.arange(destination.numel()) + start) % 251).to(torch.uint8))


@pytest.fixture
def port():
    simdev.load().configure(mb=256, bandwidth=0, poison=True, race=True)
    staged = StagedPort(AcceleratorPort(torch.device("npu", 0)), slot_bytes=65536)
    yield staged
    staged.close()


def test_what_was_read_arrives_and_no_thread_keeps_the_memory_it_went_to(port):
    """A thread that waits for work must not hold on to its last piece: the layer's memory was given back."""
    gc.collect()  # what earlier tests left in cycles
    before = simdev.load().stats()["used"]
    for nbytes in (200_000, 65_536, 1_000):
        destination, source = port.empty(nbytes), Pattern(nbytes)
        port.copy_from(destination, source)
        port.drain()
        expected = torch.empty(nbytes, dtype=torch.uint8)
        source.read(expected, 0)
        assert torch.equal(destination.cpu(), expected)
        del destination
    gc.collect()
    assert simdev.load().stats()["used"] == before


def test_after_an_interrupt_no_two_pieces_go_through_one_slot_at_once(port, monkeypatch):
    hand_over, numbers = StagedPort._hand_over, []

    def interrupted(self, work):
        hand_over(self, work)
        numbers.append(work.number)
        raise KeyboardInterrupt

    monkeypatch.setattr(StagedPort, "_hand_over", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            port.copy_from(port.empty(1000), Pattern(1000))
    assert len(set(numbers)) == 2
