"""Streaming while gradients are recorded: autograd keeps weights of the forward for the backward, a ring does not.

Each visit of a streamed layer then gets memory of its own, which autograd keeps as long as it needs it: training takes
as much memory as without offload, and is correct. Knows nothing about who trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .controller import OffloadController


def no_ring_while_gradients_are_recorded(controller: OffloadController) -> None:
    """Do without ring and look-ahead while gradients are recorded. Only for components whose inference records none."""
    controller.may_use_ring_by(_may_use_ring)


def _may_use_ring(controller: OffloadController) -> bool:
    if not torch.is_grad_enabled():
        return controller.may_use_ring()
    if any(layer.valid and not layer.keep_resident for layer in controller.layers):
        controller.prefetcher.give_up_ring()  # look-ahead has copied layers for this pass
    return False
