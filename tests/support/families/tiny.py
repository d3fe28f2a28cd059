"""The tiny form of a family, run whole and streamed on the simulated accelerator: the same bits, and how."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from bench.full_size import give_memory
from offload_core.files import layer_walk
from offload_core.planning.planner import smallest_budget
from offload_core.runtime import attach
from offload_core.runtime.device.device_port import segment_bytes_of
from offload_core.runtime.layers import discovery
from tests.support import simdev

from .entry import Draw, Family

SEEDS = (1, 2, 3)
"""One pass for each: the first learns the order of the layers."""
MOST_BYTES = 2_000_000_000
DEVICE_MB = 9000


@dataclass
class Streamed:
    """One budget's three passes."""

    equal: list[bool] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """For each output that was not equal: in which pass, which one, and by how much."""
    demand_loads: list[int] = field(default_factory=list)
    streamed_layers: int = 0
    races: int = 0
    outside_touches: dict[str, int] = field(default_factory=dict)
    """Layers and tables whose weights were used outside their own call, and how often. Each is a copy of its own."""


@dataclass
class Outcome:
    """What the tiny form of one family did."""

    name: str
    total_bytes: int
    layers: int
    alive: bool
    """Whether the outputs are finite and of more than one value: that they are equal would say nothing otherwise."""
    runs: dict[str, Streamed]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def fill(model: nn.Module) -> None:
    """Gives every parameter noise of a size that neither dies out nor grows on its way through the layers.

    Buffers keep what was computed for them; what was left for a file to fill, NaN here, becomes about one.
    """
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        if not parameter.is_floating_point():
            parameter.data.zero_()
            continue
        parameter.data.copy_(_values(name.lower(), parameter, generator).to(parameter.dtype))
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.isnan().any():
            drawn = 1 + 0.02 * torch.randn(buffer.shape, generator=generator)
            buffer.copy_(torch.where(buffer.isnan(), drawn.to(buffer.dtype), buffer))


def _values(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim < 2 or name.endswith("gamma"):
        return drawn * 0.01 if name.endswith("bias") or parameter.ndim == 0 else 1 + 0.02 * drawn
    if "embed" in name and ("token" in name or "pos" in name):
        return drawn * 0.05
    return drawn / math.sqrt(max(1, math.prod(parameter.shape[1:])))


def made(family: Family) -> nn.Module:
    """The tiny form on the CPU, with noise in it; the same bits each time."""
    torch.manual_seed(0)
    with _unwritten_is_nan():
        model = give_memory(family.build("cpu", True), _type_of(family))
    if family.kind in ("vae", "other"):  # the others are built in their type, with what the app keeps in another
        model.to(_type_of(family))
    nbytes = _bytes_of(model)
    if nbytes > MOST_BYTES:
        raise MemoryError(f"{family.name}: the tiny form has {nbytes / 1e9:.1f} GB, and may have 2 GB")
    fill(model)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    """Has torch write NaN into memory that it allocates, so that a weight which the model does not fill is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _type_of(family: Family) -> torch.dtype:
    return family.tiny_dtype or family.dtype


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@contextlib.contextmanager
def lowered(share: float) -> Iterator[None]:
    """Discovery with its least sizes times `share`, so that what is small is cut as the full size is."""
    places = [(module, name) for module in (discovery, layer_walk) for name in vars(module) if name.endswith("_BYTES")]
    before = [getattr(module, name) for module, name in places]
    try:
        for (module, name), value in zip(places, before):
            setattr(module, name, max(256, int(value * share)))
        yield
    finally:
        for (module, name), value in zip(places, before):
            setattr(module, name, value)


def outputs(family: Family, model: nn.Module, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(7)  # what the model draws by itself
    found = family.run(model, Draw(seed, "npu", _type_of(family)))
    return [tensor.detach().to("cpu").clone() for tensor in _tensors(found)]


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (list, tuple, dict)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from _tensors(part)


def _varies(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 1 and bool(tensor.float().std().item() > 0)


def same_bits(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    if [(a.dtype, a.shape) for a in left] != [(b.dtype, b.shape) for b in right]:
        return False
    pairs = [(a.contiguous().flatten(), b.contiguous().flatten()) for a, b in zip(left, right)]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def walked(family: Family, full_bytes: int | None, wrong_byte: bool = False, link_rate: int = 0) -> Outcome:
    """Runs the family whole, and streamed at two budgets: a ring of three layers, and the least.

    `full_bytes` is the size of the full form; `wrong_byte` changes one byte of the model before it is streamed, for a
    test of this test. `link_rate`: bytes per second of copies while it is streamed; 0: as fast as can be.
    """
    npu = simdev.load()
    model = made(family)
    whole = made(family)  # the app's settings cannot be copied, so the model is made twice
    whole = whole.to("npu")
    expected = [outputs(family, whole, seed) for seed in SEEDS]
    del whole
    gc.collect()
    total = _bytes_of(model)
    share = family.scale or (min(1.0, total / full_bytes) if full_bytes else 1e-3)
    alive = all(tensor.isfinite().all().item() for tensor in expected[0]) and any(map(_varies, expected[0]))
    with lowered(share):
        found = discovery.discover(model, min_layer_bytes=layer_walk.MIN_LAYER_BYTES)
        least = smallest_budget(found.inventory(family.name, segment_bytes_of(torch.device("npu"))))
        outcome = Outcome(family.name, total, len(found.layers), alive, {})
        if wrong_byte:
            _turn_a_bit(found.layers[-1].module)
        for label, budget in (("ring of three", None), ("least", least)):
            npu.configure(poison=True, race=True, bandwidth=link_rate)
            npu.reset_stats()
            outcome.runs[label] = _streamed(family, model, budget, expected)
            outcome.runs[label].races = npu.stats()["races"]
            npu.configure(race=False, bandwidth=0)
    return outcome


def _streamed(family: Family, model: nn.Module, budget: int | None, expected: list[list[torch.Tensor]]) -> Streamed:
    entries = family.entry_points(model) if family.entry_points else None
    result = Streamed()
    attachment = attach(
        model, device="npu", budget_bytes=budget, entries=entries, min_layer_bytes=layer_walk.MIN_LAYER_BYTES
    )
    with attachment:
        controller = attachment.controller
        controller.replan_on_second_pass(None)  # all stays streamed
        result.streamed_layers = len(attachment.plan.streamed)
        before = controller.counters.demand_loads
        for seed, wanted in zip(SEEDS, expected):
            given = outputs(family, model, seed)
            result.equal.append(same_bits(given, wanted))
            if not result.equal[-1]:
                result.differing += [f"pass {seed}, {text}" for text in _differences(given, wanted)]
            result.demand_loads.append(controller.counters.demand_loads - before)
            before = controller.counters.demand_loads
        result.outside_touches = controller.outside_touches
    return result


def _differences(left: list[torch.Tensor], right: list[torch.Tensor]) -> Iterator[str]:
    if len(left) != len(right):
        yield f"{len(left)} outputs streamed, {len(right)} whole"
    for number, (streamed, whole) in enumerate(zip(left, right)):
        if not same_bits([streamed], [whole]):
            count = int((streamed != whole).sum()) if streamed.shape == whole.shape else -1
            nans = int(streamed.isnan().sum()), int(whole.isnan().sum())
            shape = tuple(streamed.shape)
            yield f"output {number} of shape {shape}: {count} elements differ, NaN {nans[0]} and {nans[1]}"


def _turn_a_bit(module: nn.Module) -> None:
    """Changes the sign of the first value of the module's largest parameter."""
    largest = max(module.parameters(), key=lambda parameter: parameter.numel())
    largest.data.view(torch.uint8).flatten()[largest.element_size() - 1] ^= 0x80
