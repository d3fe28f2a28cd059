"""The contenders of `bench.host_overhead`: the same stack of blocks under our engine, diffusers and accelerate.

What each of them does on a visit is told in `host_overhead.py`. Knows nothing about measuring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BLOCKS = 24
PARAMETERS = 32
SIDE = 32  # 32 x 32 floats are 4 KiB
LINK_BYTES_PER_S = 1e9
"""Of the simulated accelerator: a copy takes longer than a visit, so that the device is always behind the host, as it
is wherever streaming pays. A faster one would have its thread asleep again by the next copy, and what was measured then
would be mostly the system waking it, which a copy engine does not need."""

COPIES = "with copies"
NO_COPIES = "without copies"


class Leaf(nn.Module):
    """A place of parameters, all of one size so that ours moves all of them too. It computes nothing."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Parameter(torch.rand(SIDE, SIDE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Branch(nn.Module):
    """Children that are called one after the other."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


def block() -> nn.Module:
    """The module tree of diffusers' FluxTransformerBlock, with its 32 parameters."""

    def linear() -> nn.Module:
        return Leaf("weight", "bias")

    def feed_forward() -> nn.Module:
        return Branch(net=nn.Sequential(Branch(proj=linear()), Leaf(), linear()))

    projections = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    attention = {
        **{name: linear() for name in projections},
        **{name: Leaf("weight") for name in norms},
        "to_out": nn.Sequential(linear(), Leaf()),
    }
    return Branch(
        norm1=Branch(silu=Leaf(), linear=linear(), norm=Leaf()),
        norm1_context=Branch(silu=Leaf(), linear=linear(), norm=Leaf()),
        attn=Branch(**attention),
        norm2=Leaf(),
        ff=feed_forward(),
        norm2_context=Leaf(),
        ff_context=feed_forward(),
    )


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@dataclass
class Contender:
    """A stack under some offloading, ready to run, and the plain stack it is compared with."""

    group: str
    name: str
    run: Callable[[], Any]
    baseline: Callable[[], Any]
    close: Callable[[], None] = lambda: None


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().requires_grad_(False).eval()


def plain(device: str) -> Callable[[], Any]:
    model, x = stack().to(device), torch.ones(SIDE, SIDE, device=device)
    return lambda: model(x)


# ---------------------------------------------------------------------- ours


class IdlePort:
    """A device whose every call does nothing: what is left of a visit is the engine's own work."""

    asynchronous = True
    shares_host_memory = False
    pins_in_place = False
    stages_unpinned = False
    segment_bytes = 1

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        for name in ("record_copy", "record_compute", "copy_waits", "compute_waits", "copy", "copy_on_compute"):
            setattr(self, name, _nothing)
        for name in ("drain", "close", "host_release", "memory", "host_waits", "abandon", "copy_from", "copy_back"):
            setattr(self, name, _nothing)
        self.before_release = self.prepare_reads = self.trim = _nothing

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def event(self, timed: bool = False) -> Any:
        return None

    def happened(self, event: Any) -> bool:
        return True

    def elapsed_ns(self, start: Any, end: Any) -> int | None:
        return 0

    def host_empty(self, nbytes: int, pinned: bool) -> tuple[torch.Tensor, bool]:
        return torch.empty(nbytes, dtype=torch.uint8), False

    def host_pin(self, buffer: torch.Tensor) -> bool:
        return False


def _nothing(*_: Any) -> None:
    return None


def ours(group: str, device: str, queue: Any = None) -> Contender:
    from offload_core.runtime import attach

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    attachment = attach(model, device=device, passes=1000, min_layer_bytes=1, queue=queue)
    layers = attachment.controller.layers
    assert len(attachment.plan.streamed) == BLOCKS and all(
        len(layer.discovered.parameters) == PARAMETERS for layer in layers
    )
    return Contender(group, "ours", lambda: model(x), plain(device), attachment.detach)


def ours_idle() -> Contender:
    from offload_core.runtime import DeviceQueue

    return ours(NO_COPIES, "cpu", DeviceQueue(IdlePort()))


# ---------------------------------------------------------------------- peers


def diffusers_plain() -> Contender:
    from diffusers.hooks import apply_group_offloading

    model, x = stack(), torch.ones(SIDE, SIDE)
    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    return Contender(NO_COPIES, "diffusers, plain", lambda: model(x), plain("cpu"))


def diffusers_cuda(device: str) -> Contender:
    from diffusers.hooks import apply_group_offloading

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    places = (torch.device(device), torch.device("cpu"))
    apply_group_offloading(model, *places, offload_type="block_level", num_blocks_per_group=1, use_stream=True)
    return Contender(COPIES, "diffusers", lambda: model(x), plain(device))


def _diffusers_streams(group: str, stream: Any, transfer: Callable[..., None] | None, backend: str) -> Contender:
    """diffusers' stream path with the blocks on the CPU. Its offload device is one that no parameter is on.

    Otherwise diffusers would take every block for not yet onloaded, and move it twice.
    """
    from diffusers.hooks import group_offloading
    from diffusers.utils.torch_utils import TorchDeviceBackend

    torch.cpu.Stream.synchronize = _nothing  # type: ignore[attr-defined]  # torch's has all the others
    model, x = stack(), torch.ones(SIDE, SIDE)
    config = group_offloading.GroupOffloadingConfig(
        **{"onload_device": torch.device("cpu"), "offload_device": torch.device("meta"), "non_blocking": True},
        **{"offload_type": group_offloading.GroupOffloadingType.BLOCK_LEVEL, "record_stream": False},
        **{"low_cpu_mem_usage": False, "num_blocks_per_group": 1, "stream": stream},
    )
    group_offloading._apply_group_offloading(model, config)
    for block in model.blocks:
        moved = block._diffusers_hook.get_hook(group_offloading._GROUP_OFFLOADING).group
        moved._torch_accelerator_module = TorchDeviceBackend(backend)
        if transfer is not None:
            moved._transfer_tensor_to_device = transfer
    return Contender(group, "diffusers", lambda: model(x), plain("cpu"))


def diffusers_simulated(device: str) -> Contender:
    kept: dict[int, torch.Tensor] = {}

    def transfer(tensor: torch.Tensor, source: torch.Tensor, default_stream: Any) -> None:
        kept[id(tensor)] = source.to(device, non_blocking=True)
        tensor.data = source

    return _diffusers_streams(COPIES, torch.get_device_module(device).Stream(), transfer, device)


def diffusers_idle() -> Contender:
    return _diffusers_streams(NO_COPIES, torch.cpu.Stream(), None, "cpu")


def accelerate_hooks(group: str, device: str) -> Contender:
    from accelerate import cpu_offload

    model, x = stack(), torch.ones(SIDE, SIDE, device=device)
    cpu_offload(model, execution_device=torch.device(device))
    return Contender(group, "accelerate", lambda: model(x), plain(device))


def contenders(device: str) -> tuple[list[Contender], list[str]]:
    """Those that can run here, and why the others cannot. `device`: sim, cuda, or cpu for the second group alone."""
    found, missing = [], []
    makers: list[Callable[[], Contender]] = []
    if device == "sim":
        from tests.support import simdev

        if simdev.available():
            options = {"poison": False, "race": False, "spin": False}  # waiting is not to count: that favours the peers
            simdev.load().configure(mb=1024, bandwidth=LINK_BYTES_PER_S, **options)
            device = "npu"
        else:
            missing.append(f"{COPIES}: no simulated accelerator here (python3 dev.py setup builds it)")
            device = "cpu"
    if device != "cpu":
        peer = diffusers_simulated if device == "npu" else diffusers_cuda
        makers += [lambda: ours(COPIES, device), lambda: peer(device), lambda: accelerate_hooks(COPIES, device)]
    makers += [ours_idle, diffusers_idle, diffusers_plain, lambda: accelerate_hooks(NO_COPIES, "cpu")]
    for make in makers:
        try:
            found.append(make())
        except (ImportError, RuntimeError) as error:
            name = getattr(make, "__name__", "one of the contenders")
            missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found, missing
