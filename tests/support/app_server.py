"""Starts, drives and stops a real ComfyUI server process with the pack under test; knows nothing of the pack's insides.

    with AppServer(device="sim", memory_mb=1400) as server:
        result = server.run(workflows.build("flux", loader="layerwise"))
        pixels = server.images(result)

Everything that the server writes goes to a temporary folder; the app's tree stays as it is. The pack's own checkout is
linked into custom_nodes under a name with a hyphen, on purpose: nothing may depend on the folder's name.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from tests.support.devkit import app_tree, apps, paths
from tests.support.devkit.versions import numbers

PACK_FOLDER = "layerwise-offload"
READY_TIMEOUT_S = 180
STOP_TIMEOUT_S = 15
POLL_S = 0.03
KEPT_LOGS = 20
# What the app keeps of the device for itself: a simulated device of this size plus N MiB has about N MiB for weights.
APP_RESERVE_MB = 1220


class ServerError(RuntimeError):
    """The server did not start, died, or answered with something unexpected; the message has the log's tail."""


@dataclasses.dataclass
class Result:
    """What became of one prompt. `status` is success, error, interrupted, or rejected (never ran)."""

    prompt_id: str
    status: str
    seconds: float
    outputs: dict
    error: dict

    @property
    def ok(self) -> bool:
        return self.status == "success"

    @property
    def message(self) -> str:
        """The error as a user reads it: exception type and text, or the reasons for a rejection."""
        if "exception_message" in self.error:
            return f"{self.error.get('exception_type', '')}: {self.error['exception_message']}".strip()
        return json.dumps(self.error) if self.error else ""

    def check(self) -> "Result":
        assert self.ok, (
            f"the workflow ended as '{self.status}': {self.message}\n{''.join(self.error.get('traceback', []))}"
        )
        return self


class AppServer:
    """One server process. `device` is "sim", "cpu" or "cuda"; `version` names another app than the one under test, in
    the way of `--comfyui`; `pack=False` leaves the pack under test out, `dynamic_vram` turns the app's Dynamic VRAM
    on (sim only), `frontend` is the folder of another frontend's page."""

    def __init__(
        self,
        device: str = "sim",
        *,
        memory_mb: int = 8192,
        bandwidth: float = 0,
        devices: int = 1,
        poison: bool = True,
        race: bool = True,
        version: str | None = None,
        extra_args: tuple[str, ...] = (),
        extra_packs: tuple[Path, ...] = (),
        env: dict | None = None,
        pack: bool = True,
        dynamic_vram: bool = False,
        port: int | None = None,
        frontend: Path | None = None,
    ):
        if device not in ("sim", "cpu", "cuda"):
            raise ValueError(f"device must be sim, cpu or cuda, not {device!r}")
        self.device, self.port = device, port or _free_port()
        self.app = apps.find(version) if version else apps.under_test()
        self.version = self.app.version
        self.url = f"http://127.0.0.1:{self.port}"
        self._sim = {
            **{"memory_mb": memory_mb, "bandwidth": bandwidth, "devices": devices},
            **{"poison": poison, "race": race},
        }
        self._dynamic_vram = dynamic_vram
        self._extra_args, self._extra_packs, self._extra_env, self._pack = extra_args, extra_packs, env or {}, pack
        self._frontend = frontend or app_tree.frontend_root(self.app)
        self._process: subprocess.Popen | None = None
        self.base = Path()
        self.log_path = Path()

    # ---- life

    def start(self) -> "AppServer":
        self.base = Path(tempfile.mkdtemp(prefix="layerwise-app-"))
        self.log_path = self.base / "server.log"
        try:
            self._prepare_base()
            with self.log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    cwd=self.base,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self):
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its own session, so this group is ours alone
                process.wait()
        if self.base != Path():
            self._keep_log()
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> "AppServer":
        return self.start()

    def __exit__(self, *exc):
        self.stop()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.is_file() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def _keep_log(self):
        kept = paths.ARTIFACTS / "server-logs" / f"{self.device}-{self.version}-{self.port}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copy(self.log_path, kept)
            for old in sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_LOGS]:
                old.unlink()

    def _prepare_base(self):
        packs = self.base / "custom_nodes"
        settings = self.base / "user" / "default"
        for folder in (packs, settings, self.base / "output", self.base / "input", self.base / "temp"):
            folder.mkdir(parents=True)
        # otherwise the first visit opens the template browser
        (settings / "comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
        links = {
            "zz_tiny_models": paths.SUPPORT / "tiny_models" / "shim",
            "zz_simdev": paths.SUPPORT / "simdev" / "pack",
        }
        links.update({pack.name: pack for pack in self._extra_packs})
        if self._pack:
            links[PACK_FOLDER] = paths.ROOT
        for name, target in links.items():
            (packs / name).symlink_to(target, target_is_directory=True)

    def _command(self) -> list[str]:
        words = [self.app.python, self.app.tree / "main.py", "--listen", "127.0.0.1", "--port", self.port]
        words += ["--disable-auto-launch", "--disable-api-nodes", "--base-directory", self.base]
        words += ["--database-url", "sqlite:///:memory:", *self._models_args()]
        words += ["--front-end-root", self._frontend] if self._frontend else []
        words += ["--cpu"] if self.device == "cpu" else []
        words += ["--enable-dynamic-vram"] if self._dynamic_vram else []
        return [str(word) for word in (*words, *self._extra_args)]

    def _models_args(self) -> list:
        if numbers(self.version) >= (0, 27):
            return ["--models-directory", paths.MODELS]
        folders = (
            "diffusion_models",
            "text_encoders",
            "vae",
            "loras",
            "controlnet",
            "clip_vision",
            "checkpoints",
            "upscale_models",
        )
        lines = ["tests:", f"  base_path: {paths.MODELS}", *(f"  {name}: {name}" for name in folders)]
        config = self.base / "extra_model_paths.yaml"
        config.write_text("\n".join(lines) + "\n")
        return ["--extra-model-paths-config", config]

    def _environment(self) -> dict:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        env["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin while they wait make a busy machine many times slower
        env.pop("PYTHONPATH", None)  # our own root must never be there: our `nodes` would hide the app's
        if self.device == "sim":
            env["PYTHONPATH"] = str(paths.SUPPORT / "simdev" / "standin")
            env["SIMDEV_LIB"] = str(paths.SIMDEV_LIBRARY)
            env["SIMDEV_MB"] = str(self._sim["memory_mb"])
            env["SIMDEV_BW"] = str(int(self._sim["bandwidth"]))
            env["SIMDEV_DEVICES"] = str(self._sim["devices"])
            env["SIMDEV_POISON"] = str(int(self._sim["poison"]))
            env["SIMDEV_RACE"] = str(int(self._sim["race"]))
        if self._dynamic_vram:  # a stand-in for its native library
            env["PYTHONPATH"] = os.pathsep.join((str(paths.SUPPORT / "simdev" / "dynamic"), env["PYTHONPATH"]))
        env.update(self._extra_env)
        return env

    def _wait_ready(self):
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.alive:
                code = self._process.returncode
                raise ServerError(f"ComfyUI {self.version} ended with code {code} while starting\n{self.log_tail()}")
            with contextlib.suppress(OSError, ServerError):
                self.get("/system_stats", timeout=5)
                return
            time.sleep(0.1)
        raise ServerError(f"ComfyUI {self.version} was not ready after {READY_TIMEOUT_S} s\n{self.log_tail()}")

    # ---- HTTP

    def get(self, path: str, timeout: float = 60):
        return self._ask(path, None, timeout)

    def post(self, path: str, body: dict | None = None, timeout: float = 60):
        return self._ask(path, json.dumps(body or {}).encode(), timeout)

    def text(self, path: str, timeout: float = 60) -> str:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return answer.read().decode()

    def _ask(self, path: str, body: bytes | None, timeout: float):
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise HttpError(path, error.code, error.read().decode(errors="replace")) from None
        return json.loads(text) if text else None

    # ---- prompts

    def submit(self, prompt: dict) -> str:
        """Queue a workflow in API form; returns its id. Raises HttpError (400) if the app rejects it.

        And ServerError if it rejects a part: the app would silently run the rest.
        """
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        if answer.get("node_errors"):
            raise ServerError(f"the app leaves out a part of the workflow: {answer['node_errors']}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 120) -> Result:
        started = time.monotonic()
        while time.monotonic() - started < timeout:
            if not self.alive:
                raise ServerError(f"the server died while running a workflow\n{self.log_tail()}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status"):
                return _result(prompt_id, entry)
            time.sleep(POLL_S)
        raise ServerError(f"a workflow was not done after {timeout} s\n{self.log_tail()}")

    def run(self, prompt: dict, timeout: float = 120) -> Result:
        """Run a workflow to its end, however it ends. `.check()` on the result asserts success."""
        try:
            prompt_id = self.submit(prompt)
        except HttpError as error:
            if error.code != 400:
                raise
            return Result("", "rejected", 0.0, {}, error.body)
        return self.wait(prompt_id, timeout)

    def wait_for_log(self, text: str, timeout: float = 60, after: int = 0):
        """Until the server has written `text`: for cases that need it in the middle of something.

        after: how much of the log, in characters, is from before and does not count
        """
        deadline = time.monotonic() + timeout
        while text not in self.log()[after:]:
            if time.monotonic() > deadline or not self.alive:
                raise ServerError(f"the server never wrote {text!r}\n{self.log_tail()}")
            time.sleep(POLL_S)

    def interrupt(self):
        self.post("/interrupt")

    def free(self):
        """Unload all models and drop the cached results; returns when the app has done it."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        for _ in range(2):  # the worker obeys after a prompt, perhaps this first one: the second's start proves it done
            self.run({"1": {"class_type": "PreviewAny", "inputs": {"source": uuid.uuid4().hex}}}).check()

    def object_info(self, node: str | None = None) -> dict:
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def report(self) -> dict:
        """What the pack says it did (GET /layerwise_offload/report)."""
        return self.get("/layerwise_offload/report")

    # ---- the simulated accelerator

    def sim_stats(self) -> dict:
        return self.get("/simdev/stats")

    def sim_reset(self) -> dict:
        return self.post("/simdev/reset")

    def sim_configure(self, **settings) -> dict:
        """mb (memory limit), bandwidth (bytes per second), poison, race; any subset."""
        return self.post("/simdev/configure", settings)

    # ---- what a workflow left behind

    def files(self, result: Result, kind: str = "images", node: str | None = None) -> list[Path]:
        """The files of the outputs, in order; `kind` is "images" or "latents"; all nodes unless one is named."""
        found = []
        for node_id in sorted(result.outputs, key=_natural):
            if node in (None, node_id):
                for entry in result.outputs[node_id].get(kind, []):
                    found.append(self.base / entry["type"] / entry.get("subfolder", "") / entry["filename"])
        return found

    def images(self, result: Result, node: str | None = None) -> list:
        """Decoded pixels, one uint8 array per image. (Files differ by the prompt that is embedded in them.)"""
        import numpy
        from PIL import Image

        return [numpy.asarray(Image.open(path).convert("RGB")) for path in self.files(result, "images", node)]

    def latents(self, result: Result, node: str | None = None) -> list:
        """The arrays of the SaveLatent nodes, in float32 (which holds the app's types exactly)."""
        from safetensors.torch import load_file

        return [load_file(path)["latent_tensor"].float().numpy() for path in self.files(result, "latents", node)]


class HttpError(ServerError):
    """The server answered with an error code; `body` is its JSON, or {"text": ...}."""

    def __init__(self, path: str, code: int, text: str):
        super().__init__(f"{path}: HTTP {code}: {text[:2000]}")
        self.code = code
        try:
            self.body = json.loads(text)
        except ValueError:
            self.body = {"text": text}


def _result(prompt_id: str, entry: dict) -> Result:
    status, messages = entry["status"], dict(entry["status"].get("messages", []))
    error = messages.get("execution_error") or messages.get("execution_interrupted") or {}
    name = "interrupted" if "execution_interrupted" in messages else status.get("status_str", "error")
    begun = messages.get("execution_start", {}).get("timestamp", 0)
    ended = [body["timestamp"] for word, body in messages.items() if word != "execution_start" and "timestamp" in body]
    seconds = (max(ended) - begun) / 1000 if begun and ended else 0.0
    return Result(prompt_id, name, seconds, entry.get("outputs", {}), error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _natural(node_id: str):
    return (0, int(node_id), "") if node_id.isdigit() else (1, 0, node_id)
