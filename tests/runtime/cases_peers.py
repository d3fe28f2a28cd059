"""Layers of a model on one simulated device lie in the memory of another. Run by test_peers_on_devices.py, in a process
with two devices."""

import pytest
import torch

from offload_core.errors import OffloadError
from offload_core.runtime import attach
from tests.runtime.cases_two_devices import MIB, SLOW_LINK, Blocks, blocks, npu, scaled, strengthened

assert npu  # a fixture of both files

BUDGET = 6 * MIB
PEER = {"peer": "npu:1", "peer_budget_bytes": 64 * MIB}
LAYER_BYTES = 2 * MIB
"""Of a block in whole segments."""


def used(npu) -> list[int]:
    return [device["used"] for device in npu.stats()["devices"]]


@pytest.mark.parametrize("current", [0, 1])
def test_layers_are_copied_from_the_other_device(npu, current):
    inputs, model = torch.randn(2, 600), blocks(0)
    expected = model(inputs)
    npu.set_device(current)
    npu.configure(bandwidth=SLOW_LINK)
    try:
        with attach(model, device="npu:0", budget_bytes=BUDGET, **PEER) as handle:
            assert {handle.plan.layers[index].host_tier for index in handle.plan.streamed} == {"peer"}
            assert used(npu)[1] == handle.plan.peer_bytes == handle.controller.peer_bytes() > 0
            assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)
            from_host = npu.stats()["h2d_bytes"]
            for _ in range(4):
                assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)
            counters = handle.controller.counters
            assert npu.stats()["h2d_bytes"] - from_host == 4 * inputs.nbytes, "weights came from the host"
            assert counters.prefetch_hits > counters.demand_loads
            assert torch.accelerator.current_device_index() == current
    finally:
        npu.set_device(0)
    assert used(npu) == [0, 0]


def test_the_other_devices_compute_is_not_held_up(npu):
    """A copy from there runs on a stream of its own: kernels of that device are ordered with nothing of ours."""
    inputs, model = torch.randn(2, 600), blocks(0)
    with attach(model, device="npu:0", budget_bytes=BUDGET, **PEER):
        model(inputs.to("npu:0"))
        compute = torch.accelerator.current_stream(1)
        before = npu.stats()["stream_syncs"]
        npu.configure(peer_bandwidth=20e6)
        model(inputs.to("npu:0"))
        assert compute.query(), "a copy was queued on the other device's compute stream"
        assert npu.stats()["stream_syncs"] == before
        npu.configure(peer_bandwidth=0)


def test_as_many_layers_as_the_budget_has_room_for(npu):
    inputs, model = torch.randn(2, 600), blocks(0)
    expected = model(inputs)
    with attach(model, device="npu:0", budget_bytes=BUDGET, peer="npu:1", peer_budget_bytes=2 * LAYER_BYTES) as handle:
        assert used(npu)[1] <= 2 * LAYER_BYTES and 0 < handle.plan.peer_bytes <= 2 * LAYER_BYTES
        for _ in range(3):
            assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)


@pytest.mark.parametrize("free_mib", [3, 0])
def test_a_device_that_is_full_takes_what_it_can(npu, free_mib):
    inputs, model = torch.randn(2, 600), blocks(0)
    expected = model(inputs)
    held = torch.empty((256 - free_mib) * MIB, dtype=torch.uint8, device="npu:1")
    with attach(model, device="npu:0", budget_bytes=BUDGET, **PEER) as handle:
        assert (free_mib > 0) == (handle.controller.peer_bytes() > 0)
        assert handle.controller.peer_bytes() <= 2 * MIB < handle.plan.peer_bytes
        for _ in range(3):
            assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)
    del held


def test_a_slower_link_than_the_hosts_is_left_once_it_is_measured(npu):
    inputs, model = torch.randn(2, 600), Blocks(count=12).requires_grad_(False)
    expected = model(inputs)
    npu.configure(bandwidth=SLOW_LINK, peer_bandwidth=SLOW_LINK / 8)
    options = {"budget_bytes": BUDGET, "peer": "npu:1", "peer_budget_bytes": 4 * LAYER_BYTES, "passes": 20}
    try:
        with attach(model, device="npu:0", **options) as handle:
            assert "peer" in {layer.host_tier for layer in handle.plan.layers}
            for _ in range(8):
                assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)
            rates = handle.controller.link_rates()
            assert rates.from_peer < rates.from_host
            assert "peer" not in {layer.host_tier for layer in handle.plan.layers}
            assert used(npu)[1] == 0
    finally:
        npu.configure(bandwidth=0, peer_bandwidth=0)


def test_patched_layers_are_copied_from_their_versions(npu):
    inputs, model = torch.randn(2, 600), blocks(0)
    expected = {strength: strengthened(model, strength)(inputs) for strength in (2.0, 3.0)}
    plain = model(inputs)
    with attach(model, device="npu:0", budget_bytes=BUDGET, **PEER) as handle:
        for strength, reference in expected.items():
            handle.controller.set_changes({f"blocks.{i}.weight": scaled(model.blocks[i], strength) for i in range(6)})
            for _ in range(3):
                assert torch.equal(model(inputs.to("npu:0")).cpu(), reference)
        handle.controller.set_changes({})
        for _ in range(2):
            assert torch.equal(model(inputs.to("npu:0")).cpu(), plain)


def test_memory_there_is_given_back_between_passes(npu):
    inputs, model = torch.randn(2, 600), blocks(0)
    expected = model(inputs)
    with attach(model, device="npu:0", budget_bytes=BUDGET, **PEER) as handle:
        assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)
        handle.controller.give_back_peer()
        assert used(npu)[1] == 0
        assert torch.empty(255 * MIB, dtype=torch.uint8, device="npu:1").numel() == 255 * MIB
        for _ in range(2):
            assert torch.equal(model(inputs.to("npu:0")).cpu(), expected)


@pytest.mark.parametrize("peer", ["npu:0", "cpu", "npu"])
def test_only_another_device_of_the_same_kind_can_be_named(npu, peer):
    with pytest.raises(OffloadError, match="asked for layers in the memory of"):
        attach(blocks(0), device="npu:0", budget_bytes=BUDGET, peer=peer)


def test_a_device_that_cannot_be_reached_is_refused(npu):
    npu.configure(peers=False)
    try:
        model = blocks(0)
        with pytest.raises(OffloadError, match="can_device_access_peer"):
            attach(model, device="npu:0", budget_bytes=BUDGET, **PEER)
        assert torch.equal(model(torch.ones(1, 600)), blocks(0)(torch.ones(1, 600)))
    finally:
        npu.configure(peers=True)
    assert used(npu) == [0, 0]
