"""Fixtures of the app tier: real ComfyUI servers, one per mode, started when first asked for and kept for the session.

`sim` is the one most tests want: a server on the simulated accelerator, put back to its defaults before each test, with
the race check on. `app_server_factory` starts others with any arguments, and stops them at the end of the test.
"""

from pathlib import Path

import pytest

from tests.support import memory_use, simdev, tiny_models
from tests.support.app_server import APP_RESERVE_MB, AppServer
from tests.support.devkit import paths
from tests.support.model_files import ModelFiles

PROBE_PACK = Path(__file__).parent / "probe_pack"
FAULT_PACK = paths.SUPPORT / "fault_pack"
GGUF_PACK = paths.SUPPORT / "gguf_pack"
EXTENSION_PACK = Path(__file__).parent / "extension_pack"
HANDS_PACK = Path(__file__).parent / "foreign_hands_pack"
SIM_DEFAULTS = {"mb": 8192, "bandwidth": 0, "poison": 1, "race": 1, "pin_limit_mb": -1, "allocator": "native"}
APPS_TABLES_BYTES = 4096
"""What the app's quantisation library keeps on the device for good, once it has been used: a small table a type."""


class ServerPool:
    """Servers by mode. One that died in a test is started anew for the next."""

    def __init__(self):
        self._servers: dict = {}

    def get(self, key, make) -> AppServer:
        server = self._servers.get(key)
        if server is None or not server.alive:
            if server is not None:
                server.stop()
            self._servers[key] = server = make()
            server.start()
        return server

    def close(self):
        for server in self._servers.values():
            server.stop()


def forget_measured_times(server: AppServer):
    """Earlier tests have measured models; the plans of the next one are not to depend on that."""
    server.post("/layerwise_offload/forget_measured")


@pytest.fixture(scope="session")
def server_pool():
    pool = ServerPool()
    yield pool
    pool.close()


@pytest.fixture
def sim(server_pool, request):
    """A server on the simulated accelerator: nothing loaded, counters at zero, plenty of memory, fast copies."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    server = server_pool.get("sim", lambda: AppServer("sim", extra_packs=(PROBE_PACK, EXTENSION_PACK, GGUF_PACK)))
    server.sim_configure(**SIM_DEFAULTS)
    server.free()
    forget_measured_times(server)
    server.sim_reset()
    server.idle_bytes = server.sim_stats()["used"]
    assert server.idle_bytes <= APPS_TABLES_BYTES, "left on the device by an earlier test"
    request.node.app_server = server
    return server


@pytest.fixture
def faulty(server_pool, request):
    """A server whose engine can be made to fail; sound and empty at the start of each test."""
    server = server_pool.get("faulty", lambda: AppServer("sim", extra_packs=(FAULT_PACK, GGUF_PACK, PROBE_PACK)))
    request.node.app_server = server
    server.post("/fault", {"name": ""})
    server.sim_configure(**SIM_DEFAULTS)
    server.free()
    forget_measured_times(server)
    server.sim_reset()
    yield server
    if server.alive:
        server.post("/fault", {"name": ""})


@pytest.fixture
def hands(server_pool, request):
    """A server beside whose pack another one replaces methods of classes, and reads and writes weights."""
    server = server_pool.get("hands", lambda: AppServer("sim", extra_packs=(HANDS_PACK, PROBE_PACK)))
    request.node.app_server = server
    server.post("/hands/restore")
    server.sim_configure(**SIM_DEFAULTS)
    server.free()
    forget_measured_times(server)
    server.sim_reset()
    yield server
    if server.alive:
        server.post("/hands/restore")


@pytest.fixture
def cpu(server_pool, request):
    """A server started with --cpu: nothing loaded, and what was is no longer in its memory."""
    server = server_pool.get("cpu", lambda: AppServer("cpu", env=memory_use.GIVES_BACK, extra_packs=(FAULT_PACK,)))
    request.node.app_server = server
    server.post("/fault", {"name": ""})
    server.free()
    forget_measured_times(server)
    yield server
    if server.alive:
        server.post("/fault", {"name": ""})


@pytest.fixture
def app_server_factory(request):
    """`start(device, **arguments)` for a server of the test's own."""
    started = []

    def start(*args, **kwargs) -> AppServer:
        server = AppServer(*args, **kwargs)
        started.append(server)
        server.start()
        request.node.app_server = server
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def model_files():
    """Files among the models, for the length of the test."""
    files = ModelFiles()
    yield files
    files.close()


@pytest.fixture
def own_file(model_files):
    """The path of a copy of flux_tiny that the test may spoil."""
    tiny_models.ensure("flux_tiny")
    folder = "diffusion_models"
    sound = paths.MODELS / folder / tiny_models.file_name("flux_tiny")
    return sound.with_name(model_files.put(folder, "own.safetensors", sound))


@pytest.fixture
def weights_mb(sim):
    """`weights_mb(20)` leaves the app about 20 MiB of the simulated device for weights, so that it must offload."""

    def limit(megabytes: float):
        sim.sim_configure(mb=APP_RESERVE_MB + megabytes)

    return limit


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the end of its server's log."""
    outcome = yield
    report = outcome.get_result()
    server = getattr(item, "app_server", None)
    if report.failed and server is not None:
        report.sections.append(("end of the server's log", server.log_tail(60)))
