"""In the memory graph of the app's compiler (from ComfyUI 0.34 on): the app's pixels, no failed graph, and a sentence
of ours where the device runs out of memory.

The graph is a stand-in that fails as the app's does (`tests/runtime/test_memory_graph.py`), brought into today's app by
`compiler_pack`.
"""

import functools
import re
from pathlib import Path

import pytest

from tests.app.conftest import EXTENSION_PACK, FAULT_PACK, SIM_DEFAULTS
from tests.app.test_bit_identity import dit_report, outcome
from tests.app.test_components import report_of
from tests.support import simdev
from tests.support.app_server import AppServer, Result
from tests.support.workflows import CLIP, MODEL, SAMPLER, build, node, with_our_loaders

pytestmark = pytest.mark.app

COMPILER_PACK = Path(__file__).parent / "compiler_pack"
STREAMED = {"placement": "layerwise", "budget_gb": 0.03}
ROOMY = {"placement": "auto", "budget_gb": 0.0}
STEPS = 3
LAYERS = 8


@pytest.fixture
def compiling(server_pool, request):
    """A server with Dynamic VRAM on and the app's compiler, empty; its engine can be made to fail."""
    if not simdev.available():
        pytest.skip("no simulated accelerator (no C++ compiler?)")
    packs = (COMPILER_PACK, EXTENSION_PACK, FAULT_PACK)
    server = server_pool.get("compiling", lambda: AppServer("sim", extra_packs=packs, dynamic_vram=True))
    request.node.app_server = server
    server.post("/fault", {"name": ""})
    server.sim_configure(**SIM_DEFAULTS)
    server.free()
    server.sim_reset()
    server.post("/probe/memory_graph")
    yield server
    if server.alive:
        server.post("/fault", {"name": ""})


def flux(**settings) -> dict:
    return with_our_loaders(build("flux", steps=STEPS, **settings), {CLIP: {"placement": "layerwise"}})


def in_the_graph(lora_mode: str = "auto", **settings) -> dict:
    """Flux under our loader, its forward in the app's memory graph."""
    prompt = flux(loader="layerwise", **{**STREAMED, **settings})
    prompt[MODEL]["inputs"]["lora_mode"] = lora_mode
    prompt["70"] = node("ProbeMemoryGraph", model=prompt[SAMPLER]["inputs"]["model"])
    prompt[SAMPLER]["inputs"]["model"] = ["70", 0]
    return prompt


def counted(server) -> dict:
    return server.get("/probe/memory_graph")


def run(server, *faults: dict, **settings) -> tuple[tuple[str, str], dict]:
    """Digests of a run from an empty server with `faults` in the engine, and what was counted in the graph."""
    server.free()
    server.post("/fault", {"name": ""})
    for fault in faults:
        server.post("/fault", {**fault, "keep": True})
    server.post("/probe/memory_graph")
    found = outcome(server, in_the_graph(**settings))
    return found, counted(server)


@functools.cache
def plain(server) -> dict:
    """What is counted in the graph where nothing but look-ahead is under way."""
    return run(server)[1]


@functools.cache
def reference(server, **settings) -> tuple[str, str]:
    """The app's picture, its weights patched as in a model that is loaded whole: dynamic ones round at other places."""
    return outcome(server, flux(loader="layerwise", placement="whole", **settings))


def test_a_streamed_model_runs_in_the_graph(compiling):
    found, graph = run(compiling)
    assert dit_report(compiling)["summary"]["prefetch_hits"] > 0
    assert found == reference(compiling) == outcome(compiling, flux())
    assert graph["passes"] == STEPS and graph["errors"] == 0


@pytest.mark.parametrize("lora_mode", ["auto", "on_arrival"])
def test_a_lora_on_arrival_is_put_on_outside_the_graph(compiling, lora_mode):
    found, graph = run(compiling, lora=0.8, lora_mode=lora_mode)
    assert dit_report(compiling)["summary"]["revised_layers"] > 0
    assert found == reference(compiling, lora=0.8)
    assert graph == plain(compiling), "what patches allocate is in the graph"


def test_a_layer_outside_the_ring_has_its_memory_outside_the_graph(compiling):
    found, graph = run(compiling, {"name": "ring_lost", "at": 1}, lora=0.8)
    assert dit_report(compiling)["summary"]["unplaced_visits"] >= LAYERS
    assert found == reference(compiling, lora=0.8)
    assert graph == plain(compiling)


@pytest.mark.parametrize("how", ["lora", "ring_lost"])
def test_memory_that_is_taken_in_the_graph_would_be_seen(compiling, how):
    """The seeded fault behind the two tests above."""
    faults = [{"name": "allocated_in_the_apps_graph"}]
    settings: dict = {"lora": 0.8}
    if how == "ring_lost":
        faults.append({"name": "ring_lost", "at": 1})
        settings = {}
    _, graph = run(compiling, *faults, **settings)
    assert graph["breaks"] > plain(compiling)["breaks"]


def full(server, *faults: str) -> Result:
    """All of the device is taken in the fourth layer of a run, in the graph. The run before it has gone well."""
    server.sim_configure(mb=2000)
    outcome(server, in_the_graph(**ROOMY))
    server.post("/probe/memory_graph")
    for fault in (*faults, "device_filled"):
        server.post("/fault", {"name": fault, "at": 3, "keep": True})
    stopped = server.run(in_the_graph(seed=2, **ROOMY))
    server.post("/fault", {"name": ""})
    assert not stopped.ok
    return stopped


def test_a_full_device_ends_the_run_with_a_sentence_and_the_next_is_right(compiling):
    """Nothing is repeated in a failed graph. The next run has room: the encoder makes some, and ours takes less."""
    again = {"seed": 2, "text": "a harbour"}
    expected = reference(compiling, **again)
    compiling.free()
    stopped = full(compiling)
    sentence = (
        r"asked for memory in the layer [\w.]+\.3 of [\w.]+; found npu:0 full, [\d.]+ of [\d.]+ GB free and ComfyUI's "
    )
    sentence += r"compiler memory graph active.*; [\d.]+ GB are given up before the next run: run the prompt again"
    assert re.search(sentence, stopped.message), stopped.message
    assert counted(compiling)["errors"] == 0
    assert outcome(compiling, in_the_graph(**again, **ROOMY)) == expected
    graph, report = counted(compiling), dit_report(compiling)
    assert graph["passes"] == STEPS and graph["errors"] == 0
    assert report["summary"]["retried_visits"] == 0
    assert any("memory graph" in line for line in report["warnings"])
    kept = report["plan"]["resident_bytes"] + report["plan"]["ring_bytes"]
    assert kept < 0.5 * sum(layer["bytes"] for layer in report["plan"]["layers"])
    assert report_of(compiling, "text_encoder")["summary"]["device_bytes"] == 0
    assert compiling.sim_stats()["races"] == 0


def test_a_layer_repeated_in_a_failed_graph_would_be_seen(compiling):
    """The seeded fault behind the test above: room is made on the spot, and the next block finds the graph failed."""
    assert "aimdo memory compile error" in full(compiling, "repeated_in_the_apps_graph").message
    assert counted(compiling)["errors"] == 1
