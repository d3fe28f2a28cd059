"""Weights keep the memory format that the model was built with, whatever order the file has them in."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

from offload_core.runtime import DeviceQueue, OffloadController, discover
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.device.staging import StagedPort
from offload_core.runtime.files.weight_file import slice_of
from offload_core.runtime.tensors.layout import Flattened
from offload_core.runtime.tensors.parts import bring_into_memory
from offload_core.runtime.tensors.safetensors_map import weights_from_file, with_strides
from tests.runtime.world import hand_plan


class Convolutions(nn.Module):
    """Blocks with a kernel of 3x3, whose elements channels_last puts in another order, and one of 1x1."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)) for _ in range(4))
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=random))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: parameter.stride() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_in_channels_last_stays_so_from_a_file(tmp_path, stored):
    twin = Convolutions()
    file = tmp_path / "net.safetensors"
    safetensors.torch.save_file({name: tensor.to(stored) for name, tensor in twin.state_dict().items()}, file)
    twin.to(stored).float()
    twin.to(memory_format=torch.channels_last)
    model = copy.deepcopy(twin)
    for parameter in model.parameters():
        parameter.zero_()
    weights_from_file(model, file)
    assert strides(model) == strides(twin)
    in_file = {name for name, parameter in model.named_parameters() if slice_of(parameter) is not None}
    assert {f"blocks.{n}.1.weight" for n in range(4)} <= in_file, "1x1: the file has its elements in the same order"
    assert not in_file & {f"blocks.{n}.0.weight" for n in range(4)}
    for parameter, expected in zip(Flattened(list(model.parameters())).layout.slots, twin.parameters()):
        assert parameter.stride == expected.stride(), "also on the device"

    x = torch.randn(1, 8, 6, 6)
    reference = twin(x)
    controller = OffloadController(
        model, DeviceQueue(StagedPort(ThreadedCpuPort())), discovery=discover(model, min_layer_bytes=1)
    )
    controller.load(hand_plan(controller, 1 << 14))
    assert torch.equal(model(x), reference)
    controller.detach()

    for parameter, expected in zip(model.parameters(), twin.parameters()):
        bring_into_memory(parameter)
        assert torch.equal(parameter, expected) and parameter.stride() == expected.stride()


def test_other_strides_over_the_same_elements_or_none():
    kernel = torch.arange(8.0).view(2, 4, 1, 1)
    seen = with_strides(kernel, (4, 1, 4, 4))
    assert seen is not None and seen.stride() == (4, 1, 4, 4)
    assert torch.equal(seen, kernel) and seen.data_ptr() == kernel.data_ptr()
    assert with_strides(torch.zeros(2, 4, 3, 3), (36, 1, 12, 4)) is None
    square = torch.zeros(3, 3)
    assert with_strides(square, (3, 1)) is square and with_strides(square, (1, 3)) is None
