"""What a LoRA of some strength does to a toy model: every weight of every block, changed as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from offload_core.runtime import Change


def strengthened(
    blocks: Iterable[nn.Module], factor: float, arithmetic: Callable[[], None] = lambda: None, name: str = "blocks"
) -> dict[str, Change]:
    """Every `weight` of `blocks`, which hang in the model as the list `name`, times `factor`. `arithmetic` is called
    for each when it is changed: to count the device's time, on a clock of numbers."""

    def changed(block: nn.Module) -> torch.Tensor:
        arithmetic()
        return block.weight.detach() * factor

    return {f"{name}.{place}.weight": Change(factor, partial(changed, block)) for place, block in enumerate(blocks)}
