"""The part `facts`: what every number of the run is worth. The machine, the card and its link, what is missing.

Writes what all later rows have in common (card, versions), and what the runner needs to know of the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.device import KINDS, Device, memory_of_machine
from bench.kit import rows

PACKAGES = {
    **{
        "torch": "torch",
        "transformers": "transformers",
        "safetensors": "safetensors",
        "triton": "triton",
        "scipy": "scipy",
    },
    **{"comfy-aimdo": "comfy_aimdo", "comfy-kitchen": "comfy_kitchen", "diffusers": "diffusers"},
    **{"accelerate": "accelerate", "hypothesis": "hypothesis", "requests": "requests", "pytest": "pytest"},
}
"""Of the packages whose versions are recorded, the modules."""
CARD = ("name", "driver_version", "memory.total", "memory.used", "utilization.gpu", "pcie.link.gen.current")
CARD += ("pcie.link.gen.max", "pcie.link.width.current", "clocks.sm", "power.limit")
BUSY = 0.9
"""A card with less than this share of its memory free is in use by other processes."""


def versions() -> dict[str, str]:
    """Python, torch with its CUDA, and the packages that are there."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found.setdefault(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return found


def modules() -> list[str]:
    """Of the packages above, the modules that can be imported here."""
    return [module for module in PACKAGES.values() if importlib.util.find_spec(module) is not None]


def machine() -> dict[str, Any]:
    """Processor and memory of the host; the place in memory for files; how much a process may lock."""
    import resource

    shared = Path("/dev/shm")
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        **memory_of_machine(),
        "cpus": os.cpu_count(),
        "shm_free": shutil.disk_usage(shared).free if shared.is_dir() else 0,
        "disk_free": shutil.disk_usage(".").free,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "huge_pages": pages.read_text().strip() if pages.is_file() else "unknown",
        "system": platform.platform(),
        "compiler": shutil.which("cc") or shutil.which("gcc") or "none",
    }


def by_the_driver() -> dict[str, str]:
    """What nvidia-smi says of the first card; empty where it is not there or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(CARD, values)) if done.returncode == 0 and len(values) == len(CARD) else {}


def device_facts(device: Device) -> dict[str, Any]:
    """Whether there is one, and how much of it is free."""
    found: dict[str, Any] = {"kind": device.kind, "why_not": device.why_not()}
    if found["why_not"]:
        return found
    device.open()
    found["card"] = device.describe()
    if device.module is not None:
        free, total = device.module.mem_get_info()
        found |= {"free_bytes": free, "total_bytes": total, "busy": free < BUSY * total}
    if device.kind == "cuda":
        found["capability"] = torch.cuda.get_device_capability()
        found["devices"] = torch.cuda.device_count()
        runtime = torch.cuda.cudart()
        found["cudart"] = [name for name in dir(runtime) if name.startswith("cuda")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=KINDS, default="cuda")
    device = Device(parser.parse_args().device)
    known = {"versions": versions(), "modules": modules()}
    try:
        known["device"] = device_facts(device)
    except RuntimeError as error:  # a card that does not answer is found out here, and said
        known["device"] = {"kind": device.kind, "why_not": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    known["card"] = known["device"].pop("card", "none")
    common = Path(os.environ.get(rows.COMMON) or os.devnull)
    if common.is_file():
        common.write_text(json.dumps({**rows.read_common(), **known}))
    table = rows.open_rows("facts", common=known)
    table.write("device", **known["device"])
    table.write("machine", **machine())
    table.write("driver", **by_the_driver())
    table.write("lacking", modules=[name for name in PACKAGES.values() if name not in known["modules"]])


if __name__ == "__main__":
    main()
