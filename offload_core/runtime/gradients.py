"""What to do when somebody trains: autograd keeps weights of the forward for the backward, and a ring does not.

While gradients are recorded, each visit of a streamed layer gets memory of its own, which autograd holds for as long as
it needs it: training then takes the memory that it takes without us, and is right. Knows nothing about who trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .controller import OffloadController


def no_ring_while_gradients_are_recorded(controller: OffloadController) -> None:
    """From now on. For those whose inference records none: else it would do without the ring and look-ahead, too."""
    controller.may_use_ring_by(_may_use_ring)


def _may_use_ring(controller: OffloadController) -> bool:
    if not torch.is_grad_enabled():
        return controller.may_use_ring()
    if any(layer.valid and not layer.keep_resident for layer in controller.layers):
        controller.prefetcher.give_up_ring()  # nor what look-ahead has brought for this pass
    return False
