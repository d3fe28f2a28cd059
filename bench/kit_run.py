"""Runs on the GPU machine: everything that needs a real device, one after the other, into one JSON.

    ./run.sh [--out result.json] [--size full|half|tiny] [--only tests,overhead,bench] [--smoke]

`dev.py gpu-kit DIR` packs DIR; this machine has no network, a Python with its own CUDA torch, and no ComfyUI. What the
kit carries and the machine has already is left packed, so nothing of the machine's is shadowed. `--smoke` tries the
kit itself: tiny model, no device needed. Standard library only: it starts the programs that know more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

PARTS = ("tests", "overhead", "bench")
TIMEOUTS_S = {"tests": 300, "overhead": 240, "bench": 540}
NEEDED = (
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "safetensors",
    "psutil",
    "numpy",
    "yaml",
    "PIL",
)


def unpack(kit: Path, work: Path) -> dict[str, str]:
    """The app's tree, and the wheels that this machine lacks. The environment for what runs on them."""
    app, site = work / "app", work / "site"
    if not app.is_dir():
        with tarfile.open(kit / "app.tar.gz") as tar:
            tar.extractall(app, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    manifest = json.loads((kit / "manifest.json").read_text())
    for wheel, module in manifest["wheels"].items():
        if importlib.util.find_spec(module) is None and not (site / module).exists():
            with zipfile.ZipFile(kit / "wheels" / wheel) as archive:
                archive.extractall(site)
    pack = Path(__file__).resolve().parents[1]
    path = [str(pack), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "LAYERWISE_COMFYUI": str(app),
        "LAYERWISE_DEV_DIR": str(work / "dev"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(name: str, command: list[str], environment: dict[str, str], work: Path) -> dict[str, object]:
    """One part: its exit code, its time, and the end of what it printed."""
    print(f"--- {name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    log = work / f"{name}.log"
    pack = Path(__file__).resolve().parents[1]
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command, cwd=pack, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=TIMEOUTS_S[name]
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    text = log.read_text(errors="replace")
    print("\n".join(text.splitlines()[-15:]), flush=True)
    return {"exit_code": code, "seconds": round(time.monotonic() - started, 1), "tail": text[-4000:]}


def run_tests(environment: dict[str, str], work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    report = work / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    part = run("tests", command, environment, work)
    if report.is_file():
        cases = ElementTree.parse(report).getroot().iter("testcase")
        part["tests"] = outcomes = {str(case.get("name")): _outcome(case) for case in cases}
        if not arguments.smoke and "passed" not in outcomes.values():
            part["exit_code"] = part["exit_code"] or 1  # skipped for want of a device is no success here
    return part


def _outcome(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return f"{kind}: {found.get('message', '')[:300]}"
    return "passed"


def run_overhead(environment: dict[str, str], work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    device = "cpu" if arguments.smoke else "cuda"
    words = ["--device", device, "--json", *(["--repeats", "3"] if arguments.smoke else [])]
    part = run("overhead", [sys.executable, "-m", "bench.host_overhead", *words], environment, work)
    return _with_json(part, (work / "overhead.log").read_text(errors="replace").splitlines()[-1:])


def run_bench(environment: dict[str, str], work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    out = work / "bench.json"
    out.unlink(missing_ok=True)
    words = ["--size", arguments.size, "--out", str(out)]
    if arguments.smoke:
        words = [
            "--size",
            "tiny",
            "--device",
            "cpu",
            "--pixels",
            "128",
            "--steps",
            "1",
            "--rounds",
            "1",
            "--out",
            str(out),
        ]
    part = run("bench", [sys.executable, "-m", "bench.gpu", *words], environment, work)
    return _with_json(part, [out.read_text()] if out.is_file() else [])


def _with_json(part: dict[str, object], texts: list[str]) -> dict[str, object]:
    for text in texts:
        try:
            part["result"] = json.loads(text)
            del part["tail"]
        except ValueError:
            pass
    return part


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("result.json"))
    parser.add_argument("--size", default="full", help="of bench/gpu.py: full is Flux dev, 24 GB")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated, of %(default)s")
    parser.add_argument("--smoke", action="store_true", help="try the kit itself; no device needed")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"this machine's Python ({sys.executable}) lacks {', '.join(missing)}", file=sys.stderr)
        return 2
    environment = unpack(arguments.kit, arguments.work)
    runners = {"tests": run_tests, "overhead": run_overhead, "bench": run_bench}
    wanted = [name for name in PARTS if name in arguments.only.split(",")]
    result: dict[str, object] = {"schema": 1, "smoke": arguments.smoke, "python": platform.python_version()}
    result["kit"] = json.loads((arguments.kit / "manifest.json").read_text())
    for name in wanted:
        result[name] = runners[name](environment, arguments.work, arguments)
        arguments.out.write_text(json.dumps(result, indent=1))  # a later part may be cut off
    failed = [name for name in wanted if result[name]["exit_code"]]  # type: ignore[index]
    print(f"written to {arguments.out.resolve()}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
