"""HTTP routes of the pack. JSON in and out. Of files, traces are written, into the app's output folder, and measured
times removed.

The app's middleware runs first: on a loopback address it answers 403 to requests of any method whose Origin is another
host, and to those that a browser marks as cross-site.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...offload_core.errors import SettingsError
from ...offload_core.trace.trace_export import chrome_trace
from ..app import compat
from ..app.recording import recording
from ..planning.remembered import remembered
from ..report.document import SCHEMA, live_document
from ..report.telemetry import Subscriptions, stored_events
from ..requests.prompt_files import check_prompt
from .expect import ahead_document

FOLDER = "layerwise_offload"
"""Subfolder of the app's output folder."""

MAX_BODY_BYTES = 4096
MAX_PROMPT_BYTES = 1 << 20
MAX_SAVED_FILES = 1000

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
"""Device names on Windows, with any extension."""


def register() -> None:
    """Add the routes to the running server. Called once, before the app freezes its route table."""
    server = compat.server()
    if server is not None:
        routes = Routes(Subscriptions(server))
        server.routes.get("/layerwise_offload/report")(routes.report)
        server.routes.post("/layerwise_offload/expect")(routes.expect)
        server.routes.get("/layerwise_offload/events")(routes.events)
        server.routes.post("/layerwise_offload/subscribe")(routes.subscribe)
        server.routes.post("/layerwise_offload/forget_measured")(routes.forget_measured)
        server.routes.get("/layerwise_offload/trace")(routes.trace)
        server.routes.post("/layerwise_offload/trace/save")(routes.save_trace)


class Routes:
    """The request handlers. What takes milliseconds runs in a thread: it must not block the app's event loop."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._planning = asyncio.Lock()
        """Serialises the reading of model files."""

    async def report(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(live_document))

    async def expect(self, request: web.Request) -> web.Response:
        prompt: Any = (await _body(request, MAX_PROMPT_BYTES)).get("prompt")
        try:
            check_prompt(prompt)
        except SettingsError as error:
            return _refused(str(error))
        async with self._planning:
            return web.json_response(await asyncio.to_thread(ahead_document, prompt))

    async def events(self, request: web.Request) -> web.Response:
        return web.json_response({"schema": SCHEMA, "events": await asyncio.to_thread(stored_events)})

    async def subscribe(self, request: web.Request) -> web.Response:
        body = await _body(request)
        client, on = body.get("client_id"), body.get("on")
        if not isinstance(client, str) or not client or not isinstance(on, bool):
            return _refused(f'asked {_short(body)}; found no {{"client_id": text, "on": true or false}} in it')
        if not on:
            self._subscriptions.remove(client)
        elif not self._subscriptions.add(client):
            return _refused(f"asked for client {_short(client)}; found no open websocket of that id", 404)
        return web.json_response({"client_id": client, "on": on})

    async def forget_measured(self, request: web.Request) -> web.Response:
        try:
            return web.json_response({"forgotten": await asyncio.to_thread(remembered().forget)})
        except OSError as error:
            problem = f"their file cannot be removed ({error.strerror})"
            return _refused(f"asked to forget measured times; found that {problem}; remove it by hand")

    async def trace(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(_document))

    async def save_trace(self, request: web.Request) -> web.Response:
        name = (await _body(request)).get("name")
        if not isinstance(name, str) or not is_file_name(name):
            return _refused(
                f"asked to save a trace as {_short(name)}; found that it is no plain file name; use 1 to 64 letters, "
                "digits, - and _, and dots between them"
            )
        try:
            return web.json_response({"file": await asyncio.to_thread(save, name)})
        except OSError as error:
            return _refused(f"asked to save a trace as {name}; found that it cannot be written ({error.strerror})")


def is_file_name(name: str) -> bool:
    """Whether `name` is a plain file name on every system: no folder, no hidden file, no device name."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(".") and ".." not in name and not _RESERVED.match(name)


def save(name: str) -> str:
    """Write the trace to a new file. Returns its path relative to the output folder. Raises OSError."""
    output = Path(folder_paths.get_output_directory()).resolve()
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != folder:  # a symbolic link
        raise OSError(0, f"{FOLDER} in the output folder leads out of it")
    stem = name.removesuffix(".json")
    text = json.dumps(_document())
    for number in range(MAX_SAVED_FILES):
        path = folder / f"{stem}{f'_{number}' if number else ''}.json"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        return f"{FOLDER}/{path.name}"
    raise OSError(0, f"there are {MAX_SAVED_FILES} files of this name")


def _document() -> dict[str, Any]:
    trace = recording()
    events, _ = trace.since()
    return chrome_trace(events, trace.sources())


async def _body(request: web.Request, most_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The JSON object in a request. Raises HTTPBadRequest for anything else."""
    data = b""
    while len(data) <= most_bytes and (more := await request.content.read(most_bytes + 1 - len(data))):
        data += more
    if len(data) > most_bytes:
        raise _bad_request(f"asked with more than {most_bytes} bytes; send a small JSON object")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise _bad_request("asked with something that is not JSON; send a JSON object") from None
    if not isinstance(body, dict):
        raise _bad_request("asked with JSON that is not an object; send a JSON object")
    return body


def _bad_request(text: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": text}), content_type="application/json")


def _refused(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
