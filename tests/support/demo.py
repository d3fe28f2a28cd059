"""The demo: the same workflow with the app's loader and with ours, in a real ComfyUI, compared bit for bit.

Run by `python3 dev.py demo` inside the environment. On the simulated accelerator memory is short and copies are slow,
so that streaming is real, and the race check is on. It fails unless decoded pixels and latents are the same and layers
were streamed. On the CPU `demo_memory.py` does the same, with the memory of the process in place of the device's.
"""

import argparse
import sys
from pathlib import Path

from tests.support import demo_memory, devices, workflows
from tests.support.app_server import APP_RESERVE_MB, AppServer
from tests.support.demo_parts import (
    DemoFailed,
    collect,
    describe,
    differences,
    read_report,
    run_one,
    show,
    sum_up,
    versions,
    write_json,
)
from tests.support.devkit import paths

FAMILY, CLIP = "flux_mid", "clip_l"  # as many blocks as the real Flux; a text encoder of real size
SIZE, STEPS = 256, 4
BUDGET_GB = 0.06  # of a model of 0.167 GB
SIM_WEIGHTS_MB = 400
SIM_BYTES_PER_S = 2e9
RUNS = {"app": {}, "layerwise": {"placement": "layerwise", "budget_gb": BUDGET_GB}}


def start_server(device: str) -> AppServer:
    memory_mb = APP_RESERVE_MB + SIM_WEIGHTS_MB
    return AppServer(device, memory_mb=memory_mb, bandwidth=SIM_BYTES_PER_S, poison=True, race=True).start()


def workflow(name: str, settings: dict) -> dict:
    return workflows.build(FAMILY, loader=name, clip=CLIP, size=SIZE, steps=STEPS, **settings)


def judge(found: dict, components: list[dict], summary: dict) -> list[str]:
    """Everything that is wrong; empty if the demo succeeded."""
    wrong = differences(found)
    streamed = [layer for c in components for layer in c["plan"]["layers"] if layer["placement"] == "streamed"]
    if not streamed or not summary["bytes_copied"]:
        wrong.append("no layer was streamed")
    if summary["peak_device_bytes"] > BUDGET_GB * 1e9:
        wrong.append(f"{summary['peak_device_bytes']} bytes on the device, over the budget of {BUDGET_GB} GB")
    if summary["races"]:
        wrong.append(f"the race check found {summary['races']} unsynchronised accesses")
    return wrong


def demo(device: str, out: Path, json_file: Path | None):
    print(f"device: {device}; ComfyUI is starting", flush=True)
    server = start_server(device)
    try:
        races_before = server.sim_stats()["races"] if device == "sim" else 0
        results = {name: run_one(server, name, workflow(name, settings)) for name, settings in RUNS.items()}
        components = read_report(server)
        races = server.sim_stats()["races"] - races_before if device == "sim" else 0
        summary = sum_up(components, races)
        found = collect(server, results, out)
        show(found, results, components, summary)
        wrong = judge(found, components, summary)
        same = not differences(found)
        write_json(json_file, describe(versions(server), device, found, results, components, summary, same))
    finally:
        server.stop()
    if wrong:
        raise DemoFailed("; ".join(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=paths.ARTIFACTS / "demo")
    parser.add_argument("--memory-mb", type=int, default=demo_memory.MEMORY_MB)
    arguments = parser.parse_args()
    device = devices.choose(arguments.device)
    try:
        if device == "cpu":
            demo_memory.demo(arguments.memory_mb, arguments.out.resolve(), arguments.json)
        else:
            demo(device, arguments.out.resolve(), arguments.json)
    except (DemoFailed, AssertionError) as failure:
        print(f"\nDEMO FAILED: {failure}", file=sys.stderr)
        return 1
    print("\nidentical to the app, bit for bit: pixels and latents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
