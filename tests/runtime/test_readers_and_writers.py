"""Code of others reads weights of a streamed model, and writes them: it sees values, and what it writes counts."""

from __future__ import annotations

import copy
import io
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from offload_core.errors import StateError
from offload_core.runtime import Change, attach
from offload_core.runtime.files.weight_file import FileReadError, slice_of
from offload_core.runtime.files.written_pages import were_written
from offload_core.runtime.host.host_parameter import twin_of
from offload_core.runtime.tensors.safetensors_map import weights_from_file
from tests.support import simdev

WIDTH = 600
BUDGET_BYTES = 6_000_000
FACTOR = 3.0


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Blocks(nn.Module):
    def __init__(self, number=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(number))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Blocks().requires_grad_(False)


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "blocks.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path


@pytest.fixture
def x():
    return torch.randn(2, WIDTH)


class Tripled:
    """Every first matrix three times as large, and how often that was computed."""

    def __init__(self, model):
        self.computed = 0
        self._model = model

    def changes(self):
        return {
            f"blocks.{index}.first.weight": Change("tripled", lambda block=block: self._of(block))
            for index, block in enumerate(self._model.blocks)
        }

    def _of(self, block):
        self.computed += 1
        return block.first.weight.detach().clone() * FACTOR


@pytest.fixture
def tripled(model):
    """(attached model under changes, plain twin with the changed values, counter)"""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.first.weight *= FACTOR
    counter = Tripled(model)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES) as handle:
        handle.controller.set_changes(counter.changes())
        yield handle.controller, twin, counter


# ---------------------------------------------------------------------- reading


def test_a_state_dict_is_computed_when_it_is_looked_at(model, tripled):
    _, twin, counter = tripled
    state = model.state_dict()
    assert [state[name].shape for name in state] == [value.shape for value in twin.state_dict().values()]
    assert counter.computed == 0, "names and shapes cost nothing"
    for name, value in twin.state_dict().items():
        assert torch.equal(state[name], value), name
    assert counter.computed == len(model.blocks)
    assert torch.equal(state["blocks.0.first.weight"], twin.blocks[0].first.weight)
    assert counter.computed == len(model.blocks), "once computed it is the reader's own"


@pytest.mark.parametrize(
    "read",
    [
        lambda weight: weight.float(),
        lambda weight: weight.clone(),
        lambda weight: weight.detach(),
        lambda weight: weight.data,
        lambda weight: weight.cpu(),
        lambda weight: weight.to("cpu"),
        lambda weight: weight * 1,
        lambda weight: weight.T.T,
        lambda weight: torch.empty_like(weight).copy_(weight),
        lambda weight: torch.zeros(WIDTH, WIDTH).add_(weight),
        lambda weight: torch.stack([weight])[0],
        lambda weight: torch.from_numpy(weight.detach().numpy()),
        lambda weight: torch.from_numpy(weight.numpy()),
        lambda weight: nn.Parameter(weight.detach(), requires_grad=False),
        lambda weight: copy.deepcopy(weight),
        lambda weight: copy.deepcopy(weight.detach()),
        lambda weight: torch.load(_saved_by_torch(weight)),
        lambda weight: torch.load(_saved_by_torch(weight.detach())),
        lambda weight: safetensors.torch.load(safetensors.torch.save({"weight": weight.detach()}))["weight"],
        lambda weight: weight.detach().detach(),
    ],
)  # fmt: skip
def test_a_changed_weight_reads_as_its_value(model, tripled, read):
    _, twin, _ = tripled
    assert torch.equal(read(model.blocks[1].first.weight), twin.blocks[1].first.weight)


def _saved_by_torch(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return file


def test_what_is_read_is_a_tensor_and_no_parameter(model, tripled):
    """As of any module: a saved state dict has tensors in it."""
    for name, value in model.state_dict().items():
        assert not isinstance(value, nn.Parameter), name
        assert type(torch.load(_saved_by_torch({name: value}))[name]) is torch.Tensor


def test_what_was_read_stays_what_it_was(model, tripled):
    controller, twin, _ = tripled
    state = model.state_dict()
    controller.set_changes({})
    assert torch.equal(state["blocks.2.first.weight"], twin.blocks[2].first.weight)
    assert torch.equal(model.state_dict()["blocks.2.first.weight"] * FACTOR, twin.blocks[2].first.weight)
    controller.unload()
    assert torch.equal(state["blocks.3.first.weight"], twin.blocks[3].first.weight)


def test_what_was_taken_before_a_resident_arrived_is_changed_once(model, x):
    """The module holds the device's parameter by then, which is changed already."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    simdev.load()
    values = {
        name: value * FACTOR for name, value in copy.deepcopy(model.state_dict()).items() if ".first.weight" in name
    }
    with attach(model, device="npu", budget_bytes=100_000_000) as handle:
        handle.controller.set_changes(Tripled(model).changes())
        taken, held = model.state_dict(), model.blocks[1].first.weight
        for _ in range(2):
            model(x.to("npu"))
        assert model.blocks[1].first.weight is not held, "the resident has arrived"
        for name, value in values.items():
            assert torch.equal(taken[name], value), name
        assert torch.equal(held.clone(), values["blocks.1.first.weight"])


def test_masters_are_shown_untouched_where_that_is_asked_for(model, tripled):
    controller, twin, _ = tripled
    with controller.masters_shown():
        assert torch.equal(model.state_dict()["blocks.2.first.weight"] * FACTOR, twin.blocks[2].first.weight)
    assert torch.equal(twin_of(model.blocks[2].first.weight) * FACTOR, twin.blocks[2].first.weight)


def test_a_value_that_was_read_is_a_layers_weight_like_any_other(model, tripled, x):
    """Another model of what was read, and offloaded itself."""
    _, twin, counter = tripled
    other = Blocks().requires_grad_(False)
    other.load_state_dict(model.state_dict(), assign=True)
    assert isinstance(other.blocks[0].first.weight, nn.Parameter) and counter.computed == 0
    with attach(other, device="cpu", budget_bytes=BUDGET_BYTES):
        assert torch.equal(other(x), twin(x))


def test_a_cast_that_changes_nothing_reads_nothing(model, path):
    """The app casts tables to the type that they have, and then looks a few rows up."""
    weights_from_file(model, path)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES) as handle:
        weight = model.blocks[3].second.weight
        file = slice_of(weight).file
        before, touched = file.bytes_read, handle.controller.outside_touches
        for cast in (
            lambda weight: weight.to(torch.float32),
            lambda weight: weight.to("cpu"),
            lambda weight: weight.to(torch.device("cpu"), torch.float32),
            lambda weight: weight.to(dtype=torch.float32, device=None, copy=False, non_blocking=True),
            lambda weight: weight.to(torch.zeros(1)),
            lambda weight: weight.cpu(),
            lambda weight: weight.contiguous(),
        ):
            assert cast(weight) is weight
            assert cast(weight.detach()).shape == weight.shape
        assert (file.bytes_read, handle.controller.outside_touches) == (before, touched)
        for copied in (weight.to(torch.float64), weight.to(torch.float32, copy=True), weight.T.contiguous()):
            assert copied is not weight
        assert file.bytes_read > before


def test_a_file_that_was_cut_short_is_an_error_for_readers_of_weights(model, path, x):
    """Of the mapped pages behind its end, a touch would end the process."""
    weights_from_file(model, path)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES):
        os.truncate(path, 1000)
        taken = model.blocks[3].second.weight.detach()
        for read in (
            lambda: model.blocks[3].second.weight.float(),
            lambda: model.blocks[3].second.weight.to(torch.float64),
            lambda: torch.nn.functional.linear(x, model.blocks[3].second.weight),
            lambda: torch.empty(WIDTH, WIDTH).copy_(model.blocks[3].second.weight),
            lambda: copy.deepcopy(model.blocks[3]),
            lambda: taken.sum(),
        ):
            with pytest.raises(FileReadError, match="truncated"):
                read()


# ---------------------------------------------------------------------- writing

WRITES = {
    "in place": lambda weight: weight.mul_(2),
    "data in place": lambda weight: weight.data.mul_(2),
    "copied into": lambda weight: weight.copy_(weight.detach() * 2),
    "what was detached": lambda weight: weight.detach().mul_(2),
    "an element": lambda weight: weight.data.__setitem__(0, 5.0),
    "other data": lambda weight: setattr(weight, "data", weight.data * 2),
    "by numpy": lambda weight: weight.data.numpy().__imul__(2),
}


def write_to(model, how):
    with torch.no_grad():
        if how == "another parameter":
            second = model.blocks[2].second
            second.weight = nn.Parameter(second.weight.detach() * 2, requires_grad=False)
        elif how == "a state dict":
            state = model.blocks[2].state_dict()
            model.blocks[2].load_state_dict({"second.weight": state["second.weight"] * 2}, strict=False)
        else:
            WRITES[how](model.blocks[2].second.weight)


EVERY = (*WRITES, "another parameter", "a state dict")


@pytest.mark.parametrize("how", EVERY)
def test_what_is_written_before_the_first_use_counts(model, path, x, how):
    twin = copy.deepcopy(model)
    write_to(twin, how)
    weights_from_file(model, path)
    write_to(model, how)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES):
        assert torch.equal(model(x), twin(x))
    assert slice_of(model.blocks[0].first.weight) is not None, "the others lie in their file as before"


def test_bytes_that_are_written_past_torch_count(model, path, x):
    twin = copy.deepcopy(model)
    twin.blocks[2].second.weight.mul_(2)
    weights_from_file(model, path)
    model.blocks[2].second.weight.data.numpy()[:] *= 2
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES):
        assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("how", [how for how in EVERY if how != "by numpy"])
def test_what_is_written_between_two_uses_counts(model, path, x, how, in_file):
    twin = copy.deepcopy(model)
    if in_file:
        weights_from_file(model, path)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES) as handle:
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
        write_to(twin, how)
        write_to(model, how)
        assert handle.controller.take_over_replaced() == []
        for _ in range(2):
            assert torch.equal(model(x), twin(x))
    assert torch.equal(model.blocks[2].second.weight, twin.blocks[2].second.weight)
    assert torch.equal(model(x), twin(x))


def test_what_is_written_while_the_model_is_unloaded_counts(model, path, x):
    twin = copy.deepcopy(model)
    weights_from_file(model, path)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES) as handle:
        assert torch.equal(model(x), twin(x))
        plan = handle.plan
        handle.controller.unload()
        for blocks in (model.blocks, twin.blocks):
            blocks[1].first.weight.data.mul_(2)
        handle.controller.load(plan)
        assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize("how", ["data in place", "in place", "what was detached", "another parameter"])
def test_a_write_under_a_change_is_said_to_have_no_effect(model, tripled, x, how):
    controller, twin, _ = tripled
    assert torch.equal(model(x), twin(x))
    weight = model.blocks[2].first.weight
    if how == "another parameter":
        model.blocks[2].first.weight = nn.Parameter(weight.detach() * 2, requires_grad=False)
    else:
        WRITES[how](weight)
    assert [name.removesuffix(".first.weight") for name in controller.take_over_replaced()] == ["blocks.2"]
    assert controller.take_over_replaced() == [], "said once"
    assert torch.equal(model(x), twin(x))


def test_a_weight_of_another_shape_in_a_layers_place_is_an_error(model, x):
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES) as handle:
        model(x)
        model.blocks[1].first.weight = nn.Parameter(torch.zeros(WIDTH, 2 * WIDTH), requires_grad=False)
        with pytest.raises(StateError, match=r"blocks\.1\.first\.weight.*\(600, 1200\)"):
            handle.controller.take_over_replaced()


# ---------------------------------------------------------------------- pages


def test_pages_tell_what_was_written(model, path):
    weights_from_file(model, path)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.sum()
    spans = [(parameter.data_ptr(), parameter.numel() * 4) for parameter in parameters]
    if were_written(*spans[0]) is None:
        pytest.skip("this system does not tell")
    assert not any(were_written(*span) for span in spans)
    written = max(range(len(parameters)), key=lambda index: spans[index][0])
    parameters[written].data[-1] += 1
    assert were_written(*spans[written])
    lowest = min(range(len(parameters)), key=lambda index: spans[index][0])
    assert not were_written(spans[lowest][0], 4096)


def test_without_such_pages_the_bytes_are_compared(model, path, x, monkeypatch):
    monkeypatch.setattr("offload_core.runtime.files.weight_file.were_written", lambda address, nbytes: None)
    twin = copy.deepcopy(model)
    twin.blocks[2].second.weight.mul_(2)
    weights_from_file(model, path)
    model.blocks[2].second.weight.data.mul_(2)
    with attach(model, device="cpu", budget_bytes=BUDGET_BYTES):
        assert torch.equal(model(x), twin(x))
    assert slice_of(model.blocks[0].first.weight) is not None
