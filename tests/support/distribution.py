"""The pack as users get it: the registry's archive, and ComfyUI Manager by git URL and by the registry.

`comfy` (comfy-cli) and `cm-cli` (the Manager) are the real ones, in an environment of their own that is set up when
first asked for. GitHub and the registry are one server on the loopback interface. Nothing is written outside the given
folder.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.devkit import apps, environment, paths, versions
from tests.support.devkit.steps import Log, Steps, exclusive

PACK_ID = "layerwise-offload"
FORK = "a-fork-of-it"
"""The name of the repository that is cloned: not the pack's id, for people fork and rename."""
BIN = paths.DISTRIBUTION_VENV / "bin"
COMMAND_TIMEOUT_S = 120
RUN_MANAGER = (
    "import sys; from comfyui_manager.common import cnr_utils; cnr_utils.base_url = sys.argv.pop(1); "
    "from cm_cli.__main__ import main; main()"
)


def git(*words, cwd: Path) -> str:
    quiet = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    words = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *words)
    return subprocess.run(words, cwd=cwd, env=quiet, check=True, capture_output=True, text=True).stdout


def _listed(*words) -> set[str]:
    return set(filter(None, git("ls-files", "-z", *words, cwd=paths.ROOT).split("\0")))


def working_files() -> list[str]:
    """Every file of the project as it is now, committed or not."""
    return sorted(name for name in _listed("-co", "--exclude-standard") if (paths.ROOT / name).is_file())


def shipped_files() -> list[str]:
    """What of them the registry's archive brings: all that .comfyignore, whose patterns are git's, does not name."""
    return sorted(set(working_files()) - _listed("-coi", "--exclude-from=.comfyignore"))


def copy_of(names: list[str], folder: Path) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / name, folder / name)
    return folder


class Distribution:
    """One distribution of the working tree, under `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = copy_of(working_files(), folder / "source")
        git("init", "-q", cwd=self.source)
        git("add", "-A", cwd=self.source)
        git("commit", "-q", "-m", "all of it", cwd=self.source)
        with exclusive():
            Steps().run("distribution-tools", [versions.COMFY_CLI, versions.COMFY_MANAGER], _install_tools, makes=BIN)

    def comfy(self, *words) -> str:
        return self._run(BIN / "comfy", "--skip-prompt", "--no-json", *words, cwd=self.source)

    def pack(self) -> list[str]:
        """Makes the archive; returns its files."""
        self.comfy("node", "pack")
        with zipfile.ZipFile(self.source / "node.zip") as archive:
            return sorted(name for name in archive.namelist() if not name.endswith("/"))

    def manager_install(self, what: str, url: str) -> Path:
        """The Manager's `install`, into a new copy of the app's tree. `what` is a git URL or an id of the registry at
        `url`. Returns the one new folder in custom_nodes."""
        app = self.folder / "app"
        shutil.rmtree(app, ignore_errors=True)
        apps.under_test().copy_tree(app)
        before = set((app / "custom_nodes").iterdir())
        words = (BIN / "python", "-c", RUN_MANAGER, url, "install", what, "--mode", "cache", "--exit-on-fail")
        said = self._run(*words, cwd=app, env={"COMFYUI_PATH": str(app)})
        new = [path for path in set((app / "custom_nodes").iterdir()) - before if path.name != ".disabled"]
        assert len(new) == 1, f"{[path.name for path in new]}\n{said}"
        return new[0]

    @contextlib.contextmanager
    def served(self, version: str):
        """The address of a server with the repository at /a-fork-of-it.git, and the registry's answers."""
        www = Path(tempfile.mkdtemp(prefix="www-", dir=self.folder))
        git("clone", "-q", "--bare", str(self.source), str(www / f"{FORK}.git"), cwd=self.folder)
        git("update-server-info", cwd=www / f"{FORK}.git")
        if (self.source / "node.zip").is_file():
            shutil.copy(self.source / "node.zip", www)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(www)))
        server.version_of_pack = version
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _run(self, *words, cwd: Path, env: dict | None = None) -> str:
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder), "NO_PROXY": "127.0.0.1"}
        offline = {"DO_NOT_TRACK": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(
            [str(word) for word in words],
            **{"cwd": cwd, "env": {**os.environ, **home, **offline, **(env or {})}, "stdin": subprocess.DEVNULL},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": COMMAND_TIMEOUT_S},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder, and what the registry answers about the one pack it has."""

    def do_GET(self):
        path, version = self.path.partition("?")[0], self.server.version_of_pack
        release = {"id": f"{PACK_ID}-{version}", "version": version}
        release["downloadUrl"] = f"http://{self.headers['Host']}/node.zip"
        answers = {
            "/nodes": {"nodes": [{"id": PACK_ID, "name": PACK_ID, "latest_version": release}], "totalPages": 1},
            f"/nodes/{PACK_ID}/install": release,
            f"/nodes/{PACK_ID}/versions": [release],
        }
        if path not in answers:
            return super().do_GET()
        body = json.dumps(answers[path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _install_tools(log: Log):
    """Both tools over the app's packages (the Manager uses its aiohttp and torchvision), which stay as they are."""
    environment.layered_venv(log, paths.DISTRIBUTION_VENV)
    wanted = (f"comfy-cli=={versions.COMFY_CLI}", f"comfyui-manager=={versions.COMFY_MANAGER}")
    environment.pip(log, *wanted, python=paths.python_in(paths.DISTRIBUTION_VENV))
