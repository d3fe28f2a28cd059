"""How a family is described: how to build it in two sizes, and what to give it. Nothing of the app is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Settings = dict[str, Any]
Build = Callable[[str, bool], nn.Module]
"""(device, tiny) -> the model as the app makes it."""
KINDS = ("diffusion", "encoder", "vae", "other")


@dataclass(frozen=True)
class Drawn:
    """A tensor that is drawn when a model is run: `kind` is noise, integers (below `value`) or constant (`value`)."""

    shape: tuple[int, ...]
    kind: str
    value: float = 0.0
    dtype: torch.dtype | None = None


def noise(*shape: int, dtype: torch.dtype | None = None) -> Drawn:
    return Drawn(shape, "noise", dtype=dtype)


def integers(*shape: int, below: int) -> Drawn:
    return Drawn(shape, "integers", below, torch.long)


def constant(value: float, *shape: int) -> Drawn:
    """`value` in 32 bits; without a shape, one of it."""
    return Drawn(shape or (1,), "constant", value, torch.float32)


def ones(*shape: int, dtype: torch.dtype | None = None) -> Drawn:
    return Drawn(shape, "constant", 1.0, dtype)


class Draw:
    """Makes tensors of what is `Drawn`, on a device; the same ones for the same seed. Floats are `dtype` by default."""

    def __init__(self, seed: int, device: str, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device
        self.dtype = dtype

    def __call__(self, wanted: Any) -> Any:
        """`wanted` with every `Drawn` in it, however deep, replaced by its tensor."""
        if isinstance(wanted, Drawn):
            return self._tensor(wanted).to(self.device)
        if isinstance(wanted, (list, tuple)):
            return type(wanted)(self(part) for part in wanted)
        if isinstance(wanted, dict):
            return {name: self(part) for name, part in wanted.items()}
        return wanted

    def _tensor(self, wanted: Drawn) -> torch.Tensor:
        if wanted.kind == "noise":
            return torch.randn(wanted.shape, generator=self.generator).to(wanted.dtype or self.dtype)
        if wanted.kind == "integers":
            return torch.randint(0, int(wanted.value), wanted.shape, generator=self.generator)
        return torch.full(wanted.shape, wanted.value, dtype=wanted.dtype or self.dtype)


@dataclass(frozen=True)
class Family:
    """One row of the walk."""

    name: str
    kind: str
    build: Build
    run: Callable[[nn.Module, Draw], Any]
    entry_points: Callable[[nn.Module], list[tuple[nn.Module, str]]] | None = None
    """(module, method) whose call is a pass; None: the model's own forward."""
    app_class: str = ""
    """Of the app's `supported_models`; empty for what is not in that list."""
    dtype: torch.dtype = torch.bfloat16
    tiny_dtype: torch.dtype | None = None
    """Of the tiny form, where a CPU cannot compute in `dtype`."""
    one_road: bool = True
    """Whether every pass visits the same layers in the same order. Not so where encode and decode take turns."""
    scale: float | None = None
    """By how much the least sizes of discovery are lowered for the tiny form; None: as the bytes of the forms are."""
    no_tiny: str = ""
    """Why there is no tiny form, if there is none."""


def sizes(*bases: Settings, **changes: Any) -> Settings:
    """The settings of `bases`, later ones first, with `changes`."""
    merged: Settings = {}
    for base in bases:
        merged.update(base)
    merged.update(changes)
    return merged


def no_run(model: nn.Module, draw: Draw) -> Any:
    raise NotImplementedError("this family has no tiny form")


def diffusion(
    name: str,
    app_class: str,
    full: Settings,
    tiny: Settings,
    inputs: Settings,
    *,
    weights: Callable[[], dict[str, torch.Tensor]] | None = None,
    text: tuple[Drawn, ...] = (),
    **more: Any,
) -> Family:
    """A network inside the app's own class for it. `tiny` changes `full`; `inputs` are for the tiny form's forward.

    `weights` gives what the app's class reads sizes or values from. `text` is what the app has the network prepare
    before the steps, once for each conditioning; then a run is two conditionings and two steps.
    """
    dtype = more.get("dtype", torch.bfloat16)

    def build(device: str, small: bool) -> nn.Module:
        import comfy.supported_models

        settings = sizes(full, tiny) if small else sizes(full)
        config = getattr(comfy.supported_models, app_class)(dict(settings))
        config.unet_config.update(settings)  # over what the class sets by itself, which is of the full size
        config.set_inference_dtype(dtype, None)
        return config.get_model(weights() if weights else {}, "", device=device)

    def run(model: nn.Module, draw: Draw) -> Any:
        network = model.diffusion_model
        if not text:
            return network(**draw(inputs))
        contexts = [network.preprocess_text_embeds(*draw(text)) for _ in range(2)]
        return [network(**draw({**inputs, "context": context})) for context in contexts]

    def entry_points(model: nn.Module) -> list[tuple[nn.Module, str]]:
        return [(model.diffusion_model, "forward")]

    return Family(name, "diffusion", build, run, entry_points, app_class, one_road=not text, **more)
