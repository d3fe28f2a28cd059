"""TEST ONLY node pack: puts a fault into the pack under test while the server runs, and takes it out again.

POST /fault {"name": ..., "at": N} seeds one of `FAULTS`, beside those before it with "keep"; {"name": ""} takes all of
them out. Faults are made here, around the engine's own methods: the engine has no switch for them. `at` is the visit,
counted from now, at which those that raise or fill the device do so; of the
shortages it is what there is, in MB, and of the limits their value, in MB.
"""

import contextlib
import importlib
import sys
import time

import comfy.model_management as mm
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}
_undo: list = []


def _engine(name: str):
    """A module of the pack under test, as this server loaded it."""
    package = next(key for key in sys.modules if key.endswith("offload_core.runtime"))
    return importlib.import_module(f"{package}.{name}")


def _replace(owner, name: str, value) -> None:
    original = getattr(owner, name)
    setattr(owner, name, value)
    _undo.append(lambda: setattr(owner, name, original))


def _ports():
    """The port that the engine calls. The one behind it has calls that are torch's own, of each port's stream."""
    return _engine("device.staging").StagedPort


def no_wait_for_the_copy() -> None:
    _replace(_ports(), "compute_waits", lambda self, event: None)


def no_wait_for_the_last_reader() -> None:
    _replace(_ports(), "copy_waits", lambda self, event: None)


def last_reader_marked_on_the_copy_lane() -> None:
    _replace(_ports(), "record_compute", _ports().record_copy)


def bytes_of_the_layer_before() -> None:
    copy, previous = _ports().copy, []

    def wrong(self, destination, source):
        fitting = [old for old in previous if old.numel() == source.numel() and old is not source]
        previous[:] = [source]
        copy(self, destination, fitting[0] if fitting else source)

    _replace(_ports(), "copy", wrong)


def one_wrong_byte_in_each_copy() -> None:
    """The sign of the first 16-bit value of what is copied."""
    copy, kept = _ports().copy, []

    def wrong(self, destination, source):
        changed = source.clone()
        changed.view(torch.uint8).flatten()[1] ^= 0x80
        kept.append(changed)  # the copy is late
        copy(self, destination, changed)

    _replace(_ports(), "copy", wrong)


def layer_taken_for_present() -> None:
    look_ahead = _engine("engine.prefetcher").LookAhead
    set_out = look_ahead._set_out

    def stale(self):
        set_out(self)
        for layer in self._layers:
            layer.valid = layer.device_buffer is not None

    _replace(look_ahead, "_set_out", stale)


def overlaps_forgotten() -> None:
    _replace(_engine("engine.controller"), "link_overlaps", lambda offsets: None)


def _raise_at(visit: int, make, times: int = 1) -> None:
    prefetcher = _engine("engine.prefetcher").Prefetcher
    enter, left = prefetcher.enter, [visit]

    def counting(self, layer):
        enter(self, layer)
        left[0] -= 1
        if -times <= left[0] < 0:
            # inside the layer's call as far as the engine can tell: it is entered, and its forward never returns
            prefetcher.leave(self, layer)
            raise make()

    _replace(prefetcher, "enter", counting)


def interrupt(at: int) -> None:
    _raise_at(at, mm.InterruptProcessingException)


def failure(at: int) -> None:
    _raise_at(at, lambda: RuntimeError("seeded failure"))


def out_of_memory(at: int) -> None:
    _raise_at(at, lambda: torch.OutOfMemoryError("seeded: out of memory"))


def out_of_memory_twice(at: int) -> None:
    """The second time on the visit right after, which is the first one tried again."""
    _raise_at(at, lambda: torch.OutOfMemoryError("seeded: out of memory"), times=2)


def device_filled(at: int) -> None:
    """All free device memory is taken at a visit, before the layer has run."""
    prefetcher = _engine("engine.prefetcher").Prefetcher
    enter, left, taken = prefetcher.enter, [at], []

    def filling(self, layer):
        enter(self, layer)
        left[0] -= 1
        if left[0] == -1:
            size = 1 << 30
            while size >= 512:
                try:
                    taken.append(torch.empty(size, dtype=torch.uint8, device=self.port.device))
                except torch.OutOfMemoryError:
                    size //= 2

    _replace(prefetcher, "enter", filling)
    _undo.append(taken.clear)


def less_than_it_looked(at: int) -> None:
    """The device has less room for a plan than it seemed to have: loading one fails, once, at the `at`-th time."""
    controller = _engine("engine.controller").OffloadController
    load, left = controller.load, [at]

    def failing(self, plan):
        left[0] -= 1
        if left[0] == -1:
            raise torch.OutOfMemoryError("seeded: out of memory while loading")
        load(self, plan)

    _replace(controller, "load", failing)


def ring_lost(at: int) -> None:
    """Another component has the ring for the length of a pass, the `at`-th of a component's life: memory of its own
    for each layer."""
    controller = _engine("engine.controller").OffloadController
    may = controller.may_use_ring

    def may_not(self):
        if self.counters.passes != at:
            return may(self)
        self.prefetcher.give_up_ring()
        return False

    _replace(controller, "may_use_ring", may_not)


def allocated_in_the_apps_graph() -> None:
    """For components that are attached from now on."""
    _replace(_bridge("app.compat"), "outside_the_apps_graph", lambda: contextlib.nullcontext)


def repeated_in_the_apps_graph() -> None:
    _replace(_bridge("component.giving_back"), "apps_graph_is_active", lambda: False)


def single_layers_from(at: int) -> None:
    """No fault: what lies outside any list of blocks is a layer, and a table stays on the host, from so many MB on.

    So a small model is cut as one of full size is.
    """
    discovery = _engine("layers.discovery")
    walk = sys.modules[discovery.units.__module__]
    _replace(walk, "MIN_SINGLE_LAYER_BYTES", at * 1_000_000)
    _replace(discovery, "HOST_GATHER_BYTES", at * 1_000_000)


def pin_ceiling(at: int) -> None:
    """The app lets so many MB be page-locked, as it would on a card of its own kind."""
    _replace(mm, "MAX_PINNED_MEMORY", at * 1_000_000)


# ---------------------------------------------------------------------- files and host memory


def _before_reads(at: int, then) -> None:
    """`then` is called before the `at`-th read from a weight file, and before all that come after it."""
    file = _engine("files.weight_file").WeightFile
    read, left = file._read, [at]

    def reading(self, view, offset):
        left[0] -= 1
        if left[0] < 0:
            then(self)
        return read(self, view, offset)

    _replace(file, "_read", reading)


def unreadable(at: int) -> None:
    def refuse(file):
        raise PermissionError(13, "Permission denied")

    _before_reads(at, refuse)


def deleted(at: int) -> None:
    _before_reads(at, lambda file: file.path.unlink(missing_ok=True))


def slow(at: int) -> None:
    """As over a bad network: each read takes most of a second."""
    _before_reads(at, lambda file: time.sleep(0.7))


def little_memory(at: int = 1) -> None:
    """The host has so many megabytes left."""
    _replace(_engine("engine.tier_moves"), "available_bytes", lambda: at << 20)
    package = next(key for key in sys.modules if key.endswith("offload_core.planning.host_budget"))
    _replace(sys.modules[package], "available_bytes", lambda: at << 20)


def little_device_memory(at: int) -> None:
    """Another program holds all of the device but so many MB. It writes nothing: the host gives no memory for it."""
    card = torch.get_device_module()
    taken = []

    def let_go():
        card_settings(poison=0)
        taken.clear()
        card.empty_cache()
        card_settings(poison=1)

    card_settings = sys.modules["torch_npu"].configure
    card_settings(poison=0)
    taken.append(torch.empty(card.mem_get_info()[0] - (at << 20), dtype=torch.uint8, device=card.current_device()))
    card_settings(poison=1)
    _undo.append(let_go)


def failure_before_load() -> None:
    """The app has loaded a model and does not come as far as to use it."""

    def fail(self, *args, **kwargs):
        raise RuntimeError("seeded failure")

    _replace(_engine("engine.controller").OffloadController, "__init__", fail)


def unified_memory() -> None:
    """The device computes in host memory, as Apple's do."""
    _replace(_engine("device.device_port"), "is_unified", lambda device: True)


# ---------------------------------------------------------------------- what the server tells browsers


def _bridge(name: str):
    package = next(key for key in sys.modules if key.endswith(".bridge.api")).removesuffix(".api")
    return importlib.import_module(f"{package}.{name}")


def any_file_name() -> None:
    _replace(_bridge("server.routes"), "is_file_name", lambda name: True)


def bodies_of_any_size() -> None:
    routes = _bridge("server.routes")
    body = routes._body
    _replace(routes, "_body", lambda request, most_bytes=0: body(request, 1 << 30))


def saved_over_another() -> None:
    routes = _bridge("server.routes")

    def save(name):
        path = routes.Path(routes.folder_paths.get_output_directory()) / routes.FOLDER
        path.mkdir(exist_ok=True)
        (path / f"{name}.json").write_text(routes.json.dumps(routes._document()))
        return f"{routes.FOLDER}/{name}.json"

    _replace(routes, "save", save)


def told_to_everybody() -> None:
    subscriptions = _bridge("report.telemetry").Subscriptions
    add = subscriptions.add

    def add_all(self, client):
        for other in list(self._server.sockets):
            add(self, other)
        return add(self, client)

    _replace(subscriptions, "add", add_all)


def strangers_are_subscribed() -> None:
    _replace(_bridge("report.telemetry").Subscriptions, "add", lambda self, client: True)


def told_without_pause() -> None:
    _replace(_bridge("report.telemetry"), "INTERVAL_S", 0.02)


def told_although_nothing_happens() -> None:
    _replace(_bridge("report.telemetry"), "_signature", lambda state: object())


def told_of_another_node() -> None:
    telemetry = _bridge("report.telemetry")
    send = telemetry._send
    _replace(telemetry, "_send", lambda nodes, message: send(("99",), message))


def every_warning_is_to_do() -> None:
    _replace(_bridge("component.component").Component, "take_to_do", lambda self: self.notices)


def events_of_what_is_gone() -> None:
    telemetry = _bridge("report.telemetry")

    def all_events():
        return [telemetry.event_row(event) for event in telemetry.recording().since()[0]]

    _replace(_bridge("server.routes"), "stored_events", all_events)


def planned_from_any_path() -> None:
    _replace(_bridge("files.ahead"), "_path", lambda wanted, name: name)


def planned_without_the_widgets() -> None:
    graph_files = _bridge("requests.prompt_files")
    _replace(graph_files, "widget_settings", lambda slot, inputs, component: graph_files.ComponentSettings(component))


TOLD = (
    *(any_file_name, bodies_of_any_size, saved_over_another, told_to_everybody, strangers_are_subscribed),
    *(told_without_pause, told_although_nothing_happens, told_of_another_node, every_warning_is_to_do),
    *(events_of_what_is_gone, planned_from_any_path, planned_without_the_widgets),
)


SILENT = (
    no_wait_for_the_copy,
    no_wait_for_the_last_reader,
    last_reader_marked_on_the_copy_lane,
    bytes_of_the_layer_before,
    one_wrong_byte_in_each_copy,
    layer_taken_for_present,
    overlaps_forgotten,
)
RAISING = (interrupt, failure, out_of_memory, out_of_memory_twice, device_filled, less_than_it_looked, ring_lost)
SHORTAGES = (pin_ceiling, little_memory, little_device_memory)
LIMITS = (single_layers_from,)
OF_THE_HOST = (unreadable, deleted, slow)
OTHERS = (failure_before_load, unified_memory, allocated_in_the_apps_graph, repeated_in_the_apps_graph)
FAULTS = {fault.__name__: fault for fault in (*SILENT, *RAISING, *SHORTAGES, *LIMITS, *OF_THE_HOST, *OTHERS, *TOLD)}


@PromptServer.instance.routes.get("/fault/pins")
async def _pins(request):
    return web.json_response({"total": mm.TOTAL_PINNED_MEMORY})


@PromptServer.instance.routes.post("/fault")
async def _fault(request):
    wanted = await request.json()
    while _undo and not wanted.get("keep"):
        _undo.pop()()
    if wanted["name"]:
        fault = FAULTS[wanted["name"]]
        takes_place = fault in (*RAISING, *SHORTAGES, *LIMITS, *OF_THE_HOST) and "at" in wanted
        fault(wanted["at"]) if takes_place else fault()
    return web.json_response({})
