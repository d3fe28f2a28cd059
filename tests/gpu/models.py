"""The models of the GPU tests. Weights are made on the device and copied to the host once: bf16 on the CPU is slow."""

import torch
from torch import nn

from tests.gpu.device import device

WIDTH = 512 if device.simulated else 4096
DTYPE = torch.float32 if device.simulated else torch.bfloat16
BLOCKS = 12
ROWS = 16 if device.simulated else 512


class Block(nn.Module):
    """Two matrices that move, a norm that stays; `repeats` turns the arithmetic up without adding bytes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, dtype=DTYPE)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, dtype=DTYPE)
        self.down = nn.Linear(2 * WIDTH, WIDTH, dtype=DTYPE)

    def forward(self, x, repeats=1):
        for _ in range(repeats):
            x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return x


class Model(nn.Module):
    def __init__(self, blocks=BLOCKS):
        super().__init__()
        self.enter = nn.Linear(64, WIDTH, dtype=DTYPE)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.leave = nn.Linear(WIDTH, 64, dtype=DTYPE)

    def forward(self, x, repeats=1):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, repeats)
        return self.leave(x)


class Wide(nn.Module):
    """Few layers of one matrix each, of `side` squared."""

    def __init__(self, side, count=3):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(side, side, bias=False, dtype=DTYPE) for _ in range(count))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class ScaledFp8(nn.Module):
    """A linear layer of float8 weights, multiplied as they are: transposed for the call, as cuBLAS wants them."""

    def __init__(self, width, outputs):
        super().__init__()
        weight = torch.empty(outputs, width).normal_(0, width**-0.5).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        given = x.to(torch.float8_e4m3fn)
        scales = {"scale_a": self.scale, "scale_b": self.scale}
        return torch._scaled_mm(given, self.weight.t(), **scales, out_dtype=torch.bfloat16)


class Fp8Model(nn.Module):
    def __init__(self, width, count=6):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(ScaledFp8(width, 2 * width), ScaledFp8(2 * width, width)) for _ in range(count)
        )

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def made(build, *arguments):
    """The module that `build` makes, with its weights on the host."""
    with torch.device(device.name):
        return build(*arguments).requires_grad_(False).eval().cpu()


def total_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def resident_output(model, x, **options):
    """What the model gives with all of it on the device; it goes back to the host."""
    model.to(device.name)
    output = model(x, **options).cpu()
    model.to("cpu")
    return output


def noise(*shape, seed=1):
    """The same numbers in every process, on the device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device.name, DTYPE)
