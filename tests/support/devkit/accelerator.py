"""Compiles the simulated accelerator (tests/support/simdev) against the environment's torch."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import environment, paths
from .steps import Log, Missing, Steps

SOURCES = paths.SUPPORT / "simdev" / "src"
FLAGS = ("-fPIC", "-std=c++20", "-O1", "-w")


def build(log: Log):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise Missing(
            "no C++ compiler (g++): no simulated accelerator, so nothing that streams in the real app is tested"
        )
    facts = environment.torch_facts()
    torch_folder = Path(facts["folder"])
    include = (f"-I{torch_folder}/include", f"-I{torch_folder}/include/torch/csrc/api/include")
    objects = paths.SIMDEV_LIBRARY.parent / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    sources = sorted(SOURCES.glob("*.cpp"), key=lambda source: -source.stat().st_size)

    def compile_one(source: Path) -> Path:
        target = objects / f"{source.stem}.o"
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={facts['abi']}"
        log.run(compiler, "-c", *FLAGS, abi, *include, "-o", target, source)
        return target

    with ThreadPoolExecutor(2) as pool:
        compiled = list(pool.map(compile_one, sources))
    libraries = (f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder}/lib", "-pthread")
    log.run(compiler, "-shared", "-o", paths.SIMDEV_LIBRARY, *compiled, *libraries)
    _try(log)


def _try(log: Log):
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.support import simdev; simdev.load();"
        "import torch; x = torch.arange(4.).to('npu:0'); assert (x + 1).sum().item() == 10"
    )
    try:
        log.run(paths.PYTHON, "-c", probe, paths.ROOT)
    except subprocess.CalledProcessError:
        raise RuntimeError("the simulated accelerator was compiled but does not work with this torch") from None


def available() -> bool:
    return paths.SIMDEV_LIBRARY.is_file()


def step(steps: Steps):
    steps.run("simulated-accelerator", [SOURCES, paths.TORCH_FACTS], build, makes=paths.SIMDEV_LIBRARY)
