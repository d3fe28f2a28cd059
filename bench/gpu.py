"""Step time of a full-size diffusion transformer: resident, ours at several budgets, and the app's own partial load.

    python -m bench.gpu [--tree COMFYUI] [--device cuda|sim|cpu] [--size full|half|tiny] [--out FILE.json]

The model is Flux out of the app's own classes, filled with noise here, so that nothing is downloaded; every way of
running it gets the same weights and the same inputs, and its output is compared bit for bit with the resident one. In
the same run the two bounds are measured: what the link copies per second from page-locked memory, and the resident
step, which is the compute alone. No way can be faster than the larger of compute and copies.

At a budget of B bytes ours keeps ring, residents and loose tensors within B. The app's partial load is given B for
weights alone; its staging buffers come on top, which favours it. What each had reserved is in the result. Residents are
chosen twice: first without knowing the times, then from the times measured in the first passes, as in real use.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import full_size

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "half": {"depth": 10, "depth_single_blocks": 19},
    "tiny": {"hidden_size": 384, "num_heads": 3, "depth": 4, "depth_single_blocks": 8, "context_in_dim": 256},
}
FRACTIONS = (0.25, 0.5, 0.75)
WARM_UP_STEPS = 4
LINK_PROBE_BYTES = 1 << 30


class Device:
    """The device that is measured; torch's generic calls, so that CUDA and the simulated one are the same here."""

    def __init__(self, kind: str) -> None:
        if kind == "sim":
            from tests.support import simdev

            simdev.load().configure(mb=4096, bandwidth=8e9, poison=True, race=False)
        self.name = "npu" if kind == "sim" else kind
        self.module = None if kind == "cpu" else torch.get_device_module(self.name)

    def synchronize(self) -> None:
        if self.module is not None:
            self.module.synchronize()

    def start_peak(self) -> None:
        gc.collect()
        if self.module is not None:
            self.synchronize()
            self.module.empty_cache()
            self.module.reset_peak_memory_stats()

    def peaks(self) -> dict[str, int | None]:
        if self.module is None:
            return {"peak_allocated_bytes": None, "peak_reserved_bytes": None}
        return {
            "peak_allocated_bytes": self.module.max_memory_allocated(),
            "peak_reserved_bytes": self.module.max_memory_reserved(),
        }

    def describe(self) -> str:
        if self.name != "cuda":
            return {"npu": "simulated", "cpu": "cpu"}[self.name]
        return f"{torch.cuda.get_device_name()} ({torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB)"


class Bench:
    """One model, one set of inputs, and the resident output that everything is compared with."""

    def __init__(self, device: Device, size: str, pixels: int, steps: int, rounds: int) -> None:
        self.device = device
        self.steps, self.rounds = steps, rounds
        self.model = build(size, device.name)
        self.inputs = make_inputs(size, pixels, device.name)
        self.total_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.expected: torch.Tensor | None = None

    def step(self) -> torch.Tensor:
        with torch.inference_mode():  # as the app samples
            return self.model.diffusion_model(**self.inputs)

    def measure(self, name: str, **facts: Any) -> dict[str, Any]:
        """Warm up, check the output, time it. The model is ready to run on the device."""
        for _ in range(WARM_UP_STEPS):
            output = self.step()
        got = output.cpu()
        if self.expected is None:
            self.expected = got
        samples = []
        for _ in range(self.rounds):
            self.device.synchronize()
            start = time.perf_counter()
            for _ in range(self.steps):
                self.step()
            self.device.synchronize()
            samples.append((time.perf_counter() - start) / self.steps * 1e3)
        row = {"name": name, "step_ms": statistics.median(samples), "step_ms_all": samples, **facts}
        row["identical"] = torch.equal(got, self.expected)
        return {**row, "finite": bool(torch.isfinite(got).all()), **self.device.peaks()}

    def resident(self) -> dict[str, Any]:
        self.device.start_peak()
        self.model.to(self.device.name)
        try:
            return self.measure("resident", budget_bytes=self.total_bytes)
        finally:
            self.model.to("cpu")

    def attached(self, link: float) -> Any:
        """The model under layerwise offload. Page-locking 24 GB takes its time: once is enough for all budgets."""
        from offload_core.runtime import attach

        entries = [(self.model.diffusion_model, "forward")]
        options = {"passes": 1000, "h2d_bytes_per_s": link, "entries": entries, **small_layers(self.model)}
        return attach(self.model, device=self.device.name, **options)

    def ours(self, attachment: Any, budget_bytes: int, link: float) -> dict[str, Any]:
        controller = attachment.controller
        controller.unload()
        self.device.start_peak()
        controller.load(self._plan(controller, budget_bytes, link))
        for _ in range(WARM_UP_STEPS):
            self.step()
        self.device.synchronize()
        self.step()  # reads the times of the steps before
        controller.load(self._plan(controller, budget_bytes, link))
        before = controller.counters.as_dict()
        row = self.measure("ours", budget_bytes=budget_bytes)
        after = controller.counters.as_dict()
        plan = controller.plan
        moved = sum(plan.layers[index].bytes for index in plan.streamed)
        row["streamed_bytes_per_step"] = moved
        row["copy_bound_ms"] = moved / link * 1e3
        row["predicted_ms"] = plan.predicted.pass_ns / 1e6
        row["counters"] = {name: after[name] - before[name] for name in after}
        row["plan"] = {"ring_bytes": plan.ring_bytes, "resident_bytes": plan.resident_bytes}
        row["plan"].update(loose_bytes=plan.loose_bytes, streamed=len(plan.streamed), residents=len(plan.residents))
        return row

    def _plan(self, controller: Any, budget_bytes: int, link: float) -> Any:
        """The plan for a budget, by the times that are known by now."""
        from offload_core.planner import PlanRequest, make_plan

        pairs = zip(controller.inventory.layers, controller.compute_ns())
        inventory = replace(controller.inventory, layers=tuple(replace(one, compute_ns=ns) for one, ns in pairs))
        request = PlanRequest(inventory, str(controller.queue.port.device), budget_bytes, passes=1000)
        return make_plan(replace(request, h2d_bytes_per_s=link, link_source="measured"))

    def app(self, budget_bytes: int) -> dict[str, Any]:
        """The app's classic partial load: what does not fit the budget is cast to the device leaf by leaf."""
        from comfy.model_patcher import ModelPatcher

        self.device.start_peak()
        load_device = torch.device(self.device.name, 0)
        patcher = ModelPatcher(self.model, load_device=load_device, offload_device=torch.device("cpu"))
        try:
            patcher.partially_load(load_device, budget_bytes)
            loaded = patcher.loaded_size()
            return self.measure("app partial load", budget_bytes=budget_bytes, loaded_bytes=loaded)
        finally:
            patcher.detach()
            release_app_buffers()

    def link_bytes_per_s(self) -> float:
        """What the copy lane does with page-locked memory, by the engine's own port."""
        from offload_core.runtime import port_for

        port = port_for(self.device.name)
        nbytes = LINK_PROBE_BYTES if self.total_bytes > 4 * LINK_PROBE_BYTES else 64 << 20
        source, _ = port.host_empty(nbytes, True)
        target = port.empty(nbytes)
        port.copy(target, source)
        port.drain()
        start = time.perf_counter()
        for _ in range(4):
            port.copy(target, source)
        port.drain()
        rate = 4 * nbytes / (time.perf_counter() - start)
        port.host_release(source)
        port.close()
        return rate


def build(size: str, device: str) -> nn.Module:
    """Flux in the app's BaseModel, on the CPU, filled with noise that was drawn on the device."""
    import comfy.supported_models

    config = comfy.supported_models.Flux({"image_model": "flux", **full_size.flux_params(**SIZES[size])})
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.device("meta"):
        model = config.get_model({}, "", device="meta")
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


def fresh_buffers(model: nn.Module, config: Any) -> None:
    """Buffers are computed, not learned: take them from the sampling object that the app makes on the CPU."""
    from comfy import model_base

    model.model_sampling = model_base.model_sampling(config, model.model_type)


def make_inputs(size: str, pixels: int, device: str) -> dict[str, Any]:
    """A latent, a prompt of 512 tokens and what else a step of Flux takes."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    width = full_size.flux_params(**SIZES[size])["context_in_dim"]
    return {
        "x": noise(1, 16, pixels // 8, pixels // 8),
        "timestep": torch.tensor([0.7], device=device, dtype=torch.bfloat16),
        "context": noise(1, 512 if size != "tiny" else 32, width),
        "y": noise(1, 768),
        "guidance": torch.tensor([3.5], device=device, dtype=torch.bfloat16),
    }


def release_app_buffers() -> None:
    """The app keeps the staging buffers of its casts until a prompt ends; here it has."""
    import comfy.model_management

    if hasattr(comfy.model_management, "reset_cast_buffers"):
        comfy.model_management.reset_cast_buffers()


def small_layers(model: nn.Module) -> dict[str, int]:
    """Layers of a tiny model are under the usual least size."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"min_layer_bytes": 1 << 16} if total < 1 << 30 else {}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    device = Device(arguments.device)
    bench = Bench(device, arguments.size, arguments.pixels, arguments.steps, arguments.rounds)
    link = bench.link_bytes_per_s()
    rows: list[dict[str, Any]] = []
    not_run: list[str] = []

    def attempt(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        try:
            rows.append(measure())
        except Exception as error:  # one way that fails must not take the others' figures with it
            reason = (str(error).splitlines() or [""])[0]
            not_run.append(f"{name}: {type(error).__name__}: {reason}")
            print(not_run[-1], file=sys.stderr, flush=True)
        else:
            print(line(rows[-1]), file=sys.stderr, flush=True)

    budgets = {f"{fraction:.0%}": int(fraction * bench.total_bytes) for fraction in FRACTIONS}
    with torch.no_grad():
        attempt("resident", bench.resident)
        with bench.attached(link) as attachment:
            for share, budget in budgets.items():
                attempt(f"ours at {share}", lambda budget=budget: bench.ours(attachment, budget, link))
        if device.name != "cpu":
            for share, budget in budgets.items():
                attempt(f"app at {share}", lambda budget=budget: bench.app(budget))
    compute = next((row["step_ms"] for row in rows if row["name"] == "resident"), None)
    for row in rows:
        if "copy_bound_ms" in row and compute is not None:
            row["bound_ms"] = max(row["copy_bound_ms"], compute)
            row["over_bound"] = row["step_ms"] / row["bound_ms"]
    return {
        "schema": 1,
        "command": " ".join(["python -m bench.gpu", *arguments.words]),
        "device": device.describe(),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "comfyui": app_version()},
        "model": {"name": f"flux {arguments.size}", "bytes": bench.total_bytes, "pixels": arguments.pixels},
        "link_bytes_per_s": link,
        "compute_bound_ms": compute,
        "runs": rows,
        "not_run": not_run,
        "all_identical": bool(rows) and all(row["identical"] and row["finite"] for row in rows),
    }


def line(row: dict[str, Any]) -> str:
    reserved = row["peak_reserved_bytes"]
    memory = "" if reserved is None else f", {reserved / 1e9:.2f} GB reserved"
    same = "same bits" if row["identical"] else "OTHER BITS"
    return f"{row['name']:18s} {row['budget_bytes'] / 1e9:7.2f} GB: {row['step_ms']:9.2f} ms a step{memory}, {same}"


def app_version() -> str:
    try:
        import comfyui_version
    except ImportError:
        return "unknown"
    return str(comfyui_version.__version__)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="a ComfyUI tree (default: the one dev.py has set up)")
    parser.add_argument("--device", choices=("cuda", "sim", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="full is Flux dev, 24 GB")
    parser.add_argument("--pixels", type=int, default=1024, help="height and width of the picture")
    parser.add_argument("--steps", type=int, default=6, help="steps per timed round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the result here")
    arguments = parser.parse_args(words)
    arguments.words = words
    device_first(arguments.device)
    full_size.use_app(arguments.tree or full_size.default_tree(), cpu=arguments.device == "cpu")
    result = run(arguments)
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)
    return 0 if result["all_identical"] and not result["not_run"] else 1


def device_first(kind: str) -> None:
    """The app looks for its device when it is imported: the simulated one has to be there by then."""
    if kind == "sim":
        from tests.support import simdev

        simdev.load()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
