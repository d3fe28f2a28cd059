"""The part `peers`: the steady step of one model of diffusers under our engine, diffusers' own offloading, accelerate.

    python -m bench.kit.peers [--device cuda|sim|cpu] [--size full|tiny] [--pixels 1024] [--out ROWS.jsonl]

The model is diffusers' Flux with noise for weights. In order: resident, which is the compute alone; accelerate, with
none of the blocks on the device (`cpu_offload`) and with a share of the model's bytes (`dispatch_model`); diffusers'
group offloading by block, with streams, which keeps no share; then ours, in as much memory as diffusers had reserved,
and with the same shares. Each runs `STEPS` steps after one to warm up; outputs are compared with the resident one's.
Ours comes last, because it page-locks the weights where they are. Diffusers points parameters from one device to
another, which torch does not allow for an out-of-tree device: on the simulated one that row is not run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.budgets import load_at
from bench.device import KINDS, Device, DriverMemory
from bench.kit.rows import Rows, open_rows

SIZES: dict[str, dict[str, Any]] = {
    "full": {"guidance_embeds": True},
    "half": {"guidance_embeds": True, "num_layers": 10, "num_single_layers": 19},
    "tiny": {
        **{"guidance_embeds": True, "num_layers": 2, "num_single_layers": 4, "num_attention_heads": 2},
        **{"attention_head_dim": 128, "joint_attention_dim": 256, "pooled_projection_dim": 768},
    },
}
STEPS = 3
FRACTIONS = (0.5, 0.25, 0.75)
"""Of the model's bytes. The first is measured at all sizes of the picture, the others at the first size."""


class Peers:
    """The model, its inputs, and the resident output."""

    def __init__(self, device: Device, size: str, pixels: int, rows: Rows) -> None:
        self.device, self.rows, self.pixels = device, rows, pixels
        self.driver = DriverMemory(device)
        self.model = build(size, device)
        self.inputs = make_inputs(self.model.config, pixels, device.name)
        self.bytes = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        self.link = self._link()
        self.expected: torch.Tensor | None = None
        self.compute_s: float | None = None

    def _link(self) -> float | None:
        if self.device.module is None:
            return None
        from offload_core.runtime.device.accelerator_port import AcceleratorPort

        return self.device.link_bytes_per_s(AcceleratorPort(self.device.name), 64 << 20)

    def step(self) -> torch.Tensor:
        return self.model(**self.inputs, return_dict=False)[0]

    def measure(self, way: str, **facts: Any) -> int | None:
        """Run, compare, write the row. The bytes that torch had reserved at most."""
        got = self.step().cpu()
        step_s = self.device.seconds(self.step, STEPS)
        if self.expected is None:
            self.expected, self.compute_s = got, step_s
        row = {"way": way, "pixels": self.pixels, "model_bytes": self.bytes, "step_s": step_s, **facts}
        if self.link is not None and self.compute_s is not None:
            copy_s = self.bytes / self.link
            row |= {"compute_s": self.compute_s, "copy_all_s": copy_s, "r": self.compute_s / copy_s}
            copied_s = facts.get("streamed_bytes_per_step", self.bytes) / self.link
            row |= {"bound_s": max(copied_s, self.compute_s), "over_bound": step_s / max(copied_s, self.compute_s)}
        peaks = self.device.peaks()
        same = torch.equal(got, self.expected)
        self.rows.write(f"{way}, {self.pixels}", identical=same, driver_used_bytes=self.driver.used(), **row, **peaks)
        return peaks["peak_reserved_bytes"]

    # ------------------------------------------------------------------ the ways

    def resident(self) -> int | None:
        self.device.fresh_memory()
        self.model.to(self.device.name)
        try:
            return self.measure("resident")
        finally:
            self.model.to("cpu")

    def diffusers(self) -> int | None:
        from diffusers.hooks import apply_group_offloading
        from diffusers.hooks.group_offloading import _GROUP_OFFLOADING
        from diffusers.hooks.hooks import HookRegistry

        places = (torch.device(self.device.name), torch.device("cpu"))
        self.device.fresh_memory()
        begun = time.perf_counter()
        streams = self.device.module is not None
        options = {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": streams}
        apply_group_offloading(self.model, *places, **options)
        try:
            return self.measure("diffusers", attach_s=time.perf_counter() - begun)
        finally:
            for module in self.model.modules():
                HookRegistry.check_if_exists_or_initialize(module).remove_hook(_GROUP_OFFLOADING, recurse=False)
            self.model.to("cpu")

    def accelerate(self) -> int | None:
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_submodules

        self.device.fresh_memory()
        begun = time.perf_counter()
        cpu_offload(self.model, execution_device=torch.device(self.device.name))
        try:
            return self.measure("accelerate", attach_s=time.perf_counter() - begun)
        finally:
            remove_hook_from_submodules(self.model)

    def accelerate_partly(self, fraction: float) -> int | None:
        """Blocks in their order stay on the device as far as the share goes; hooks fetch the others for each call."""
        from accelerate import dispatch_model
        from accelerate.hooks import remove_hook_from_submodules

        self.device.fresh_memory()
        begun = time.perf_counter()
        places, kept = {}, 0
        for name, nbytes in units_of(self.model):
            stays = kept + nbytes <= fraction * self.bytes
            kept += nbytes if stays else 0
            places[name] = f"{self.device.name}:0" if stays else "cpu"
        try:
            dispatch_model(self.model, places, main_device=f"{self.device.name}:0", force_hooks=True)
            facts = {"attach_s": time.perf_counter() - begun, "budget_bytes": int(fraction * self.bytes)}
            facts["streamed_bytes_per_step"] = self.bytes - kept
            return self.measure(f"accelerate {fraction:.0%}", **facts)
        finally:
            remove_hook_from_submodules(self.model)
            vars(self.model).pop("hf_device_map", None)
            self.model.to("cpu")

    def attached(self) -> Any:
        from offload_core.runtime import attach

        self.device.fresh_memory()
        small = {"min_layer_bytes": 1 << 16} if self.bytes < 1 << 30 else {}
        attachment = attach(self.model, device=self.device.name, passes=1000, h2d_bytes_per_s=self.link, **small)
        self.rows.write("attached", host_bytes=attachment.controller.host_bytes())
        return attachment

    def ours(self, attachment: Any, name: str, budget_bytes: int) -> None:
        def step() -> None:
            self.step()
            self.device.synchronize()

        attachment.controller.unload()
        self.device.fresh_memory()
        self.measure(name, **load_at(attachment.controller, budget_bytes, self.link, step))


def units_of(model: Any) -> Iterator[tuple[str, int]]:
    """Names and bytes of the blocks and of what stands beside them, in their order."""
    for name, child in model.named_children():
        parts = child.named_children() if isinstance(child, torch.nn.ModuleList) else [("", child)]
        for part, module in parts:
            nbytes = sum(weight.numel() * weight.element_size() for weight in module.parameters())
            yield f"{name}.{part}".rstrip("."), nbytes


def build(size: str, device: Device) -> Any:
    """Diffusers' Flux on the CPU in bfloat16, filled with noise that was drawn on the device."""
    from diffusers import FluxTransformer2DModel

    from bench.full_size import give_memory

    with torch.device("meta"):
        model = FluxTransformer2DModel(**SIZES[size])
    give_memory(model, torch.bfloat16)
    drawn_on = "cuda" if device.kind == "cuda" else "cpu"
    generator = torch.Generator(drawn_on).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.empty(weight.shape, dtype=torch.float32, device=drawn_on)
            noise.normal_(0.0, 0.5 / max(1, weight[0].numel()) ** 0.5, generator=generator)
            weight.copy_(noise + 1.0 if weight.ndim == 1 and name.endswith("weight") else noise)
    return model.requires_grad_(False).eval()


def make_inputs(config: Any, pixels: int, device: str) -> dict[str, Any]:
    """What a step of the pipeline hands to the model, for a prompt of 512 tokens (32 for a tiny model)."""
    generator = torch.Generator().manual_seed(1)
    side, tokens = pixels // 16, 512 if config.joint_attention_dim > 1024 else 32

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    return {
        "hidden_states": noise(1, side * side, config.in_channels),
        "encoder_hidden_states": noise(1, tokens, config.joint_attention_dim),
        "pooled_projections": noise(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.7], device=device, dtype=torch.bfloat16),
        "guidance": torch.tensor([3.5], device=device, dtype=torch.bfloat16),
        "img_ids": ids.to(device, torch.bfloat16),
        "txt_ids": torch.zeros(tokens, 3, device=device, dtype=torch.bfloat16),
    }


def run(peers: Peers, shares: Sequence[float]) -> bool:
    """Every way, each for itself. `shares` of the model's bytes that stay. Whether ours and the resident one ran."""
    failed = []

    def attempt(name: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except Exception as error:  # one way that fails must not take the others' figures with it
            failed.append(name)
            peers.rows.write(f"{name} failed", error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            return None

    with torch.no_grad():
        attempt("resident", peers.resident)
        attempt("accelerate", peers.accelerate)
        for share in shares:
            attempt(f"accelerate {share:.0%}", lambda share=share: peers.accelerate_partly(share))
        reserved = None
        if peers.device.simulated:
            peers.rows.write("diffusers not run", reason="torch lets no out-of-tree device be pointed to")
        else:
            reserved = attempt("diffusers", peers.diffusers)
        attachment = attempt("ours, attached", peers.attached)
        if attachment is not None:
            budgets = {f"ours {share:.0%}": int(share * peers.bytes) for share in shares}
            budgets |= {} if reserved is None else {"ours in diffusers' memory": reserved}
            for name, budget in budgets.items():
                attempt(name, lambda name=name, budget=budget: peers.ours(attachment, name, budget))
            attachment.detach()
    return not [name for name in failed if name.startswith(("resident", "ours"))]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=KINDS, default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--pixels", default="1024", help="height and width of the picture; several with commas")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    arguments = parser.parse_args(words)
    device = Device(arguments.device)
    rows = open_rows("peers", arguments.out)
    if reason := device.why_not():
        rows.write("not run", reason=reason)
        return 2
    # Before the simulated device is there, which diffusers would take for the one whose name it has.
    importlib.import_module("diffusers.models.transformers.transformer_flux")
    device.open()
    sizes = [int(word) for word in arguments.pixels.split(",")]
    peers = Peers(device, arguments.size, sizes[0], rows)
    ok = run(peers, FRACTIONS)
    for pixels in sizes[1:]:
        peers.pixels, peers.expected = pixels, None
        peers.inputs = make_inputs(peers.model.config, pixels, device.name)
        ok = run(peers, FRACTIONS[:1]) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
