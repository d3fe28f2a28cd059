"""What the demos have in common: running one workflow, keeping its pictures, printing plan and summary."""

import json
import shutil
from pathlib import Path

from tests.support import pixels
from tests.support.app_server import AppServer, HttpError, Result

SUMMARY_KEYS = (
    *("passes", "visits", "copies", "bytes_copied", "prefetch_hits", "demand_loads", "stall_ns", "peak_device_bytes"),
    *("ring_bytes", "resident_bytes"),
)


class DemoFailed(Exception):
    """What went wrong, for the last line."""


def run_one(server: AppServer, name: str, prompt: dict) -> Result:
    server.free()  # each run starts cold, and nothing comes from the app's cache
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


def versions(server: AppServer) -> dict:
    system = server.get("/system_stats")["system"]
    return {"comfyui": system.get("comfyui_version", server.version), "torch": system.get("pytorch_version", "")}


def show(found: dict, results: dict, components: list[dict], summary: dict):
    for component in components:
        print(f"\n{component['component']}: {component['model']}")
        print(component["plan_text"].rstrip())
        for warning in component["warnings"]:
            print(f"warning: {warning}")
    print("\nrun summary")
    for key, value in summary.items():
        print(f"  {key:18s} {value:>14,}")
    print()
    for name, result in results.items():
        seconds, digest = result.seconds, pixels.sha256(found[name]["images"])
        print(f"{name:10s} {seconds:6.2f} s  pixels {digest[:16]}  {found[name]['kept']}")


def differences(found: dict) -> list[str]:
    """How pictures and latents of the two runs differ."""
    wrong = []
    for kind in ("images", "latents"):
        gap = pixels.difference(found["app"][kind], found["layerwise"][kind])
        if gap:
            wrong.append(f"{kind} differ: {gap}")
    return wrong


def describe(
    versions: dict, device: str, found: dict, results: dict, components: list, summary: dict, same: bool
) -> dict:
    runs = [
        {"name": name, "seconds": result.seconds, "image_sha256": pixels.sha256(found[name]["images"])}
        for name, result in results.items()
    ]
    return {
        "schema": 1,
        **versions,
        "device": device,
        "image": str(found["layerwise"]["kept"]),
        "identical_to_app": same,
        "runs": runs,
        "plans": [component["plan"] for component in components],
        "summary": summary,
    }


def write_json(file: Path | None, content: dict):
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")
