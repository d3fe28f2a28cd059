"""The stand-in for the app's memory graphs fails as the library does; else the app tests behind it would prove nothing.

Memory is counted by the simulated device itself.
"""

import importlib.util
import sys
import threading

import pytest
import torch

from tests.support import simdev
from tests.support.devkit import paths

pytestmark = pytest.mark.skipif(not simdev.available(), reason="no simulated accelerator")

MIB = 1 << 20
ERROR = "aimdo memory compile error"


@pytest.fixture(scope="module")
def malloc_graph():
    npu = simdev.load()
    npu.configure(mb=1024, bandwidth=0, poison=True, race=False)
    path = paths.SUPPORT / "simdev" / "dynamic" / "comfy_aimdo" / "malloc_graph.py"
    spec = importlib.util.spec_from_file_location("memory_graphs", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    npu.configure(mb=8192)


@pytest.fixture
def graph(malloc_graph):
    graph = malloc_graph.record(torch.npu.current_stream())
    yield graph
    graph.__del__()


def taken(mebibytes: float) -> torch.Tensor:
    return torch.empty(int(mebibytes * MIB), dtype=torch.uint8, device="npu")


def a_pass(graph, *sizes: float) -> list[bool]:
    """A scope for each size, in which so much is allocated and freed. Which of them broke the order."""
    broken = []
    for size in sizes:
        broken.append(graph.iterate("block"))
        memory = taken(size)
        del memory
    broken.append(graph.iterate(None))
    return broken


def test_what_repeats_itself_breaks_nothing(graph):
    a_pass(graph, 1, 5, 1)
    assert graph.pop() is False
    for _ in range(3):
        graph.push()
        assert not any(a_pass(graph, 1, 5, 1)) and graph.pop() is False
    assert graph.rogue_count == 0 and graph.peak_used == 5 * MIB


def test_another_order_is_a_break_and_known_from_then_on(graph):
    a_pass(graph, 1, 1)
    graph.pop()
    graph.push()
    assert a_pass(graph, 1, 2) == [False, False, True]
    graph.pop()
    for sizes in ((1, 2), (2, 1), (1, 1)):
        graph.push()
        assert not any(a_pass(graph, *sizes))
        graph.pop()


def test_a_break_fails_where_breaks_are_refused(malloc_graph):
    graph = malloc_graph.record(torch.npu.current_stream(), assert_graph_breaks=True)
    a_pass(graph, 1)
    graph.pop()
    graph.push()
    with pytest.raises(RuntimeError, match=ERROR):
        a_pass(graph, 2)
    graph.abort()


def test_what_outlives_its_scope_is_handed_over_at_the_end(graph):
    graph.push("block")
    kept = taken(1)
    graph.pop()
    graph.pop()
    assert graph.rogue_count == 1
    del kept  # after the outermost end anybody may free it
    graph.push()
    graph.push("block")
    graph.pop()
    graph.pop()


def refused(graph):
    with pytest.raises(RuntimeError, match=ERROR):
        graph.push("next")
    for call in (graph.pop, graph.pause, graph.resume):
        with pytest.raises(RuntimeError, match=ERROR):
            call()
    graph.abort()
    with pytest.raises(RuntimeError, match=ERROR):
        graph.push()  # it is over for good


def test_a_rogue_freed_before_the_outermost_end_fails_the_graph(graph):
    graph.push("block")
    kept = taken(1)
    graph.pop()
    del kept
    refused(graph)


def test_freeing_inside_what_was_allocated_outside_fails_the_graph(graph):
    outer = taken(1)
    graph.push("block")
    del outer
    refused(graph)


def test_memory_that_cannot_be_had_fails_the_graph(graph):
    graph.push("block")
    with pytest.raises(torch.OutOfMemoryError):
        taken(4096)
    taken(1)  # a failed graph lets all memory pass
    refused(graph)


def test_outside_of_it_memory_may_be_missing(graph):
    graph.push("block")
    graph.pause()
    with pytest.raises(torch.OutOfMemoryError):
        taken(4096)
    graph.resume()
    stream = torch.npu.Stream()
    with torch.npu.stream(stream), pytest.raises(torch.OutOfMemoryError):
        taken(4096)
    graph.pop()
    graph.pop()


def test_what_is_allocated_while_it_pauses_is_not_of_the_graph(graph):
    graph.push("block")
    graph.pause()
    kept = taken(1)
    graph.resume()
    graph.pop()
    del kept
    graph.pop()
    assert graph.rogue_count == 0 and graph.peak_used == 0


@pytest.mark.parametrize("where", ["pause", "thread"])
def test_freeing_its_memory_where_it_does_not_look_fails_the_graph(graph, where):
    graph.push("block")
    inner = [taken(1)]
    if where == "pause":
        graph.pause()
        inner.clear()
    else:
        thread = threading.Thread(target=inner.clear)
        thread.start()
        thread.join()
    refused(graph)


def test_memory_from_before_may_be_freed_inside(malloc_graph):
    before = taken(1)
    graph = malloc_graph.record(torch.npu.current_stream())
    graph.push("block")
    del before
    graph.pop()
    graph.pop()


def test_one_graph_at_a_time_in_a_thread(malloc_graph, graph):
    with pytest.raises(RuntimeError, match="could not start recording"):
        malloc_graph.record(torch.npu.current_stream())
    graph.abort()
    malloc_graph.record(torch.npu.current_stream()).pop()


def test_memory_that_the_program_has_kept_is_not_given_out_again(graph):
    """The place of a rogue is not free while it lives: what was recorded to lie there breaks the order."""
    graph.push("block")
    taken(1)
    kept = taken(1)
    graph.pop()
    graph.pop()
    for broken in (True, False):
        graph.push()
        graph.push("block")
        taken(1)
        assert graph.pop() is broken
        graph.pop()
        kept = kept if broken else None
