"""The modules inside torch's wrappers: compiled and parametrised modules.

A compiled wrapper calls the module inside it through the forward of that module's instance, so also through ours. So a
layer is the inner module, under its name without the wrapper, whether or not it is wrapped at the time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; `module` itself if it is not compiled."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # not imported: nothing is compiled
    compiled = getattr(dynamo, "OptimizedModule", None)
    while compiled is not None and isinstance(module, compiled):
        module = module._modules["_orig_mod"]
    return module


def plain_name(name: str) -> str:
    """A module's or tensor's name without compiled wrappers."""
    return ".".join(word for word in name.split(".") if word != "_orig_mod")


def called_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children that may be layers, as (name, module): not those that compute a parametrised module's weights."""
    parametrised = parametrize.is_parametrized(module)
    for name, child in module._modules.items():
        if child is not None and not (parametrised and name == "parametrizations"):
            yield name, child
