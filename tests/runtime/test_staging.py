"""Layers that are read before they are copied: every life of the zoo again, from pageable memory and from files.

All in one thread here, so that the vector clocks see every read of a file into a slot and every copy out of it. The
threads are for `test_staging_threads`.
"""

from __future__ import annotations

import pytest
import torch

from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.files.weight_file import FileSlice, WeightFile
from tests.runtime.file_models import visible_reads
from tests.runtime.test_seeded_faults import caught_by
from tests.runtime.world import World
from tests.runtime.zoo import ZOO, in_order, residents_between, ring_of_one_layer, two_components
from tests.support.race_port import RacePort


@pytest.mark.parametrize("late", [False, True], ids=["copies at once", "copies at the last moment"])
@pytest.mark.parametrize("scenario", ZOO, ids=lambda scenario: scenario.__name__)
def test_from_pageable_memory(scenario, late):
    with torch.no_grad(), World(late, "pageable") as world:
        scenario(world)


@pytest.mark.parametrize("scenario", ZOO, ids=lambda scenario: scenario.__name__)
def test_from_a_file(scenario, tmp_path, monkeypatch):
    visible_reads(monkeypatch)
    with torch.no_grad(), World(True, "mapped", tmp_path) as world:
        scenario(world)


def test_what_was_read_is_what_was_streamed(tmp_path):
    with torch.no_grad(), World(False, "mapped", tmp_path) as world:
        one = world.add((4, 4, 4, 4, 4))
        one.load(8192)
        assert all(layer.host.tier == "mapped" and layer.host.buffer is None for layer in one.controller.layers)
        assert one.controller.pinned_bytes() == 0
        file = one.controller.layers[0].host.source.files[0]
        file.bytes_read = 0  # without what lies outside layers
        for _ in range(3):
            one.run()
        counters = one.controller.counters
        padding = counters.copies * 512
        assert counters.bytes_copied - padding <= file.bytes_read <= counters.bytes_copied


# ---------------------------------------------------------------------- faults


def a_slot_is_filled_before_it_was_emptied(patch):
    patch.setattr(RacePort, "host_waits", lambda *args: None)


def a_slot_is_not_marked_emptied(patch):
    real = StagedPort._send

    def send(self, chunk):
        record, self.inner.record_copy = self.inner.record_copy, lambda event: None
        try:
            real(self, chunk)
        finally:
            self.inner.record_copy = record

    patch.setattr(StagedPort, "_send", send)


def a_short_read_is_taken_for_a_whole_one(patch):
    def read(self, view, offset):
        import os

        os.preadv(self._file.fileno(), [view[: len(view) // 2]], offset)
        return len(view)

    patch.setattr(WeightFile, "_read", read)


def a_tensor_is_read_from_the_wrong_offset(patch):
    def read(self, destination, start, dtype=None):
        self.file.read_into(destination.data_ptr(), destination.numel(), max(0, self.offset + start - 256))

    patch.setattr(FileSlice, "read", read)


def a_chunk_goes_to_the_start_of_the_layer(patch):
    real = StagedPort._send

    def send(self, chunk):
        chunk.end, chunk.start = chunk.end - chunk.start, 0
        real(self, chunk)

    patch.setattr(StagedPort, "_send", send)


def a_failed_read_is_not_told(patch):
    real = WeightFile._read

    def read(self, view, offset):
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads == 5:
            raise OSError(5, "Input/output error")
        return real(self, view, offset)

    patch.setattr(WeightFile, "_read", read)
    patch.setattr(StagedPort, "_record", lambda self, event: self.inner.record_copy(event.inner))


FAULTS = {
    a_slot_is_filled_before_it_was_emptied: "race",
    a_slot_is_not_marked_emptied: "race",
    a_short_read_is_taken_for_a_whole_one: "value",
    a_tensor_is_read_from_the_wrong_offset: "value",
    a_chunk_goes_to_the_start_of_the_layer: "value",
    a_failed_read_is_not_told: "value",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_seeded_fault_is_caught(fault, tmp_path, monkeypatch):
    visible_reads(monkeypatch)
    fault(monkeypatch)
    found = set()
    for number, scenario in enumerate((in_order, residents_between, ring_of_one_layer, two_components)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found |= caught_by(scenario, World(True, "mapped", folder))
    assert FAULTS[fault] in found, f"caught only as {found}"
