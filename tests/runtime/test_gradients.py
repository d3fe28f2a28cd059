"""Training through a streamed model: gradients are the plain module's, nothing races, and inference is as before."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.runtime.world import Component, World
from tests.support.tiny_torch_models import DIM, Model


def gradient(model: Model, again: bool) -> torch.Tensor:
    """Of the input. `again`: the whole forward runs a second time, in the backward."""
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = checkpoint(model, x, use_reentrant=False) if again else model(x)
    y.square().sum().backward()
    assert x.grad is not None
    return x.grad


def infer(one: Component) -> None:
    with torch.no_grad():
        one.run()


@pytest.mark.parametrize("again", [False, True], ids=["once", "with a checkpoint"])
@pytest.mark.parametrize("late", [False, True], ids=["copies at once", "copies at the last moment"])
def test_the_backward_reads_the_weights_of_the_forward(late, again):
    with World(late) as world:
        one = world.add((4, 4, 4, 4, 4, 4))
        one.controller.no_ring_while_gradients_are_recorded()
        for model in (one.model, one.twin):
            model.requires_grad_(False)
        one.load(8192, residents=(4,))
        infer(one)  # the head of the next pass is in the ring
        infer(one)
        for _ in range(2):
            assert torch.equal(gradient(one.model, again), gradient(one.twin, again))
        held = world.port.live_bytes
        before = one.controller.counters.prefetch_hits
        infer(one)
        infer(one)
        assert one.controller.counters.prefetch_hits > before, "the ring is used again"
        assert world.port.live_bytes == held <= world.allowed_bytes(), "what autograd held is gone"
