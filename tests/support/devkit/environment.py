"""The Python side of set-up: virtual environment, torch, the app's requirements, tools for tests.

Most of this file exists because the registry's torchvision and torchaudio are CUDA builds. With a CUDA (or ROCm) torch
the matching builds are installed as usual. With a CPU torch they would pull in several gigabytes of CUDA torch, or fail
to load; there, builds that use torch's stable C interface are installed without their dependencies, and three stub
libraries (cuda_stubs/stubs.c) replace those that they link to. Their CPU kernels are real.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import paths, versions
from .steps import Log, Missing, Steps, digest

SKIPPED_REQUIREMENT = re.compile(r"^(torch|torchvision|torchaudio|comfyui-.*)([=<>~! ].*)?$")
UI_PACKAGES = ("comfyui-frontend-package", "comfyui-embedded-docs", "comfyui-workflow-templates")
TEST_REQUIREMENTS = paths.ROOT / "tests" / "requirements-test.txt"
PEER_REQUIREMENTS = paths.ROOT / "tests" / "requirements-peers.txt"
STUBBED_REQUIREMENTS = paths.ROOT / "tests" / "requirements-vision.txt"
STUBS_SOURCE = paths.SUPPORT / "cuda_stubs" / "stubs.c"
ASK_TORCH = (
    "import json, torch; print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda,"
    " 'hip': torch.version.hip, 'abi': int(torch._C._GLIBCXX_USE_CXX11_ABI), 'folder': torch.__path__[0]}))"
)


def pip(log: Log, *arguments, python: Path | None = None):
    quiet = ("-q", "--disable-pip-version-check", "--no-input")
    log.run(python or paths.PYTHON, "-m", "pip", "install", *quiet, *arguments)


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return bool(tool) and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def _ask_torch(python) -> dict | None:
    try:
        done = subprocess.run([str(python), "-c", ASK_TORCH], capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def torch_facts() -> dict:
    """Version, CUDA or ROCm version, C++ ABI and folder of the environment's torch, as set-up found them."""
    return json.loads(paths.TORCH_FACTS.read_text())


def has_device_torch() -> bool:
    facts = torch_facts()
    return bool(facts["cuda"] or facts["hip"])


def needs_stubs() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64" and not has_device_torch()


def make_venv(log: Log):
    """Makes the environment; it sees the system's packages only if these have a torch for the machine's GPU."""
    shutil.rmtree(paths.VENV, ignore_errors=True)
    system = _ask_torch(sys.executable)
    share = ["--system-site-packages"] if system and (system["cuda"] or system["hip"]) else []
    log.run(sys.executable, "-m", "venv", *share, paths.VENV)


def install_torch(log: Log):
    if _ask_torch(paths.PYTHON) is None:
        # "===" takes the registry's own build, which on Linux is the CUDA one; "==" also takes a local CPU build
        pip(log, f"torch{'===' if has_nvidia_gpu() else '=='}{versions.TORCH}")
    facts = _ask_torch(paths.PYTHON)
    if facts is None:
        raise RuntimeError("torch was installed but cannot be imported")
    paths.TORCH_FACTS.write_text(json.dumps(facts, indent=1))
    paths.CONSTRAINTS.write_text(f"torch=={facts['version']}\n")
    pip(log, "setuptools>=70", "wheel")  # the app's archive is fetched through pip, which runs its metadata hook


def pinned_requirements(tree: Path) -> dict[str, str]:
    """The `name==version` lines of the app's requirements."""
    lines = (tree / "requirements.txt").read_text().splitlines()
    return dict(m.groups() for m in (re.match(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()) for line in lines) if m)


def wanted_requirements(tree: Path) -> tuple[list[str], list[str]]:
    """The app's requirements: those that pip resolves, and the UI's packages, installed without dependencies."""
    lines = [line.strip() for line in (tree / "requirements.txt").read_text().splitlines()]
    resolved = [line for line in lines if line and not line.startswith("#") and not SKIPPED_REQUIREMENT.match(line)]
    pins = pinned_requirements(tree)
    return resolved, [f"{name}=={pins[name]}" for name in UI_PACKAGES if name in pins]


def install_requirements(log: Log, tree: Path, venv: Path | None = None):
    """Installs the app's requirements into `venv`, by default the common environment."""
    resolved, alone = wanted_requirements(tree)
    file, python = (paths.DEV, paths.PYTHON) if venv is None else (venv, paths.python_in(venv))
    file /= "requirements-app.txt"
    file.write_text("\n".join(resolved) + "\n")
    pip(log, "-c", paths.CONSTRAINTS, "-r", file, python=python)
    if alone:
        pip(log, "--no-deps", *alone, python=python)


def layered_venv(log: Log, folder: Path, *lines: str):
    """Makes an environment that also sees the packages of the common one, pip included; its own come first.
    `lines` run whenever its interpreter starts."""
    shutil.rmtree(folder, ignore_errors=True)
    log.run(paths.PYTHON, "-m", "venv", "--without-pip", folder)
    ask = "import json, site; print(json.dumps(site.getsitepackages()))"
    below, own = (
        json.loads(subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout)
        for python in (paths.PYTHON, paths.python_in(folder))
    )
    seen = [f"import site; site.addsitedir({site!r})" for site in below]
    (Path(own[0]) / "zz_layer_below.pth").write_text("\n".join([*seen, *lines]) + "\n")


def tree_venv(tree: Path) -> Path:
    """The folder of a local tree's environment; trees with the same requirements share it."""
    resolved, alone = wanted_requirements(tree)
    return paths.tree_environment(digest(*sorted(resolved), *alone)[:12]) / "venv"


def make_tree_venv(log: Log, tree: Path):
    """Makes the environment of `tree`: only what differs from the common one is installed. Its interpreter writes no
    bytecode into the tree."""
    venv = tree_venv(tree)
    pycache = str(venv.parent / "pycache")
    layered_venv(log, venv, f"import sys; sys.pycache_prefix = None if sys.dont_write_bytecode else {pycache!r}")
    install_requirements(log, tree, venv)
    # the common environment's stubbed builds require another torch, so pip has installed others over them: those go
    log.run(paths.python_in(venv), "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchaudio")


def install_vision_and_audio(log: Log):
    if not needs_stubs():
        pip(log, "-c", paths.CONSTRAINTS, "torchvision", "torchaudio")
        return
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not compiler:
        raise Missing("no C compiler (gcc): torchvision cannot load on a CPU torch, so the app cannot start")
    pip(log, "--no-deps", "-r", STUBBED_REQUIREMENTS)
    _build_stubs(log, compiler)
    log.run(
        *(paths.PYTHON, "-c"),
        "import torch, torchaudio; from torchvision.ops import nms; nms(torch.rand(2, 4), torch.rand(2), .5)",
    )


def _build_stubs(log: Log, compiler: str):
    site = subprocess.run(
        [paths.PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder = Path(site) / "_cuda_stubs"
    folder.mkdir(exist_ok=True)
    version_map = folder / "cudart.map"
    version_map.write_text("libcudart.so.13 { global: *; };\n")
    libraries = {
        "libcudart.so.13": ["-DCUDART", f"-Wl,--version-script={version_map}"],
        "libtorch_cuda.so": ["-DTORCH"],
        "libc10_cuda.so": [],
    }
    for name, extra in libraries.items():
        soname = f"-Wl,-soname,{name}"
        log.run(compiler, "-shared", "-fPIC", "-O1", "-w", *extra, soname, "-o", folder / name, STUBS_SOURCE)
    (folder / "__init__.py").write_text(
        "import ctypes, os\n"
        f"for _name in {tuple(libraries)!r}:\n"
        "    ctypes.CDLL(os.path.join(os.path.dirname(__file__), _name), mode=ctypes.RTLD_GLOBAL)\n"
    )
    (Path(site) / "_cuda_stubs.pth").write_text("import _cuda_stubs\n")


def install_tools(log: Log):
    """Installs what tests and lint need, and without dependencies the peers that we are compared with."""
    pip(log, "-c", paths.CONSTRAINTS, "-r", TEST_REQUIREMENTS)
    pip(log, "--no-deps", "-r", PEER_REQUIREMENTS)
    log.run(paths.PYTHON, "-c", "import pytest, hypothesis, transformers, accelerate, diffusers.hooks")


def install_newest_kitchen(log: Log):
    """Installs comfy-kitchen into its own folder, which tests put first on the path. The build for any platform has
    torch kernels only (1 MB); the one with the GPU libraries has 200 MB."""
    shutil.rmtree(paths.NEWEST_KITCHEN, ignore_errors=True)
    target = ("--target", paths.NEWEST_KITCHEN, "--no-deps", "--platform", "any", "--only-binary", ":all:")
    pip(log, *target, f"comfy-kitchen=={versions.NEWEST_KITCHEN}")


def steps_before_app(steps: Steps):
    steps.run("venv", [sys.version], make_venv, makes=paths.PYTHON)
    steps.run("torch", [versions.TORCH, sys.version], install_torch, makes=paths.TORCH_FACTS)


def steps_after_app(steps: Steps, tree: Path):
    stubbed = (STUBBED_REQUIREMENTS, STUBS_SOURCE)
    facts = paths.TORCH_FACTS
    steps.run("requirements", [tree / "requirements.txt", facts], lambda log: install_requirements(log, tree))
    steps.run("torchvision-torchaudio", [facts, *stubbed], install_vision_and_audio)
    steps.run("newest-kitchen", [versions.NEWEST_KITCHEN], install_newest_kitchen, makes=paths.NEWEST_KITCHEN)
    steps.run("test-tools", [TEST_REQUIREMENTS, PEER_REQUIREMENTS, facts], install_tools)


def step_tree_venv(steps: Steps, tree: Path, default_tree: Path):
    """Runs after `steps_after_app`, which make the environment that this one extends."""
    venv = tree_venv(tree)
    inputs = [*map(str, wanted_requirements(tree)), default_tree / "requirements.txt", paths.TORCH_FACTS, sys.version]
    steps.run(f"tree-{venv.parent.name}", inputs, lambda log: make_tree_venv(log, tree), makes=paths.python_in(venv))
