"""Host masters: every kind of tensor survives being laid into one buffer, and looks the same through any other one."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from offload_core.runtime.host.host_layer import HostLayer
from offload_core.runtime.host.host_parameter import HostParameter
from offload_core.runtime.tensors.layout import TENSOR_ALIGNMENT, layout_of, span_bytes
from offload_core.runtime.tensors.parts import is_plain
from tests.runtime.world import as_bytes
from tests.support.race_port import RacePort

KINDS = {
    "float32": torch.arange(12, dtype=torch.float32).view(3, 4),
    "bfloat16": torch.arange(5, dtype=torch.bfloat16),
    "float8": torch.arange(7).to(torch.float8_e4m3fn),
    "float8 e5m2": torch.arange(7).to(torch.float8_e5m2),
    "bool": torch.tensor([True, False, True]),
    "int64": torch.arange(4),
    "complex": torch.arange(4) * (1 + 2j),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "every second": torch.arange(24.0).view(4, 6)[:, ::2],
    "not from the start": torch.arange(24.0)[5:11],
    "channels last": torch.arange(48.0).view(2, 3, 2, 4).to(memory_format=torch.channels_last),
    "expanded": torch.arange(3.0).view(3, 1).expand(3, 5),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "empty in the middle": torch.empty(2, 0, 3, dtype=torch.int8),
}


def parameters(names=tuple(KINDS)):
    return [nn.Parameter(KINDS[name].detach(), requires_grad=KINDS[name].is_floating_point()) for name in names]


@pytest.fixture
def port():
    return RacePort(1 << 16)


@pytest.mark.parametrize("inference", [False, True])
def test_every_kind_of_tensor_keeps_value_shape_and_strides(port, inference):
    with torch.inference_mode(inference):
        given = [nn.Parameter(tensor.clone(memory_format=torch.preserve_format), False) for tensor in KINDS.values()]
        given = parameters() if not inference else given
        before = [(p, p.dtype, p.shape, p.stride(), as_bytes(p).clone()) for p in given]
        host = HostLayer(given, port, pinned=True)
        for original, (same, dtype, shape, stride, value) in zip(given, before):
            assert original is same and (original.dtype, original.shape, original.stride()) == (dtype, shape, stride)
            assert torch.equal(as_bytes(original), value)
        elsewhere = port.empty(host.layout.nbytes)
        elsewhere.copy_(host.buffer)
        for view, (_, dtype, shape, stride, value) in zip(host.device_views(elsewhere), before):
            assert (view.dtype, view.shape, view.stride()) == (dtype, shape, stride)
            assert torch.equal(as_bytes(view), value) and not view.requires_grad
            assert port.holds(view) or not view.numel()


def test_slots_are_aligned_and_do_not_overlap():
    layout = layout_of(parameters())
    end = 0
    for slot, tensor in zip(layout.slots, KINDS.values()):
        assert slot.offset % TENSOR_ALIGNMENT == 0 and slot.offset >= end
        assert slot.nbytes == span_bytes(tensor)
        end = slot.offset + slot.nbytes
    assert layout.nbytes >= end


def test_masters_of_several_types_can_be_saved(port):
    given = parameters(("float32", "bfloat16", "int64", "float8"))
    HostLayer(given, port, pinned=True)
    stream = io.BytesIO()
    torch.save(given, stream)
    stream.seek(0)
    for loaded, original in zip(torch.load(stream, weights_only=False), given):
        assert torch.equal(as_bytes(loaded), as_bytes(original))
        assert loaded.untyped_storage().nbytes() == loaded.numel() * loaded.element_size()


def test_the_buffer_lives_as_long_as_a_parameter_does(port):
    (given,) = parameters(("float32",))
    HostLayer([given], port, pinned=True)
    assert torch.equal(given.detach(), KINDS["float32"]) and len(port._regions) == 2
    del given
    assert len(port._regions) == 1, "the buffer outlives its users"


def test_write_changes_the_master_and_keeps_its_place(port):
    given = parameters(("bfloat16", "every second"))
    host = HostLayer(given, port, pinned=True)
    host.take_over()
    places = [p.data_ptr() for p in given]
    host.write(given[0], torch.full((5,), 2.0))
    host.write(given[1], torch.full((4, 3), 3.0))
    assert given[0].tolist() == [2.0] * 5 and given[1].tolist() == [[3.0] * 3] * 4
    assert places == [p.data_ptr() for p in given] and all(type(p) is HostParameter for p in given)


def test_reclaim_takes_over_what_others_did(port):
    (given,) = parameters(("float32",))
    host = HostLayer([given], port, pinned=True)
    given.data = given.data * 2
    assert host.reclaim(0, given) and host.parameters[0] is given
    assert torch.equal(host.layout.slots[0].view(host.buffer), KINDS["float32"] * 2)
    other = nn.Parameter(KINDS["float32"] * 3)
    assert host.reclaim(0, other) and host.parameters[0] is other
    assert torch.equal(host.layout.slots[0].view(host.buffer), KINDS["float32"] * 3)
    assert not host.reclaim(0, nn.Parameter(torch.zeros(3, 5)))
    assert not host.reclaim(0, nn.Parameter(torch.zeros(3, 4, dtype=torch.float16)))


def test_an_expanded_master_takes_over_nothing(port):
    (given,) = parameters(("expanded",))
    host = HostLayer([given], port, pinned=True)
    assert host.reclaim(0, given)
    assert not host.reclaim(0, nn.Parameter(KINDS["expanded"].clone()))


def test_what_is_not_plain_bytes():
    assert is_plain(torch.zeros(2)) and is_plain(nn.Parameter(torch.zeros(2)))
    assert not is_plain(torch.zeros(2, device="meta"))
    assert not is_plain(torch.zeros(2).to_sparse())
    assert not is_plain(torch.zeros(2, dtype=torch.complex64).conj())
    assert not is_plain(torch.zeros(2, dtype=torch.complex64).conj().imag)
    assert not is_plain(HostParameter(torch.zeros(2)))
