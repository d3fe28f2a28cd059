"""Runs full-size models on `meta`, where nothing is computed, and tells how discovery's layers are used.

    python -m bench.full_size_walk [--tree COMFYUI] [--json] [NAME ...]

A layer is a good unit only if the model calls it, and if its parameters are not read outside that call. This answers
both for the app's own forwards in their real sizes, in seconds: shapes flow, bytes do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import full_size
from offload_core.runtime.layers.discovery import Discovery, discover

Run = Callable[[nn.Module], Any]


def _image(channels: int, context: tuple[int, int], **more: Any) -> Run:
    def run(model: nn.Module) -> Any:
        given = {name: _tensor(value) if isinstance(value, tuple) else value for name, value in more.items()}
        return model(_tensor((1, channels, 32, 32)), _tensor((1,)), context=_tensor((1, *context)), **given)

    return run


def _video(channels: int, context: tuple[int, int], **more: Any) -> Run:
    def run(model: nn.Module) -> Any:
        given = {name: _tensor(value) if isinstance(value, tuple) else value for name, value in more.items()}
        return model(_tensor((1, channels, 3, 16, 16)), _tensor((1,)), context=_tensor((1, *context)), **given)

    return run


def _tokens(model: nn.Module) -> Any:
    return model.transformer(torch.zeros(1, 77, dtype=torch.long, device="meta"), attention_mask=None)


def _pixels(size: int) -> Run:
    return lambda model: model(_tensor((1, 3, size, size)))


def _vae(*pixels: int) -> Run:
    def run(model: nn.Module) -> Any:
        latent = model.encode(_tensor((1, 3, *pixels)))
        latent = latent[0] if isinstance(latent, tuple) else latent
        if not hasattr(model, "decode_output_shape"):
            return model.decode(latent)
        # LTX's writes its frames to the host unless it is told where to.
        return model.decode(latent, output_buffer=_tensor(tuple(model.decode_output_shape(latent.shape))))

    return run


def _tensor(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


RUNS: dict[str, Run] = {
    "flux_dev": _image(16, (64, 4096), y=(1, 768), guidance=(1,)),
    "flux2_dev": _image(128, (64, 15360), guidance=(1,)),
    "wan21_1b": _video(16, (64, 4096)),
    "wan22_14b": _video(16, (64, 4096)),
    "wan21_14b_i2v": _video(36, (64, 4096), clip_fea=(1, 257, 1280)),
    "wan22_5b": _video(48, (64, 4096)),
    "ltxv_2b": _video(128, (64, 4096), attention_mask=None),
    "ltxv_13b": _video(128, (64, 4096), attention_mask=None),
    "qwen_image": _video(16, (64, 3584)),
    "sd15": _image(4, (77, 768)),
    "sdxl": _image(4, (77, 2048), y=(1, 2816)),
    "clip_l": _tokens,
    "clip_g": _tokens,
    "t5xxl": _tokens,
    "umt5xxl": _tokens,
    "mistral3_24b": _tokens,
    "clip_vision_h": _pixels(224),
    "siglip_384": _pixels(384),
    "vae_sd": _vae(64, 64),
    "vae_flux": _vae(64, 64),
    "vae_wan21": _vae(5, 64, 64),
    "vae_wan22": _vae(5, 64, 64),
    "vae_ltx_v0": _vae(9, 64, 64),
    "vae_ltx_v2": _vae(9, 64, 64),
}


class _Watch(TorchDispatchMode):
    """Notes every layer called, in order, and every use of a layer's parameter outside its call."""

    def __init__(self, model: nn.Module, found: Discovery) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.outside: set[str] = set()
        self._active: list[str] = []
        self._owner: dict[int, str] = {}
        modules = dict(model.named_modules())
        for layer in found.layers:
            for parameter in modules[layer.name].parameters():
                self._owner[id(parameter)] = layer.name
            self._record(modules[layer.name], layer.name)
        for table in found.tables:
            self._owner.pop(id(modules[table.name].weight), None)

    def _record(self, module: nn.Module, name: str) -> None:
        forward = module.forward

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self._active.append(name)
            try:
                return forward(*args, **kwargs)
            finally:
                self._active.pop()

        module.forward = recorded  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            owner = self._owner.get(id(leaf))
            if owner is not None and owner not in self._active:
                self.outside.add(owner)
        return func(*args, **(kwargs or {}))


def walk(name: str) -> dict[str, Any]:
    """How one pass of the model `name` uses the layers that discovery finds in it."""
    found = discover(full_size.build(name))
    with torch.device("meta"):
        model = full_size.BUILDERS[name]()
    watch = _Watch(model, found)
    with torch.no_grad(), watch:
        RUNS[name](model)
    names = [layer.name for layer in found.layers]
    return {
        "layers": len(names),
        "visits": len(watch.calls),
        "never_called": sorted(set(names) - set(watch.calls)),
        "used_outside": sorted(watch.outside),
        "jumps": _jumps([names[index] for index in found.order], watch.calls),
    }


def _jumps(guess: list[str], calls: list[str]) -> int:
    """How often a call is not that of the next layer of the guess: what a first pass cannot look ahead to."""
    place = {name: index for index, name in enumerate(guess)}
    steps = zip([guess[-1], *calls], calls)
    return sum(1 for before, now in steps if place[now] != (place[before] + 1) % len(guess))


def _have_memory() -> None:
    """The app cuts its attention by free memory, which `meta` cannot tell. In this process it has enough."""
    import comfy.model_management

    def plenty(*args: Any, **kwargs: Any) -> Any:
        wants_both = args[1:] == (True,) or kwargs.get("torch_free_too")
        return (1 << 40, 1 << 40) if wants_both else 1 << 40

    comfy.model_management.get_free_memory = plenty
    comfy.model_management.get_total_memory = plenty


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    arguments = parser.parse_args(words)
    full_size.use_app(arguments.tree or full_size.default_tree())
    _have_memory()
    results: dict[str, Any] = {}
    for name in arguments.names or RUNS:
        results[name] = walk(name)
        if not arguments.json:
            print(f"{name:16s} {results[name]}", flush=True)
    if arguments.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
