"""Loading a diffusion model: time and peak of host memory, the app's own loader against ours; and how exact pins are.

    python -m bench.load [--hidden 896 1536] [--rounds 2] [--dir FOLDER] [--json FILE]

A file with the blocks of Flux (19 double, 38 single) at a hidden size; 896 makes 2 GB, 1536 makes 6 GB. Each load runs
in a fresh process on the simulated accelerator, in turns. Memory is what is the process's own (RssAnon), looked at
every 5 ms: pages of the mapped file can be dropped at any time and are not in it.

app       `comfy.sd.load_diffusion_model`, then every weight is looked at once: what a full load has to do at least
ours      our loader, host masters and plan: all layers streamed, page-locked masters read from the file

peak_over_kept is the most that was held while loading, less 64 MiB of staging, over what is held afterwards;
pinned_over_streamed is page-locked bytes over the bytes of the streamed layers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.pack import pack_module

STAGING_BYTES = 64 << 20


def write_flux(path: Path, hidden: int) -> None:
    """A Flux file of bf16 noise, written tensor by tensor."""
    import torch

    from tests.support.tiny_models.flux import flux_shapes

    shapes = flux_shapes(hidden=hidden, depth=19, single=38)
    header, end = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * max(1, int(torch.Size(shape).numel()))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(1)) / 64).bfloat16()
    noise_bytes = bytes(noise.view(torch.uint8).numpy())
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = end
        while left:
            left -= file.write(noise_bytes[: min(left, len(noise_bytes))])


def start_app() -> None:
    """The app's modules and the simulated accelerator in this process, as its server has them."""
    from tests.support import simdev
    from tests.support.devkit import apps

    simdev.load().configure(mb=8192, bandwidth=0, poison=False, race=False)
    sys.path.insert(0, str(apps.under_test().tree))
    sys.argv = ["main.py"]
    import comfy.model_management  # noqa: F401
    import comfy.sd  # noqa: F401


def anonymous_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Peak:
    """The most that is held while the block runs."""

    def __enter__(self) -> Peak:
        self.base = self.most = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.kept = anonymous_bytes() - self.base
        self.most = max(self.most, self.base + self.kept) - self.base


def load_app(path: str) -> dict[str, Any]:
    import comfy.sd

    with Peak() as peak:
        began = time.perf_counter()
        patcher = comfy.sd.load_diffusion_model(path)
        for parameter in patcher.model.parameters():
            parameter.view(-1)[:: max(1, 2048 // parameter.element_size())].sum()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": peak.most, "kept_bytes": peak.kept}


def load_ours(path: str) -> dict[str, Any]:
    asked_module, component_module = pack_module("bridge.requests.requested"), pack_module("bridge.component.component")
    loaders, planner = pack_module("bridge.load.loaders"), pack_module("offload_core.planning.planner")
    component_settings = pack_module("offload_core.settings.component_settings").ComponentSettings("dit")
    settings = component_settings.with_value("placement", "layerwise", "node")
    with Peak() as peak:
        began = time.perf_counter()
        patcher = loaders.load_diffusion_model(path, "default", asked_module.Requested(settings))
        component = component_module.Component.of(patcher.model)
        component.attach(patcher.model, patcher.load_device)
        budget = planner.smallest_budget(component.controller.inventory)
        asked = asked_module.Requested(settings.with_value("budget_bytes", budget, "node"))
        device = budget  # the simulated device's memory is memory of this process: not the host's
        component.load(asked, budget)
        seconds = time.perf_counter() - began
    plan = component.controller.plan
    assert plan is not None
    streamed = sum(plan.layers[index].bytes for index in plan.streamed)
    return {
        "seconds": seconds,
        "peak_bytes": peak.most - device,
        "kept_bytes": peak.kept - device,
        "pinned_over_streamed": component.controller.pinned_bytes() / streamed,
    }


def measure(arguments: argparse.Namespace, hidden: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        path = Path(folder) / "flux.safetensors"
        subprocess.run([*this(), "--write", str(path), "--hidden", str(hidden)], check=True)
        runs: dict[str, list[dict[str, Any]]] = {"app": [], "ours": []}
        for number in range(arguments.rounds):
            for name in ("app", "ours") if number % 2 == 0 else ("ours", "app"):
                done = subprocess.run(
                    [*this(), "--one", name, "--file", str(path)], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
        size = path.stat().st_size
    result: dict[str, Any] = {"file_bytes": size}
    for name, own in runs.items():
        peak, kept = max(run["peak_bytes"] for run in own), statistics.median(run["kept_bytes"] for run in own)
        result[name] = {
            "seconds": statistics.median(run["seconds"] for run in own),
            "peak_bytes": peak,
            "kept_bytes": kept,
            "peak_over_kept": max(0, peak - STAGING_BYTES) / max(kept, 1),
        }
    result["pinned_over_streamed"] = max(run["pinned_over_streamed"] for run in runs["ours"])
    return result


def this() -> list[str]:
    return [sys.executable, "-m", "bench.load"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.load")
    parser.add_argument("--hidden", type=int, nargs="+", default=[896, 1536], help="multiples of 128")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", default=None)
    parser.add_argument("--json", type=Path)
    for name in ("--one", "--file", "--write"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    command = " ".join(sys.argv[1:])
    if arguments.write or arguments.one:
        start_app()
        if arguments.write:
            write_flux(Path(arguments.write), arguments.hidden[0])
        else:
            import torch

            with torch.inference_mode():
                print(json.dumps({"app": load_app, "ours": load_ours}[arguments.one](arguments.file)))
        return
    from importlib.metadata import version

    result = {
        "command": f"python -m bench.load {command}".strip(),
        "files": [measure(arguments, hidden) for hidden in arguments.hidden],
        "load_average": os.getloadavg()[0],
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "safetensors")},
    }
    for file in result["files"]:
        print(json.dumps(file, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
