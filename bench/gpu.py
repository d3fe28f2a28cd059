"""Step time of a full-size diffusion transformer: resident, the app's own partial load, ours at several budgets.

    python -m bench.gpu [--tree COMFYUI] [--device cuda|sim|cpu] [--size full|half|tiny|flux2-pair]
                        [--pixels 1024,1536,2048] [--out ROWS.jsonl]

The model is Flux out of the app's own classes, filled with noise here, so that nothing is downloaded; every way of
running it gets the same weights and the same inputs, and its output is compared bit for bit with the resident one. In
the same run the two bounds are measured: what the link copies per second from page-locked memory, and the resident
step, which is the compute alone. No way can be faster than the larger of compute and copies. `r` is the compute over
the time that copying the whole model takes: below one copies are the longer, above one they can be hidden.

At a budget of B bytes ours keeps ring, residents and loose tensors within B. The app's partial load is given B for
weights alone; its staging buffers come on top, which favours it. What each had reserved is in its row. Residents are
chosen twice: first without knowing the times, then from the times measured in the first passes, as in real use.

Each row is written when it is known (`bench/kit/rows.py`). The app comes before ours: once our engine has page-locked
the weights, the app's own page-locking of the same memory may be refused, and it would look slower than it is.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import full_size
from bench.budgets import load_at
from bench.device import KINDS, Device, DriverMemory, memory_of_machine
from bench.kit.rows import Rows, open_rows

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "half": {"depth": 10, "depth_single_blocks": 19},
    "tiny": {"hidden_size": 256, "num_heads": 2, "depth": 4, "depth_single_blocks": 8, "context_in_dim": 256},
}
FLUX2_SIZES: dict[str, dict[str, Any]] = {
    "flux2-pair": {"depth": 2, "depth_single_blocks": 2},
    "flux2-tiny": {
        **{"hidden_size": 256, "num_heads": 2, "context_in_dim": 256},
        **{"depth": 2, "depth_single_blocks": 2},
    },
}
"""Flux 2 in its real width, of which no more than this is kept: its layers are over 1 GiB."""
FRACTIONS = (0.5, 0.25, 0.75)
"""Of the model's bytes. The first is measured at all sizes of the picture, the others at the first size."""
WARM_UP_STEPS = 3


class Bench:
    """One model, inputs of each size, and the resident outputs that everything is compared with."""

    def __init__(self, device: Device, arguments: argparse.Namespace, rows: Rows) -> None:
        self.device, self.rows = device, rows
        self.driver = DriverMemory(device)
        self.pixels: list[int] = arguments.pixels
        self.steps, self.rounds, self.row_seconds = arguments.steps, arguments.rounds, arguments.row_seconds
        self.name = arguments.size if arguments.size in FLUX2_SIZES else f"flux {arguments.size}"
        self.model = build(arguments.size, device.name)
        self.inputs = {pixels: make_inputs(arguments.size, pixels, device.name) for pixels in self.pixels}
        self.total_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.link = self._link_bytes_per_s()
        self.expected: dict[int, torch.Tensor] = {}
        self.compute_s: dict[int, float] = {}
        self.ok = True
        """Every row has the resident bits, and every way could be measured."""

    def step(self, pixels: int) -> torch.Tensor:
        with torch.inference_mode():  # as the app samples
            return self.model.diffusion_model(**self.inputs[pixels])

    def measure(self, name: str, pixels: int, **facts: Any) -> None:
        """Warm up, check the output, time it, write the row. The model is ready to run on the device."""
        for _ in range(WARM_UP_STEPS):
            output = self.step(pixels)
        got = output.cpu()
        samples: list[float] = []
        begun = time.perf_counter()
        while not samples or (len(samples) < self.rounds and time.perf_counter() - begun < self.row_seconds):
            samples.append(self.device.seconds(lambda: self.step(pixels), self.steps))
        step_s = statistics.median(samples)
        self.compute_s.setdefault(pixels, step_s)  # the resident row comes first
        identical = torch.equal(got, self.expected.setdefault(pixels, got))
        finite = bool(torch.isfinite(got).all())
        self.ok = self.ok and identical and finite
        self.rows.write(
            f"{name}, {pixels}",
            **{"way": name, "model": self.name, "model_bytes": self.total_bytes, "pixels": pixels},
            **{"step_s": step_s, "step_s_all": samples, "identical": identical, "finite": finite},
            **self._bounds(pixels, step_s, facts.get("streamed_bytes_per_step")),
            **facts,
            **self.device.peaks(),
            driver_used_bytes=self.driver.used(),
            **pinned_by_app(),
        )

    def _bounds(self, pixels: int, step_s: float, streamed_bytes: int | None) -> dict[str, Any]:
        """What the step is measured against, in seconds, and `r`."""
        compute_s = self.compute_s[pixels]
        found = {"compute_s": compute_s, "copy_all_s": self.total_bytes / self.link, "link_bytes_per_s": self.link}
        found["r"] = compute_s / found["copy_all_s"]
        if streamed_bytes is not None:
            found["copy_s"] = streamed_bytes / self.link
            found["bound_s"] = max(found["copy_s"], compute_s)
            found["over_bound"] = step_s / found["bound_s"]
        return found

    def _link_bytes_per_s(self) -> float:
        """What the copy lane does with page-locked memory, by the engine's own port."""
        if self.device.module is None:
            return 1e9  # nothing is copied on the CPU
        from offload_core.runtime.device.accelerator_port import AcceleratorPort

        port = AcceleratorPort(self.device.name)
        try:
            return self.device.link_bytes_per_s(port, (1 << 30) if self.device.kind == "cuda" else (16 << 20))
        finally:
            port.close()

    def at(self, fraction: float) -> list[int]:
        """The sizes of the picture that are measured at this share of the model."""
        return self.pixels if fraction == FRACTIONS[0] else self.pixels[:1]

    # ------------------------------------------------------------------ the ways

    def resident(self) -> None:
        self.device.fresh_memory()
        self.model.to(self.device.name)
        try:
            for pixels in self.pixels:
                self.measure("resident", pixels, budget_bytes=self.total_bytes)
        finally:
            self.model.to("cpu")

    def app(self, fraction: float) -> None:
        """The app's classic partial load: what does not fit the budget is cast to the device leaf by leaf."""
        from comfy.model_patcher import ModelPatcher

        budget = int(fraction * self.total_bytes)
        self.device.fresh_memory()
        load_device = torch.device(self.device.name, 0)
        patcher = ModelPatcher(self.model, load_device=load_device, offload_device=torch.device("cpu"))
        try:
            patcher.partially_load(load_device, budget)
            loaded = patcher.loaded_size()
            facts = {
                "budget_bytes": budget,
                "loaded_bytes": loaded,
                "streamed_bytes_per_step": self.total_bytes - loaded,
            }
            for pixels in self.at(fraction):
                self.measure(f"app partial load {fraction:.0%}", pixels, **facts)
        finally:
            patcher.detach()
            release_app_buffers()

    def attached(self) -> Any:
        """The model under layerwise offload. Page-locking 24 GB takes its time: once is enough for all budgets."""
        from offload_core.runtime import attach

        entries = [(self.model.diffusion_model, "forward")]
        options = {"passes": 1000, "h2d_bytes_per_s": self.link, "entries": entries, **small_layers(self.model)}
        attachment = attach(self.model, device=self.device.name, **options)
        host = attachment.controller.host_bytes()
        self.rows.write("attached", host_bytes=host, **memory_of_machine(), **pinned_by_app())
        return attachment

    def ours(self, attachment: Any, fraction: float) -> None:
        for pixels in self.at(fraction):
            self._ours(attachment.controller, fraction, pixels)

    def _ours(self, controller: Any, fraction: float, pixels: int) -> None:
        controller.unload()
        self.device.fresh_memory()

        def step() -> None:
            self.step(pixels)
            self.device.synchronize()

        facts = load_at(controller, int(fraction * self.total_bytes), self.link, step)
        before = controller.counters.as_dict()
        self.measure(f"ours {fraction:.0%}", pixels, **facts)
        counted = {name: value - before[name] for name, value in controller.counters.as_dict().items()}
        self.rows.write(f"counters of ours {fraction:.0%}, {pixels}", seconds=0.0, **counted)


def pinned_by_app() -> dict[str, int]:
    """The app's own account of the memory it has page-locked, in bytes."""
    import comfy.model_management as management

    names = ("TOTAL_PINNED_MEMORY", "MAX_PINNED_MEMORY")
    return {name.lower(): int(getattr(management, name, 0)) for name in names}


def build(size: str, device: str) -> nn.Module:
    """Flux in the app's BaseModel, on the CPU, filled with noise that was drawn on the device."""
    with torch.device("meta"):
        model, config = flux2_model(size) if size in FLUX2_SIZES else flux_model(size)
    full_size.give_memory(model, torch.bfloat16)
    generator = torch.Generator(device if device == "cuda" else "cpu").manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            noise = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
            noise.normal_(0.0, 0.5 / max(1, parameter[0].numel()) ** 0.5, generator=generator)
            if parameter.ndim == 1 and name.endswith(("scale", "norm.weight")):
                noise += 1.0
            parameter.copy_(noise)
    fresh_buffers(model, config)
    return model.requires_grad_(False).eval()


def flux_model(size: str) -> tuple[Any, Any]:
    """The app's model, and the configuration it was made from."""
    import comfy.supported_models

    return _model_of(comfy.supported_models.Flux, {"image_model": "flux", **full_size.flux_params(**SIZES[size])})


def flux2_model(size: str) -> tuple[Any, Any]:
    import comfy.supported_models

    params = full_size.flux2_params(**FLUX2_SIZES[size])
    return _model_of(comfy.supported_models.Flux2, {"image_model": "flux2", **params})


def _model_of(kind: Any, params: dict[str, Any]) -> tuple[Any, Any]:
    config = kind(params)
    config.set_inference_dtype(torch.bfloat16, None)
    return config.get_model({}, "", device="meta"), config


def fresh_buffers(model: nn.Module, config: Any) -> None:
    """Buffers are computed, not learned: take them from the sampling object that the app makes on the CPU."""
    from comfy import model_base

    model.model_sampling = model_base.model_sampling(config, model.model_type)


def make_inputs(size: str, pixels: int, device: str) -> dict[str, Any]:
    """A latent, a prompt of 512 tokens and what else a step of Flux takes."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    tokens = 32 if "tiny" in size else 512
    steps = {"timestep": torch.tensor([0.7], device=device, dtype=torch.bfloat16)}
    steps["guidance"] = torch.tensor([3.5], device=device, dtype=torch.bfloat16)
    if size in FLUX2_SIZES:
        width = full_size.flux2_params(**FLUX2_SIZES[size])["context_in_dim"]
        return {"x": noise(1, 128, pixels // 16, pixels // 16), "context": noise(1, tokens, width), **steps}
    width = full_size.flux_params(**SIZES[size])["context_in_dim"]
    latent = noise(1, 16, pixels // 8, pixels // 8)
    return {"x": latent, "context": noise(1, tokens, width), "y": noise(1, 768), **steps}


def release_app_buffers() -> None:
    """The app keeps the staging buffers of its casts until a prompt ends; here it has."""
    import comfy.model_management

    if hasattr(comfy.model_management, "reset_cast_buffers"):
        comfy.model_management.reset_cast_buffers()


def small_layers(model: nn.Module) -> dict[str, int]:
    """Layers of a tiny model are under the usual least size."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"min_layer_bytes": 1 << 16} if total < 1 << 30 else {}


def run(device: Device, arguments: argparse.Namespace, rows: Rows) -> bool:
    """Every way, each for itself. Whether all of them ran, with the resident bits."""
    begun = time.monotonic()
    bench = Bench(device, arguments, rows)
    rows.write("built", time.monotonic() - begun, bytes=bench.total_bytes, link_bytes_per_s=bench.link)

    def attempt(name: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except Exception as error:  # one way that fails must not take the others' figures with it
            bench.ok = False
            rows.write(f"{name} failed", error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            return None

    with torch.no_grad():
        attempt("resident", bench.resident)
        if device.module is not None:
            for fraction in FRACTIONS:
                attempt(f"app partial load {fraction:.0%}", lambda fraction=fraction: bench.app(fraction))
        attachment = attempt("attach", bench.attached)
        if attachment is not None:
            for fraction in FRACTIONS:
                attempt(f"ours {fraction:.0%}", lambda fraction=fraction: bench.ours(attachment, fraction))
            attempt("detach", attachment.detach)
    return bench.ok


def versions() -> dict[str, str]:
    try:
        import comfyui_version

        app = str(comfyui_version.__version__)
    except ImportError:
        app = "unknown"
    return {"torch": torch.__version__, "python": platform.python_version(), "comfyui": app}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--device", choices=KINDS, default="cuda")
    parser.add_argument("--size", choices=(*SIZES, *FLUX2_SIZES), default="full", help="full is Flux dev, 24 GB")
    parser.add_argument("--pixels", default="1024", help="height and width of the picture; several with commas")
    parser.add_argument("--steps", type=int, default=4, help="steps per timed round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row-seconds", type=float, default=10.0, help="no round is begun after this")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    arguments = parser.parse_args(words)
    arguments.pixels = [int(word) for word in arguments.pixels.split(",")]
    device = Device(arguments.device)
    if reason := device.why_not():
        print(reason, file=sys.stderr)
        return 2
    device.open()  # the app looks for its device when it is imported: the simulated one has to be there by then
    full_size.use_app(arguments.tree or full_size.default_tree(), cpu=device.kind == "cpu")
    rows = open_rows("core", arguments.out, {"card": device.describe(), "versions": versions()})
    return 0 if run(device, arguments, rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
