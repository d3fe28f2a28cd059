"""Toy torch modules for the runtime tests: blocks that know which bytes they should see, walked in any order.

A block's parameters cover what weights come as: every width of dtype, strides that are not the usual ones, expanded,
tied and empty tensors. Every block checks on every run that the weights it was given are its own (`tag`), and tells
`Block.on_run`, if a test has set it. The output depends on every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

DIM = 8


class WrongBytes(AssertionError):
    """A block ran with weights that are not its own."""


class Block(nn.Module):
    """A layer of about `kilobytes` KB. `exotic`: with tensors of all kinds, else with two plain ones."""

    on_run: ClassVar[Callable[[Block], None] | None] = None
    """Called on every run of any block, after it has looked at its tag, and again when an inner block has run."""

    def __init__(self, number: int, kilobytes: int = 1, exotic: bool = False) -> None:
        super().__init__()
        self.number = number
        random = torch.Generator().manual_seed(number)
        count = max(64, kilobytes * 256 - DIM * DIM)
        self.tag = nn.Parameter(torch.full((count,), number, dtype=torch.int32), requires_grad=False)
        self.weight = nn.Parameter(torch.randn(DIM, DIM, generator=random) / DIM)
        self.exotic = exotic
        if exotic:
            self._add_exotic(random)

    def _add_exotic(self, random: torch.Generator) -> None:
        self.turned = nn.Parameter(torch.randn(DIM * 2, DIM, generator=random).t())
        self.gaps = nn.Parameter(torch.randn(DIM, DIM * 2, generator=random)[:, ::2], requires_grad=False)
        self.expanded = nn.Parameter(torch.randn(1, DIM, generator=random).expand(DIM, DIM), requires_grad=False)
        self.bf16 = nn.Parameter(torch.randn(DIM * 4, DIM, generator=random).bfloat16())
        for name, dtype in (("small", torch.float8_e4m3fn), ("flags", torch.bool), ("bytes_", torch.int8)):
            values = torch.randint(0, 2, (DIM * 8, DIM), generator=random)
            self.register_parameter(name, nn.Parameter(values.to(dtype), requires_grad=False))
        self.nothing = nn.Parameter(torch.empty(0, DIM))
        self.tied = self.weight
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: torch.Tensor, inner: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        if not bool((self.tag == self.number).all()):
            raise WrongBytes(f"block {self.number} saw the tags {self.tag.unique().tolist()}")
        if (call := Block.on_run) is not None:
            call(self)
        x = x + torch.tanh(F.linear(x, self.weight))
        if inner is not None:
            x = inner(x)
            if call is not None:
                call(self)
        return torch.tanh(F.linear(x, self._mixed()) if self.exotic else x) + F.linear(x, self.weight)

    def _mixed(self) -> torch.Tensor:
        self.calls[0] += 1
        mixed = self.turned[:, :DIM] + self.gaps * self.expanded + self.bf16[:DIM].float() + self.tied
        mixed = mixed + self.small[:DIM].float() + self.bytes_[:DIM]
        return torch.where(self.flags[:DIM], mixed, -mixed) + self.nothing.sum() + self.calls[0]


class Model(nn.Module):
    """Blocks in a list, a shared buffer and projections outside. `order` says which blocks a pass visits."""

    def __init__(self, kilobytes: Sequence[int], exotic: Iterable[int] = ()) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(99)
        self.scale = nn.Parameter(torch.randn(DIM, generator=random))
        odd = set(exotic)
        self.blocks = nn.ModuleList(Block(number, size, number in odd) for number, size in enumerate(kilobytes))
        for number in odd:  # tied across layers, and a buffer that all of them share
            self.blocks[number].shared = self.scale
            self.blocks[number].calls = self.blocks[min(odd)].calls

    def forward(
        self,
        x: torch.Tensor,
        order: Sequence[int] | None = None,
        nested: dict[int, int] | None = None,
        between: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """`nested`: visit (by position) in the middle of which another block runs. `between`: called before each."""
        for position, number in enumerate(range(len(self.blocks)) if order is None else order):
            if between is not None:
                between(position)
            inner = None if nested is None or position not in nested else self.blocks[nested[position]]
            x = self.blocks[number](x) if inner is None else self.blocks[number](x, inner)
        return x * self.scale


class Wide(nn.Module):
    """Blocks of 1 MiB each."""

    def __init__(self, blocks: int = 4, width: int = 512):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(blocks)])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@contextmanager
def on_run(call: Callable[[Block], None] | None) -> Iterator[None]:
    """Have `call` called with every block that runs; None: no call."""
    before = Block.on_run
    Block.on_run = call
    try:
        yield
    finally:
        Block.on_run = before
