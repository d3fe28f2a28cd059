"""What browsers are told while things happen: live messages to those that asked, and what became of each `auto`.

Live messages are made by one task on the app's event loop, which runs only while a client is subscribed: nothing is
sampled, sent or measured otherwise. It makes one message for all of them, and the latest state wins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from ...offload_core.notices import Notice, notices_json
from ...offload_core.sentences import Sentence, reason_json, sentence
from ...offload_core.settings.component_settings import Setting
from ..app import compat
from ..app.recording import recording
from ..component.component import Component, live_components
from ..component.left_alone import LeftAlone
from ..planning.placing import APPS_WAY, left_to_the_app
from ..requests.requested import Requested
from .document import SCHEMA, devices, host, live_state

log = logging.getLogger(__name__)

LIVE_EVENT = "layerwise_offload.live"
RESOLVED_EVENT = "layerwise_offload.resolved"

IN_MEMORY = sentence("in_memory")
"""Of a model that an Apply node was given on the CPU."""

INTERVAL_S = 0.25
MAX_EVENTS = 400
"""In one live message."""

MAX_STORED_EVENTS = 4000
"""For a page that comes later: some twenty passes of a large model."""

ON_DEVICE = ("visit", "stall", "copy")

_NOTABLE_BYTES = 1 << 27


class Subscriptions:
    """Who looks, and the task that tells them. Lives on the event loop; all calls are made there."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._clients: dict[str, bool] = {}
        """By client id: whether it has had a message since it subscribed."""
        self._task: asyncio.Task[None] | None = None
        self._sent_at = 0.0
        self._last: Any = None

    def add(self, client_id: str) -> bool:
        """Tell this client from now on. False: it has no open websocket."""
        if client_id not in self._server.sockets:
            return False
        self._clients[client_id] = False
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    def remove(self, client_id: str) -> None:
        self._clients.pop(client_id, None)

    async def _run(self) -> None:
        trace = recording()
        trace.watch(True)
        cursor, has_told = max(0, trace.written - MAX_EVENTS), False
        try:
            while True:
                await asyncio.sleep(max(0.0, self._sent_at + INTERVAL_S - time.monotonic()))
                self._clients = {c: had for c, had in self._clients.items() if c in self._server.sockets}
                if not self._clients:
                    return
                self._sent_at = time.monotonic()
                try:
                    cursor = await self._tell(cursor, catching_up=not has_told)
                    has_told = True
                except Exception:  # a model that is being dropped this moment; the next message will do
                    log.debug("Layerwise Offload: no live message this time", exc_info=True)
        finally:
            trace.watch(False)
            self._task = None

    async def _tell(self, cursor: int, catching_up: bool) -> int:
        """One message to all clients if there is news, else to those that have had none yet.

        catching_up: the events are from before the first client came; those of components that are gone are left out.
        """
        state = live_message()
        events, after = recording().since(cursor, MAX_EVENTS)
        if catching_up:
            alive = {component["id"] for component in state["components"]}
            events = [event for event in events if event.source in alive]
        running = any(component["running"] for component in state["components"])
        signature = _signature(state)
        news = running or bool(events) or signature != self._last
        self._last = signature
        time_ns = time.monotonic_ns()
        self._sent_at = time_ns / 1e9  # from message to message: to ask for the state may have taken long
        message = {"schema": SCHEMA, "time_ns": time_ns, **state, "events": [event_row(e) for e in events]}
        clients = [client for client, had_one in self._clients.items() if news or not had_one]
        for client in clients:
            self._clients[client] = True
        await asyncio.gather(*(self._server.send_json(LIVE_EVENT, message, client) for client in clients))
        return after


def event_row(event: Any) -> list[Any]:
    """An event as browsers get it."""
    return [event.kind, event.source, event.layer, event.start_ns, event.end_ns, event.nbytes]


def stored_events() -> list[list[Any]]:
    """What has happened on the device and is still remembered, of the components that exist: the newest events."""
    alive = {component.id for component in live_components() if component.plan is not None}
    for component in live_components():
        if component.attached:
            component.controller.prefetcher.read_times()
    events, _ = recording().since()
    rows = [event_row(event) for event in events if event.kind in ON_DEVICE and event.source in alive]
    return rows[-MAX_STORED_EVENTS:]


def _signature(state: dict[str, Any]) -> Any:
    """What makes a message worth sending. Others' memory always moves a little, on the host all the time."""
    devices = [
        device | {name: device[name] // _NOTABLE_BYTES for name in ("free_bytes", "others_bytes")}
        for device in state["devices"]
    ]
    ours = {name: state["host"][name] for name in ("pinned_bytes", "pageable_bytes", "mapped_bytes")}
    components = [
        component | {"numbers": component["numbers"] | {"headroom_bytes": 0}} for component in state["components"]
    ]
    return devices, ours, components


def live_message() -> dict[str, Any]:
    """The state part of a live message. What has arrived of the last measured visits is read first."""
    components = [component for component in live_components() if component.plan is not None]
    for component in components:
        component.controller.prefetcher.read_times()
    states = sorted((live_state(component) for component in components), key=lambda row: str(row["id"]))
    return {"devices": devices(), "host": host(), "components": states}


# ---------------------------------------------------------------------- what became of each auto


def tell_resolved(component: Component) -> None:
    """A component has been loaded by us: what its placement is, from which source, and what it took."""
    plan, request, resolved = component.plan, component.request, component.resolved
    settings = resolved.to_json() if resolved is not None else {}
    placement, budget = settings.get(Setting.PLACEMENT, {}), settings.get(Setting.BUDGET_BYTES, {})
    choice = {"placement": placement.get("value")} | {key: placement.get(key) for key in ("source", "reason", "why")}
    choice["budget_source"] = budget.get("source")
    choice["peer_device"], choice["peer_bytes"] = component.controller.peer_device, component.controller.peer_bytes()
    device_bytes = plan.device_bytes if plan is not None else component.device_bytes()
    _tell_nodes(component, component.id, choice, request.budget_bytes if request is not None else None, device_bytes)


def tell_left_to_the_app(component: Component, requested: Requested, device_bytes: int) -> None:
    """A component has been loaded by the app in its own way."""
    chosen = left_to_the_app(requested)
    settings = requested.settings
    explicit = settings.is_explicitly_set(Setting.PLACEMENT)
    if chosen is None and (explicit or settings.is_explicitly_set(Setting.BUDGET_BYTES)):
        component.warn(sentence("found_in_memory", component=component.name, reason=IN_MEMORY))
    _tell_nodes(component, None, _apps_way(requested, IN_MEMORY), None, device_bytes)


def tell_left_alone(left: LeftAlone) -> None:
    """An Apply node has handed on what cannot be streamed. If that was asked for, it is a warning."""
    requested = left.requested
    notices = []
    if left_to_the_app(requested, by_number=False) is None:
        what = sentence("found_in_memory", component=requested.component, reason=left.why)
        notices = [Notice(requested.component, what, left.do)]
        log.warning("Layerwise Offload: %s: %s", left.model, notices[0].line)
    names = {"id": None, "component": requested.component, "model": left.model}
    sizes = {"budget_bytes": None, "device_bytes": 0}
    message = names | _apps_way(requested, left.why) | sizes | _said(notices, [n for n in notices if n.do is not None])
    _send(requested.nodes, message)


def _apps_way(requested: Requested, otherwise: Sentence) -> dict[str, Any]:
    """The members of a message that say that a component goes the app's way, and why: as was asked, or `otherwise`."""
    chosen, settings = left_to_the_app(requested), requested.settings
    explicit = settings.is_explicitly_set(Setting.PLACEMENT)
    placement = settings.value(Setting.PLACEMENT)
    return {
        "placement": placement if placement in APPS_WAY else "whole",
        "source": settings.source(Setting.PLACEMENT) if explicit and chosen is not None else "policy",
        **reason_json(chosen or otherwise),
        "budget_source": None,
        "peer_device": None,
        "peer_bytes": 0,
    }


def _tell_nodes(
    component: Component, shown_id: str | None, choice: dict[str, Any], budget_bytes: int | None, device_bytes: int
) -> None:
    """`choice`: the members of the message that say what the placement is and why, who set the budget, and what lies on
    another device."""
    message = {
        "id": shown_id,
        "component": component.name,
        "model": component.model_name,
        **choice,
        "budget_bytes": budget_bytes,
        "device_bytes": device_bytes,
        **_said(component.notices, component.take_to_do()),
    }
    _send(component.nodes(), message)


def _said(notices: Sequence[Notice], to_do: Sequence[Notice]) -> dict[str, Any]:
    """The members of a message for all notices, and for those that ask the user to do something."""
    to_act_on = notices_json(to_do)
    return {**notices_json(notices), "to_do": to_act_on["warnings"], "to_do_notices": to_act_on["notices"]}


def _send(nodes: tuple[str, ...], message: dict[str, Any]) -> None:
    """To the client whose prompt runs, as the app's own messages about nodes; to all where there is none."""
    server = compat.server()
    if server is not None:
        for node in nodes or (None,):
            server.send_sync(RESOLVED_EVENT, {"schema": SCHEMA, "node": node, **message}, server.client_id)
