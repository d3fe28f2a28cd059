"""Starts the demo and the served app in the environment, after set-up."""

import subprocess
import sys

from . import apps, paths
from .setup import set_up
from .tiers import child_environment


def _hand_over(name: str, module: str, words: list[str]) -> int:
    set_up(name)
    command = [str(apps.find(name).python), "-m", module, *words]
    try:
        return subprocess.run(command, cwd=paths.ROOT, env=child_environment(name)).returncode
    except KeyboardInterrupt:
        return 130


def demo(arguments) -> int:
    words = ["--device", arguments.device]
    words += ["--json", arguments.json] if arguments.json else []
    words += ["--out", arguments.out] if arguments.out else []
    words += ["--memory-mb", str(arguments.memory_mb)] if arguments.memory_mb else []
    return _hand_over(arguments.comfyui, "tests.support.demo", words)


def serve(arguments) -> int:
    words = ["--device", arguments.device, "--port", str(arguments.port), "--memory-mb", str(arguments.memory_mb)]
    return _hand_over(arguments.comfyui, "tests.support.serve", words)


def gpu_kit(arguments) -> int:
    try:
        from . import gpu_kit as kit
    except ImportError:
        print("dev.py gpu-kit: this checkout has no tests/support/devkit/gpu_kit.py", file=sys.stderr)
        return 1
    return kit.main(arguments) or 0
