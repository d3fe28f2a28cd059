"""Files that change a model: LoRA and everything the app treats like one, made for a model of tiny_models.

`PatchFiles.make` puts a file into the loras folder and `close` takes all of them away again: the other files there are
the test kit's. The kinds are the app's weight adapters and its plain differences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import safe_open
from safetensors.torch import save

from tests.support import tiny_models
from tests.support.devkit import paths
from tests.support.model_files import ModelFiles

RANK = 4
Random = Callable[..., torch.Tensor]


def lora(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    down = random(RANK, *shape[1:])
    up = random(shape[0], RANK, *([1] * (len(shape) - 2)))
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}


def dora(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    return {**lora(name, shape, random), f"{name}.dora_scale": random(shape[0], 1).abs() + 0.5}


def loha(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    halves = {f"{name}.hada_w{half}_a": random(shape[0], RANK) * 4 for half in (1, 2)}
    return halves | {f"{name}.hada_w{half}_b": random(RANK, shape[1]) * 4 for half in (1, 2)}


def lokr(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    return {f"{name}.lokr_w1": random(2, 2), f"{name}.lokr_w2": random(shape[0] // 2, shape[1] // 2)}


def oft(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    """Rotations of the output, in blocks of 8 rows."""
    return {f"{name}.oft_blocks": random(shape[0] // 8, 8, 8) * 4, f"{name}.alpha": torch.tensor(2.0)}


def boft(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    """Rotations in two stages, in blocks of 4 rows."""
    return {f"{name}.oft_blocks": random(2, shape[0] // 4, 4, 4) * 4, f"{name}.alpha": torch.tensor(2.0)}


def glora(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    """A change made from the weight itself, and one beside it."""
    wide, high = shape[1], shape[0]
    shapes = {"a1": (wide, RANK), "a2": (RANK, wide), "b1": (high, RANK), "b2": (RANK, wide)}
    return {f"{name}.{part}.weight": random(*size) for part, size in shapes.items()}


def diff(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    return {f"{name}.diff": random(*shape) / 4, f"{name}.diff_b": random(shape[0])}


def set_weight(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    return {f"{name}.set_weight": random(*shape) / 4}


def wider(name: str, shape: list[int], random: Random) -> dict[str, torch.Tensor]:
    """A LoRA over an input that it widens, as the control LoRAs of Flux do."""
    wide = [shape[0], shape[1] + 64]
    return {**lora(name, wide, random), f"{name}.reshape_weight": torch.tensor(wide)}


KINDS = {kind.__name__: kind for kind in (lora, dora, loha, lokr, oft, boft, glora, diff, set_weight, wider)}


class PatchFiles:
    """Files that change models, for as long as it lives."""

    def __init__(self) -> None:
        self._made: dict[tuple, str] = {}
        self._files = ModelFiles()

    def make(self, kind: str, model: str, where: tuple[str, ...], prefix: str = "diffusion_model.") -> str:
        """The name of a file that changes the weights of `model`, of 2 or more dims, named like one of `where`."""
        key = (kind, model, where, prefix)
        if key not in self._made:
            name = f"test_{len(self._made)}_{kind}_{model}.safetensors"
            self._made[key] = self._files.put("loras", name, save(_changes(kind, model, where, prefix)))
        return self._made[key]

    def close(self) -> None:
        self._files.close()
        self._made.clear()


def _changes(kind: str, model: str, where: tuple[str, ...], prefix: str) -> dict[str, torch.Tensor]:
    tiny_models.ensure(model)
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    tensors: dict[str, torch.Tensor] = {}
    with safe_open(paths.MODELS / tiny_models.RECIPES[model].path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dict
            shape = file.get_slice(key).get_shape()
            if key.endswith(".weight") and len(shape) >= 2 and any(part in key for part in where):
                own = key.removesuffix(".weight").removeprefix("model.diffusion_model.")
                tensors.update(KINDS[kind](prefix + own, shape, random))
    if not tensors:
        raise ValueError(f"{model} has no weight named like {where}")
    return tensors
