"""The demo: the same workflow with the app's loader and with ours, in a real ComfyUI, compared bit for bit.

Run by `python3 dev.py demo` inside the environment. On the simulated accelerator memory is short and copies are slow,
so that streaming is real, and the race check is on. It fails unless decoded pixels and latents are the same and layers
were streamed. On the CPU nothing has to be streamed: there the pack may step aside, and only a difference is a failure.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tests.support import devices, pixels, workflows
from tests.support.app_server import APP_RESERVE_MB, AppServer, HttpError, Result
from tests.support.devkit import paths

FAMILY, CLIP = "flux_mid", "clip_l"  # as many blocks as the real Flux; a text encoder of real size
SIZE, STEPS = 256, 4
BUDGET_GB = 0.06  # of a model of 0.167 GB
SIM_WEIGHTS_MB = 400
SIM_BYTES_PER_S = 2e9
SUMMARY_KEYS = (
    *("passes", "visits", "copies", "bytes_copied", "prefetch_hits", "demand_loads", "stall_ns", "peak_device_bytes"),
    *("ring_bytes", "resident_bytes"),
)
RUNS = {"app": {}, "layerwise": {"placement": "layerwise", "budget_gb": BUDGET_GB}}


class DemoFailed(Exception):
    """What went wrong, for the last line."""


def start_server(device: str) -> AppServer:
    memory_mb = APP_RESERVE_MB + SIM_WEIGHTS_MB
    return AppServer(device, memory_mb=memory_mb, bandwidth=SIM_BYTES_PER_S, poison=True, race=True).start()


def run_one(server: AppServer, name: str, settings: dict) -> Result:
    server.free()  # each run starts cold, and nothing comes from the app's cache
    prompt = workflows.build(FAMILY, loader=name, clip=CLIP, size=SIZE, steps=STEPS, **settings)
    result = server.run(prompt, timeout=600)
    if result.status == "rejected" and name != "app":
        raise DemoFailed(f"the app does not know our node: {result.message[:400]}\n{import_trouble(server)}")
    if not result.ok:
        raise DemoFailed(f"the run '{name}' ended as {result.status}: {result.message}\n{server.log_tail(15)}")
    return result


def import_trouble(server: AppServer) -> str:
    """What the app wrote about our pack when it could not import it."""
    lines = server.log().splitlines()
    marks = [index for index, line in enumerate(lines) if "IMPORT FAILED" in line or "Cannot import" in line]
    return "\n".join(lines[max(0, marks[0] - 15) : marks[0] + 1]) if marks else ""


def collect(server: AppServer, results: dict[str, Result], out: Path) -> dict:
    """Pictures and latents of both runs; the pictures are kept in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, result in results.items():
        kept = out / f"{name}.png"
        shutil.copy(server.files(result)[0], kept)
        found[name] = {"images": server.images(result), "latents": server.latents(result), "kept": kept}
        for kind in ("images", "latents"):
            pixels.assert_sane(found[name][kind])
    return found


def read_report(server: AppServer) -> list[dict]:
    try:
        return server.report()["components"]
    except HttpError as error:
        raise DemoFailed(f"the pack has no report: {error}") from error


def sum_up(components: list[dict], races: int) -> dict:
    """One summary over components: counts add up, peaks are the largest."""
    summary = dict.fromkeys(SUMMARY_KEYS, 0)
    for component in components:
        for key in SUMMARY_KEYS:
            value = int(component["summary"].get(key, 0))
            summary[key] = max(summary[key], value) if key == "peak_device_bytes" else summary[key] + value
    return {**summary, "races": races}


def judge(device: str, found: dict, components: list[dict], summary: dict) -> list[str]:
    """Everything that is wrong; empty if the demo succeeded."""
    wrong = []
    for kind in ("images", "latents"):
        gap = pixels.difference(found["app"][kind], found["layerwise"][kind])
        if gap:
            wrong.append(f"{kind} differ: {gap}")
    if device != "cpu":
        streamed = [layer for c in components for layer in c["plan"]["layers"] if layer["placement"] == "streamed"]
        if not streamed or not summary["bytes_copied"]:
            wrong.append("no layer was streamed")
        if summary["peak_device_bytes"] > BUDGET_GB * 1e9:
            wrong.append(f"{summary['peak_device_bytes']} bytes on the device, over the budget of {BUDGET_GB} GB")
    if summary["races"]:
        wrong.append(f"the race check found {summary['races']} unsynchronised accesses")
    return wrong


def versions(server: AppServer) -> dict:
    system = server.get("/system_stats")["system"]
    return {"comfyui": system.get("comfyui_version", server.version), "torch": system.get("pytorch_version", "")}


def show(device: str, found: dict, results: dict, components: list[dict], summary: dict):
    for component in components:
        print(f"\n{component['component']}: {component['model']}")
        print(component["plan_text"].rstrip())
        for warning in component["warnings"]:
            print(f"warning: {warning}")
    print("\nrun summary")
    for key, value in summary.items():
        print(f"  {key:18s} {value:>14,}")
    if device == "cpu" and not summary["bytes_copied"]:
        print("  on the CPU there is no device to stream to: the pack stepped aside")
    print()
    for name, result in results.items():
        seconds, digest = result.seconds, pixels.sha256(found[name]["images"])
        print(f"{name:10s} {seconds:6.2f} s  pixels {digest[:16]}  {found[name]['kept']}")


def describe(
    server: AppServer, device: str, found: dict, results: dict, components: list, summary: dict, same: bool
) -> dict:
    runs = [
        {"name": name, "seconds": result.seconds, "image_sha256": pixels.sha256(found[name]["images"])}
        for name, result in results.items()
    ]
    return {
        "schema": 1,
        **versions(server),
        "device": device,
        "image": str(found["layerwise"]["kept"]),
        "identical_to_app": same,
        "runs": runs,
        "plans": [component["plan"] for component in components],
        "summary": summary,
    }


def demo(device: str, out: Path, json_file: Path | None):
    print(f"device: {device}; ComfyUI is starting", flush=True)
    server = start_server(device)
    try:
        races_before = server.sim_stats()["races"] if device == "sim" else 0
        results = {name: run_one(server, name, settings) for name, settings in RUNS.items()}
        components = read_report(server)
        races = server.sim_stats()["races"] - races_before if device == "sim" else 0
        summary = sum_up(components, races)
        found = collect(server, results, out)
        show(device, found, results, components, summary)
        wrong = judge(device, found, components, summary)
        if json_file:
            same = not any("differ" in line for line in wrong)
            written = describe(server, device, found, results, components, summary, same)
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(written, indent=2) + "\n")
    finally:
        server.stop()
    if wrong:
        raise DemoFailed("; ".join(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=paths.ARTIFACTS / "demo")
    arguments = parser.parse_args()
    try:
        demo(devices.choose(arguments.device), arguments.out.resolve(), arguments.json)
    except (DemoFailed, AssertionError) as failure:
        print(f"\nDEMO FAILED: {failure}", file=sys.stderr)
        return 1
    print("\nidentical to the app, bit for bit: pixels and latents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
