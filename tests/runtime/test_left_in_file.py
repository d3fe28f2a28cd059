"""What is left in a weight file stays there: no page of its mapping is touched, quantised weights included."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from offload_core.runtime import Change, DeviceQueue, OffloadController, attach, discover
from offload_core.runtime.device.cpu_port import ThreadedCpuPort
from offload_core.runtime.files.weight_file import FileReadError, FileSlice, WeightFile, lies_in_file, slice_of
from offload_core.runtime.host.host_layer import MAX_KEPT_SHARE, HostLayer
from offload_core.runtime.layers.discovery import keep_in_memory
from offload_core.runtime.tensors.safetensors_map import tensor_places, weights_from_file
from tests.runtime.world import hand_plan
from tests.runtime.wrapped_types import QuantisedLinear, Scaled

WIDTH = 1024
LAYER_BYTES = 4 * WIDTH * WIDTH


class Wide(nn.Module):
    """A head outside the blocks, and blocks of 4 MB."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def mapped_bytes(path: Path) -> int:
    """How much of the mappings of a file is in this process's memory."""
    found, ours = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.partition(" ")[0] and ":" not in line.partition(" ")[0]:
                ours = line.rstrip().endswith(str(path))
            elif ours and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


@pytest.fixture
def wide(tmp_path):
    twin = Wide().requires_grad_(False)
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file(twin.state_dict(), path)
    with torch.device("meta"):
        model = Wide()
    weights_from_file(model, path)
    return model, twin, path


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="tells pages by Linux's /proc")
def test_streaming_from_a_file_never_looks_at_the_mapping(wide):
    model, twin, path = wide
    x = torch.ones(2, WIDTH)
    with torch.no_grad(), attach(model, device="cpu", budget_bytes=4 * LAYER_BYTES) as attached:
        assert any(layer.host.tier == "mapped" for layer in attached.controller.layers)
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
        touched = mapped_bytes(path)
        assert touched < LAYER_BYTES / 4, f"{touched} bytes of the mapping are in memory"
    float(model.blocks[0][0].weight.sum())
    assert mapped_bytes(path) >= LAYER_BYTES, "the measure sees what is looked at"


def test_what_is_taken_out_of_a_truncated_file_is_an_error_and_no_crash(wide):
    model, _, path = wide
    found = discover(model)
    os.truncate(path, 4096)
    with pytest.raises(FileReadError, match="truncated from"):
        keep_in_memory(model, found)


class Quantised(nn.Module):
    """Blocks of a quantised weight whose numbers lie in a file and whose scale lies in none."""

    def __init__(self, path: Path, kept: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(3)
        weights = [Scaled.of(torch.randn(64, 64, generator=random)) for _ in range(5)]
        safetensors.torch.save_file({f"w{n}": weight._stored for n, weight in enumerate(weights)}, path)
        file, places = WeightFile(path), tensor_places(path)
        with safetensors.safe_open(path, framework="pt") as tensors:
            for number, weight in enumerate(weights):
                mapped = tensors.get_tensor(f"w{number}")
                weight._stored = mapped
                lies_in_file(mapped, FileSlice(file, *places[f"w{number}"], mapped.dtype, mapped))
                if kept:
                    weight._scale = torch.full((kept, 1), 0.25)
        self.blocks = nn.ModuleList(nn.Sequential(QuantisedLinear(weight)) for weight in weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def test_quantised_weights_are_read_from_the_file_and_their_scales_stay(tmp_path):
    model = Quantised(tmp_path / "q.safetensors")
    plain = [block[0].weight.plain() for block in model.blocks]
    x = torch.ones(3, 64)

    def expected():
        value = x
        for weight in plain:
            value = torch.tanh(nn.functional.linear(value, weight))
        return value

    with torch.no_grad():
        controller = OffloadController(
            model, DeviceQueue(ThreadedCpuPort()), discovery=discover(model, min_layer_bytes=1)
        )
        assert all(layer.in_file for layer in controller.inventory.layers)
        for tier in ("mapped", "pageable", "mapped"):
            controller.load(hand_plan(controller, 2 * controller.layers[0].nbytes, tiers=tier))
            assert {layer.host.tier for layer in controller.layers} == {tier}
            for _ in range(2):
                assert torch.equal(model(x), expected())
        controller.detach()
        assert torch.equal(model(x), expected())
    controller.queue.close()


@pytest.mark.parametrize("share, in_file", [(MAX_KEPT_SHARE * 2, True), (MAX_KEPT_SHARE // 2, False)])
def test_a_layer_of_which_much_is_in_no_file_is_not_left_there(tmp_path, share, in_file):
    rows = 64 * 64 // (4 * share)
    model = Quantised(tmp_path / "q.safetensors", kept=rows)
    host = HostLayer(list(model.blocks[0].parameters()), ThreadedCpuPort(), pinned=False)
    assert host.in_file == in_file


def test_a_copy_of_a_tensor_does_not_lie_in_the_file(tmp_path):
    stored = Quantised(tmp_path / "q.safetensors").blocks[0][0].weight._stored
    twin = copy.deepcopy(stored)
    assert torch.equal(twin, stored) and slice_of(stored) is not None and slice_of(twin) is None


class Shifted(nn.Embedding):
    """Looks up other rows than it is asked for, as BART's positions do."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return super().forward(indices + 2)


class Words(nn.Module):
    """A table of 67 MB that two modules look things up in, and a few layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16384, WIDTH, padding_idx=16000)
        self.shifted = Shifted(16384, WIDTH)
        self.shifted.weight = self.table.weight
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)) for _ in range(3))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.table(indices) + self.shifted(indices)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.fixture
def words(tmp_path):
    twin = Words().requires_grad_(False)
    path = tmp_path / "words.safetensors"
    state = {name: value for name, value in twin.state_dict().items() if name != "shifted.weight"}
    safetensors.torch.save_file(state, path)
    with torch.device("meta"):
        model = Words()
    model.shifted.weight = nn.Parameter(torch.empty(16384, WIDTH))  # not looked for in the file
    table = model.shifted
    del model.shifted
    weights_from_file(model, path)
    model.shifted = table
    model.shifted.weight = model.table.weight
    return model, twin, path


def test_rows_of_a_table_are_read_when_they_are_looked_up(words):
    model, twin, path = words
    indices = torch.tensor([[5, 16000, 5, 0], [16381, 7, 7, 123]])
    with torch.no_grad(), attach(model, device="cpu", budget_bytes=4 * LAYER_BYTES) as attached:
        assert all(table.in_file for table in attached.controller.inventory.tables)
        assert torch.equal(model(indices), twin(indices))
        assert torch.equal(model(indices[:, :0]), twin(indices[:, :0]))
        touched = mapped_bytes(path) if os.path.exists("/proc/self/smaps") else 0
        assert touched < LAYER_BYTES, f"{touched} bytes of the mapping are in memory"
        with pytest.raises(IndexError):
            model(torch.tensor([16384]))
        assert torch.equal(model.table.weight * 2, twin.table.weight * 2), "the table itself can be used"
        os.truncate(path, 4096)
        with pytest.raises(FileReadError, match="truncated from"):
            model.table(torch.tensor([3]))
    # the mapping ends before the table now: it must not be read any more


def test_a_table_that_is_to_be_of_another_type_or_is_written_to_comes_into_memory(words):
    model, twin, path = words
    model.table.max_norm = 1e9
    with torch.no_grad(), attach(model, device="cpu", budget_bytes=4 * LAYER_BYTES):
        assert slice_of(model.table.weight) is None
        assert torch.equal(model(torch.tensor([3])), twin(torch.tensor([3])))


def test_a_resident_that_is_changed_in_host_memory_is_there_once(wide):
    """A LoRA on the CPU: the master is the file, and what lies in memory is what the layer computes with."""
    model, twin, _ = wide
    x = torch.ones(2, WIDTH)

    def weights_held():
        own = [layer.device_buffer for layer in controller.layers if layer.keep_resident and not layer.is_in_place]
        return sum(host.buffer.numel() for host in hosts if host.buffer is not None) + sum(b.numel() for b in own)

    with (
        torch.no_grad(),
        attach(model, device="cpu", budget_bytes=5 * LAYER_BYTES, ring_bytes=LAYER_BYTES, passes=50) as attached,
    ):
        controller = attached.controller
        hosts = [layer.host for layer in controller.layers]
        plan = controller.plan
        residents = [index for index, layer in enumerate(plan.layers) if layer.placement == "resident"]
        assert residents and weights_held() == len(residents) * LAYER_BYTES
        original = twin.blocks[residents[0]][0].weight.clone()
        name = f"blocks.{residents[0]}.0.weight"
        for factor in (2.0, 3.0):
            controller.set_changes({name: Change(("times", factor), lambda factor=factor: original * factor)})
            twin.blocks[residents[0]][0].weight.copy_(original * factor)
            for _ in range(2):
                assert torch.equal(model(x), twin(x))
            assert weights_held() == len(residents) * LAYER_BYTES
            controller.unload()
            controller.load(plan)
            assert torch.equal(model(x), twin(x)) and weights_held() == len(residents) * LAYER_BYTES
        controller.set_changes({})
        twin.blocks[residents[0]][0].weight.copy_(original)
        controller.load(plan)
        assert torch.equal(model(x), twin(x)) and weights_held() == len(residents) * LAYER_BYTES
