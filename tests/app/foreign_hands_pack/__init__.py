"""TEST ONLY node pack: what other packs do to classes and weights behind our back.

POST /hands/patch {"target": "module:Class.method", "scale": 0.9} replaces a method until POST /hands/restore;
its results are scaled. GET /hands/calls answers how often each was called since.
`ForeignHands` does one of `WRITES`, `MOVES` or `READS` to a MODEL, once `after` is there.
"""

import functools
import importlib

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from aiohttp import web
from server import PromptServer

_patched: list[tuple[type, str, object]] = []
_calls: dict[str, int] = {}


def _scaled(value, scale):
    if isinstance(value, torch.Tensor):
        return value * scale if value.is_floating_point() else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value * (1 + scale)
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, scale) for item in value)
    return value


@PromptServer.instance.routes.post("/hands/patch")
async def _patch(request):
    wanted = await request.json()
    module, _, path = wanted["target"].partition(":")
    name, _, method = path.partition(".")
    kind = getattr(importlib.import_module(module), name)
    before = getattr(kind, method)

    @functools.wraps(before)
    def patched(self, *args, **kwargs):
        _calls[wanted["target"]] = _calls.get(wanted["target"], 0) + 1
        return _scaled(before(self, *args, **kwargs), wanted["scale"])

    _patched.append((kind, method, vars(kind).get(method)))
    setattr(kind, method, patched)
    return web.json_response({})


@PromptServer.instance.routes.post("/hands/restore")
async def _restore(request):
    while _patched:
        kind, method, before = _patched.pop()
        if before is None:
            delattr(kind, method)
        else:
            setattr(kind, method, before)
    _calls.clear()
    return web.json_response({})


@PromptServer.instance.routes.get("/hands/calls")
async def _called(request):
    return web.json_response(_calls)


# ---------------------------------------------------------------------- writing


def _block(model):
    return model.model.diffusion_model.single_blocks[3]


def _matrices(model):
    return [parameter for parameter in _block(model).parameters() if parameter.ndim == 2]


def _larger(weight):
    return (weight.float() * 1.05).to(weight.dtype)


def load_state_dict(model):
    inner = model.model.diffusion_model
    state = {name: value for name, value in inner.state_dict().items() if name.startswith("single_blocks.3.")}
    inner.load_state_dict({name: _larger(value) for name, value in state.items() if value.ndim == 2}, strict=False)


def data_in_place(model):
    for parameter in _matrices(model):
        parameter.data.mul_(1.05)


def copied_into(model):
    with torch.no_grad():
        for parameter in _matrices(model):
            parameter.copy_(_larger(parameter.detach()))


def new_data(model):
    for parameter in _matrices(model):
        parameter.data = _larger(parameter.data)


def new_parameters(model):
    for module in _block(model).modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(_larger(module.weight.detach()), requires_grad=False)


def by_the_apps_function(model):
    inner = model.model
    for name, parameter in list(inner.named_parameters()):
        if name.startswith("diffusion_model.single_blocks.3.") and parameter.ndim == 2:
            comfy.utils.set_attr_param(inner, name, _larger(parameter.detach()))


WRITES = (load_state_dict, data_in_place, copied_into, new_data, new_parameters, by_the_apps_function)

# ---------------------------------------------------------------------- moving


def to_the_host(model):
    model.model.to("cpu")


MOVES = (to_the_host,)

# ---------------------------------------------------------------------- reading, of a model that is loaded


def _built_anew(model, state):
    """A MODEL out of the values that were read, in the memory of the host."""
    start = "diffusion_model."
    own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    return comfy.sd.load_diffusion_model_state_dict({name: value.to("cpu") for name, value in own.items()})


def state_dict(model):
    return model.model.state_dict()


def state_of_each_module(model):
    return {
        f"{path}.{name}": value
        for path, module in model.model.named_modules()
        for name, value in module.state_dict().items()
        if "." not in name
    }


def patchers_state_dict(model):
    return model.model_state_dict()


def parameters(model):
    return {name: parameter.data for name, parameter in model.model.named_parameters()}


def attributes(model):
    names = [name for name, _ in model.model.named_parameters()]
    return {name: comfy.utils.get_attr(model.model, name).clone() for name in names}


def get_parameter(model):
    names = [name for name, _ in model.model.named_parameters()]
    return {name: model.model.get_parameter(name).to(torch.float32).to(torch.bfloat16) for name in names}


READS = (state_dict, state_of_each_module, patchers_state_dict, parameters, attributes, get_parameter)


class ForeignHands:
    """The model with `how` done to it: written to, moved, or read while loaded and built anew of what was read."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        names = [function.__name__ for function in (*WRITES, *MOVES, *READS)]
        return {"required": {"model": ("MODEL",), "how": (names,)}, "optional": {"after": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802 - the app's name
        return float("nan")  # done again for each prompt

    def run(self, model, how, after=None):
        for change in (*WRITES, *MOVES):
            if change.__name__ == how:
                change(model)
        for read in READS:
            if read.__name__ == how:
                comfy.model_management.load_models_gpu([model])
                with torch.no_grad():
                    return (_built_anew(model, read(model)),)
        return (model,)


# no literal id: scanners of clones would list it among our nodes
NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ForeignHands,)}
