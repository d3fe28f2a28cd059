"""HTTP routes of the pack: read-only, JSON, no arguments."""

from __future__ import annotations

from aiohttp import web

from . import compat
from .component import live_reports
from .report_text import REPORT_SCHEMA


def register() -> None:
    """Add the routes to the running server. Called once, before the app freezes its route table."""
    server = compat.server()
    if server is not None:
        server.routes.get("/layerwise_offload/report")(_report)


async def _report(request: web.Request) -> web.Response:
    return web.json_response({"schema": REPORT_SCHEMA, "components": live_reports()})
