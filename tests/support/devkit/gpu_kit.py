"""`dev.py gpu-kit DIR`: packs what a GPU machine without network needs beside its own Python and CUDA torch.

The kit has the app's tree without the parts that only a server needs, wheels of its requirements and of the peers
without CUDA builds, and this checkout; weights are generated on the GPU machine in full size. `DIR/run.sh` runs it.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from . import apps, paths
from .setup import set_up
from .steps import Log, say

LIMIT_BYTES = 60_000_000
APP_PARTS = ("requirements.txt", "comfy", "comfy_api", "comfy_execution", "comfy_config", "utils", "app")
PYTHON_VERSION = "3.12"
PLATFORM = "manylinux_2_28_x86_64"

# package: the module it brings, by which the GPU machine tells whether it has it already
FROM_APP = {"comfy-kitchen": "comfy_kitchen", "comfy-aimdo": "comfy_aimdo"}
FROM_APP |= {"torchsde": "torchsde", "simpleeval": "simpleeval"}
FROM_TESTS = {"diffusers": "diffusers", "accelerate": "accelerate", "pytest": "pytest", "hypothesis": "hypothesis"}
THEIR_NEEDS = {"trampoline": "trampoline", "importlib-metadata": "importlib_metadata", "zipp": "zipp"}
THEIR_NEEDS |= {"pluggy": "pluggy", "iniconfig": "iniconfig", "pygments": "pygments", "einops": "einops"}
THEIR_NEEDS |= {"sortedcontainers": "sortedcontainers", "requests": "requests", "urllib3": "urllib3", "idna": "idna"}
THEIR_NEEDS |= {"certifi": "certifi", "charset-normalizer": "charset_normalizer"}

RUN = """#!/bin/sh
# Runs the tests and measurements of Layerwise Offload that need a GPU, into result.jsonl. `./run.sh --help` says more.
set -e
kit=$(cd "$(dirname "$0")" && pwd)
work=${LAYERWISE_KIT_WORK:-$kit/work}
mkdir -p "$work"
[ -d "$work/pack" ] || { mkdir "$work/pack" && tar -xzf "$kit/pack.tar.gz" -C "$work/pack"; }
export PYTHONPATH="$work/pack${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$work/pack/bench/kit/__main__.py" --kit "$kit" --work "$work" "$@"
"""


def pinned(package: str, *files: Path) -> str:
    """`package==version` as one of the requirement files pins it, else the bare name."""
    for file in files:
        found = re.search(rf"^{re.escape(package)}==(\S+)", file.read_text(), re.MULTILINE)
        if found:
            return f"{package}=={found.group(1)}"
    return package


def download(log: Log, folder: Path, tree: Path) -> dict[str, str]:
    """Downloads the wheels into `folder`; returns {file name: module}."""
    files = (tree / "requirements.txt", paths.ROOT / "tests/requirements-peers.txt")
    files += (paths.ROOT / "tests/requirements-test.txt",)
    wheels = {}
    for package, module in {**FROM_APP, **FROM_TESTS, **THEIR_NEEDS}.items():
        # comfy-kitchen's CUDA wheel is 45 MB; its pure one has the same kernels in torch, and is enough here
        platforms = ("any",) if package == "comfy-kitchen" else (PLATFORM, "manylinux2014_x86_64", "any")
        target = folder / module
        log.run(
            *(paths.PYTHON, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--python-version", PYTHON_VERSION, "--implementation", "cp"),
            *(word for name in platforms for word in ("--platform", name)),
            *("-d", target, pinned(package, *files)),
        )
        wheel = next(target.glob("*.whl"))
        wheels[wheel.name] = module
        shutil.move(wheel, folder / wheel.name)
        target.rmdir()
    return wheels


def pack_app(tree: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz") as tar:
        for name in (*APP_PARTS, *sorted(file.name for file in tree.glob("*.py"))):
            tar.add(tree / name, name, filter=_without_caches)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = Path(member.name).name
    return None if name == "__pycache__" or name.endswith(".pyc") else member


def checkout_files() -> list[Path]:
    """Tracked and untracked files of the checkout, without ignored ones such as `.dev`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=paths.ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return sorted(path for name in set(listed.split("\0")) if name and (path := paths.ROOT / name).is_file())


def pack_checkout(target: Path) -> None:
    with tarfile.open(target, "w:gz") as tar:
        for file in checkout_files():
            tar.add(file, file.relative_to(paths.ROOT))


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=paths.ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def pack(kit: Path, app: apps.App, wheels: dict[str, str]) -> None:
    """Writes everything but the wheels, which are in `kit` already. Needs no network."""
    pack_app(app.tree, kit / "app.tar.gz")
    pack_checkout(kit / "pack.tar.gz")
    sums = {
        str(file.relative_to(kit)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(kit.rglob("*"))
        if file.is_file()
    }
    manifest = {"schema": 2, "comfyui": app.version, "commit": commit(), "wheels": wheels, "sha256": sums}
    (kit / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (kit / "run.sh").write_text(RUN)
    (kit / "run.sh").chmod(0o755)


def write(folder: Path, app: apps.App) -> int:
    """Writes the kit to `folder`, replacing an older one; returns its size in bytes."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        kit = Path(temporary) / "kit"
        (kit / "wheels").mkdir(parents=True)
        pack(kit, app, download(Log("gpu-kit"), kit / "wheels", app.tree))
        if folder.exists():
            shutil.rmtree(folder)
        shutil.move(kit, folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments) -> int:
    """`arguments`: as parsed by dev.py, with `dir` and `comfyui`. Returns the exit code."""
    folder = Path(arguments.dir).resolve()
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        print(f"{folder} is neither empty nor an older kit: give another folder", file=sys.stderr)
        return 1
    set_up(arguments.comfyui)
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = write(folder, apps.find(arguments.comfyui))
    say(f"{folder}: {size / 1e6:.1f} MB; copy it to the GPU machine and run {folder.name}/run.sh there")
    if size > LIMIT_BYTES:
        print(f"that is more than the {LIMIT_BYTES / 1e6:.0f} MB it may have", file=sys.stderr)
        return 1
    return 0
