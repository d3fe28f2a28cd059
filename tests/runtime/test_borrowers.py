"""A method that uses a layer's weights outside the layer's call, as a model that generates text uses its projection."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from offload_core.planning.planner import PlanRequest, make_plan, smallest_budget
from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.device.ports import port_for
from tests.support import simdev

WIDTH = 256
BLOCKS = 4
TOKENS = 8
LEARNT_AFTER = 3
"""Tokens after which the projection, called after a pass and before the next, is looked ahead for."""

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator (no C++ compiler?)")


class Talker(nn.Module):
    """Blocks, and a projection that `logits` reads the weight of."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.heads = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False)])

    def forward(self, x):
        for block in self.blocks:
            x = torch.relu(block(x))
        return x

    def logits(self, x):
        return nn.functional.linear(x, self.heads[0].weight.to(x))


class CallingTalker(Talker):
    """As a talker, but `logits` calls the projection: a visit inside the visit."""

    def logits(self, x):
        return self.heads[0](x)


def spoken(model: nn.Module, tokens: int = TOKENS) -> list[torch.Tensor]:
    """What the model makes of each token, on the host."""
    answers = []
    x = torch.linspace(-1, 1, WIDTH, device="npu").reshape(1, WIDTH)
    with torch.no_grad():
        for _ in range(tokens):
            x = torch.tanh(model.logits(model(x)))
            answers.append(x.cpu())
    return answers


@pytest.mark.parametrize("kind", [Talker, CallingTalker])
def test_the_layer_goes_through_the_ring_for_it(npu, kind):
    torch.manual_seed(0)
    model = kind().requires_grad_(False)
    expected = spoken(copy.deepcopy(model).to("npu"))
    queue = DeviceQueue(port_for("npu"))
    found = discover(model, min_layer_bytes=1)
    borrowers = [(model, "logits", model.heads[0]), (model, "forward", nn.Linear(1, 1))]
    controller = OffloadController(model, queue, discovery=found, borrowers=borrowers)
    inventory = controller.inventory
    assert [layer.name for layer in inventory.layers][-1] == "heads.0"
    controller.load(make_plan(PlanRequest(inventory, "npu:0", smallest_budget(inventory))))
    assert not controller.layers[-1].keep_resident
    counters = controller.counters
    assert all(map(torch.equal, spoken(model, LEARNT_AFTER), expected))
    waited = counters.demand_loads
    assert all(map(torch.equal, spoken(model), expected))
    assert controller.outside_touches == {}
    assert counters.demand_loads == waited, "the projection is looked ahead for"
    assert counters.visits == (TOKENS + LEARNT_AFTER) * (BLOCKS + 1)
    assert counters.unplaced_visits == 0
    controller.unload()
    assert "logits" not in vars(model)
    controller.detach()
    queue.close()
