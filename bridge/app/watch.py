"""Interposes methods of an app model while its component is attached or loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...offload_core.runtime.engine.interpose import Interposed


class Before(Interposed):
    """Calls `first` with the arguments before each call of the method. `first` may remove it."""

    __slots__ = ("first",)

    def __init__(self, model: torch.nn.Module, method: str, first: Callable[..., None]) -> None:
        super().__init__(model, method)
        self.first = first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.call
        self.first(*args, **kwargs)
        return call(*args, **kwargs)
