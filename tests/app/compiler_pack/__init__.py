"""TEST ONLY node pack: gives `comfy.model_prefetch` the memory graph that ComfyUI has from 0.34 on, under its names,
on whatever `comfy_aimdo.malloc_graph` is there, and a node `ProbeMemoryGraph` that runs a Flux model's forward in it, a
scope for each block. The simulated device is taken for CUDA.

GET /probe/memory_graph answers {"breaks", "rogues", "passes", "errors"} since the last POST there: graph breaks, memory
that outlived its scope, forwards that ended well in a graph, and refusals of a graph that has failed.
"""

import contextlib
import threading

import comfy.memory_management
import comfy.model_prefetch as prefetch
import comfy.patcher_extension
import comfy_aimdo.malloc_graph
import torch
from aiohttp import web
from server import PromptServer

_SCOPE = "block"
counted = {"breaks": 0, "rogues": 0, "passes": 0, "errors": 0}


@contextlib.contextmanager
def _refusals_counted():
    try:
        yield
    except RuntimeError as error:
        counted["errors"] += "aimdo memory compile error" in str(error)
        raise


def _graph():
    """This thread's graph, if it runs in it."""
    graph = prefetch.MALLOC_GRAPHS.get(threading.get_ident())
    return graph if graph is not None and graph._comfy_active else None


def malloc_graph_enabled(device):
    return comfy.memory_management.aimdo_enabled and device.type == "npu"


def malloc_graph_begin(device):
    if malloc_graph_enabled(device):
        graph = prefetch.MALLOC_GRAPHS.get(threading.get_ident())
        if graph is None:
            graph = comfy_aimdo.malloc_graph.record(torch.npu.current_stream(device))
            prefetch.MALLOC_GRAPHS[threading.get_ident()] = graph
        else:
            with _refusals_counted():
                graph.push()
        graph._comfy_active = True


def malloc_graph_end():
    graph = _graph()
    if graph is not None:
        with _refusals_counted():
            counted["breaks"] += graph.pop()
        graph._comfy_active = False
        counted["passes"] += 1


def cleanup_malloc_graph():
    graph = prefetch.MALLOC_GRAPHS.pop(threading.get_ident(), None)
    if graph is not None:
        if graph._comfy_active:
            graph._comfy_active = False
            graph.abort()
        counted["rogues"] += graph.rogue_count


@contextlib.contextmanager
def malloc_graph_scope(device):
    malloc_graph_begin(device)
    try:
        yield
    except BaseException:
        cleanup_malloc_graph()
        raise
    malloc_graph_end()


class pause_malloc_graph:  # noqa: N801 - the app calls it like a function
    def __init__(self, sync=False):
        self.sync = sync

    def __enter__(self):
        graph = _graph()
        if graph is not None:
            with _refusals_counted():
                graph.pause(sync=self.sync)

    def __exit__(self, *error):
        graph = _graph()
        if graph is not None:
            with _refusals_counted():
                graph.resume(sync=self.sync)


def next_scope(name):
    graph = _graph()
    if graph is not None:
        with _refusals_counted():
            counted["breaks"] += graph.iterate(name)


def _cleaned_up_first(cleanup):
    def both():
        cleanup_malloc_graph()
        cleanup()

    return both


prefetch.MALLOC_GRAPHS = {}
prefetch.cleanup_prefetch_queues = _cleaned_up_first(prefetch.cleanup_prefetch_queues)
for _function in (
    *(malloc_graph_enabled, malloc_graph_begin, malloc_graph_end, malloc_graph_scope),
    *(cleanup_malloc_graph, pause_malloc_graph),
):
    setattr(prefetch, _function.__name__, _function)


def _in_the_graph(executor, x, *args, **kwargs):
    """The whole forward in the graph. In each of the two rows of blocks, a block begins a scope and ends the last one;
    what lies between and after the rows is outside of them. Flux's blocks write into their input, as those that the app
    runs in a graph have to: what they return was allocated outside."""
    hooks = []
    for row in (executor.class_obj.double_blocks, executor.class_obj.single_blocks):
        hooks += [block.register_forward_pre_hook(lambda *call: next_scope(_SCOPE)) for block in row]
        hooks.append(row[-1].register_forward_hook(lambda *call: next_scope(None)))
    try:
        with malloc_graph_scope(x.device):
            return executor(x, *args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()


class ProbeMemoryGraph:
    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        model = model.clone()
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(kind, "memory_graph", _in_the_graph)
        return (model,)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ProbeMemoryGraph,)}


@PromptServer.instance.routes.get("/probe/memory_graph")
async def _counted(request):
    return web.json_response(counted)


@PromptServer.instance.routes.post("/probe/memory_graph")
async def _anew(request):
    counted.update(dict.fromkeys(counted, 0))
    return web.json_response(counted)
