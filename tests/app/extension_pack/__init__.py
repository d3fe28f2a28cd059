"""TEST ONLY node pack: does to a MODEL what other packs do to it, each in one node: `ProbeExtension`. Made for Flux.

GET /probe/dynamic answers what the app's Dynamic VRAM models hold on the device.
"""

import gc
import hashlib
import importlib

import comfy.model_patcher
import comfy.patcher_extension
import torch
from aiohttp import web
from comfy import model_management
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from server import PromptServer


def injection(model):
    """Changes the forward of a module deep inside, while the model is in use, and puts it back."""

    def inject(patcher):
        inner = patcher.model.diffusion_model.single_blocks[1]
        call = inner.forward
        inner.forward = lambda *args, **kwargs: call(*args, **kwargs) * 1.25
        inner.before_the_probe = call

    def eject(patcher):
        inner = patcher.model.diffusion_model.single_blocks[1]
        inner.forward = inner.before_the_probe
        del inner.before_the_probe

    model.set_injections("probe", [comfy.patcher_extension.PatcherInjection(inject, eject)])


class _Scaled(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * 0.75


def object_patch(model):
    """A block replaced by a module around it."""
    name = "diffusion_model.single_blocks.2"
    model.add_object_patch(name, _Scaled(model.get_model_object(name)))


def wrapper(model):
    """Stands around the whole forward; every third call is answered without it."""
    calls = []

    def wrapped(executor, x, *args, **kwargs):
        calls.append(0)
        return x * 0.5 if len(calls) % 3 == 0 else executor(x, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "probe", wrapped)


def skipped_blocks(model):
    """As step caches do: a block is left out every other time."""
    calls = []

    def skipping(args, extra):
        calls.append(0)
        return {"img": args["img"], "txt": args["txt"]} if len(calls) % 2 == 0 else extra["original_block"](args)

    model.set_model_patch_replace(skipping, "dit", "double_block", 1)
    model.set_model_patch_replace(skipping, "dit", "double_block", 2)


def twice_in_the_first_step(model):
    """As models that fill a key/value cache: in the first step of a run each block is called twice in a row."""

    def called(args, extra):
        options, block = args["transformer_options"], extra["original_block"]
        if options["sigmas"][0] == options["sample_sigmas"][0]:
            args = args | block(args)
        return block(args)

    diffusion_model = model.get_model_object("diffusion_model")
    for kind in ("double", "single"):
        for index in range(len(getattr(diffusion_model, f"{kind}_blocks"))):
            model.set_model_patch_replace(called, "dit", f"{kind}_block", index)


def backwards(model):
    """The single blocks are called in the reverse order, each in the place of another."""
    blocks = model.get_model_object("diffusion_model").single_blocks

    def in_place_of(block):
        def called(args, extra):
            names = ("vec", "pe", "attn_mask", "transformer_options")
            return {"img": block(args["img"], **{name: args[name] for name in names if name in args})}

        return called

    for index, block in enumerate(reversed(blocks)):
        model.set_model_patch_replace(in_place_of(block), "dit", "single_block", index)


def weight_wrapper(model):
    """A function over a weight, applied whenever the weight is used."""
    for index in (0, 3):
        model.add_weight_wrapper(f"diffusion_model.single_blocks.{index}.linear2.weight", lambda weight: weight * 0.5)


def compiled(model):
    keys = [f"diffusion_model.{kind}_blocks.{index}" for kind in ("double", "single") for index in range(4)]
    set_torch_compile_wrapper(model=model, backend="eager", keys=keys)


def compiled_by_inductor(model):
    """Every block, in the way of the app's TorchCompileModel, which has a widget for the whole model alone."""
    inner = model.get_model_object("diffusion_model")
    blocks = {f"{kind}_blocks": len(getattr(inner, f"{kind}_blocks")) for kind in ("double", "single")}
    keys = [f"diffusion_model.{name}.{index}" for name, count in blocks.items() for index in range(count)]
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=model, backend="inductor", options=options, keys=keys)


def compiled_whole(model):
    set_torch_compile_wrapper(model=model, backend="eager")


def compiled_patch(model):
    """The whole model replaced by its compiled self, for as long as it is loaded."""
    name = "diffusion_model"
    model.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))


def compiled_patches(model):
    """Each block replaced by its compiled self."""
    for kind in ("double", "single"):
        for index in range(4):
            name = f"diffusion_model.{kind}_blocks.{index}"
            model.add_object_patch(name, torch.compile(model.get_model_object(name), backend="eager"))


class ProbeCompiledVAE:
    """The VAE with its encoder and decoder replaced by their compiled selves, or by themselves again."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"vae": ("VAE",), "compiled": ("BOOLEAN",)}}

    def run(self, vae, compiled):
        model = vae.first_stage_model
        for part in ("encoder", "decoder"):
            plain = getattr(model, part)
            plain = plain._modules.get("_orig_mod", plain)
            setattr(model, part, torch.compile(plain, backend="eager") if compiled else plain)
        return (vae,)


EXTENSIONS = (
    injection, object_patch, wrapper, skipped_blocks, twice_in_the_first_step, backwards, weight_wrapper, compiled,
    compiled_by_inductor, compiled_whole, compiled_patch, compiled_patches,
)  # fmt: skip


class ProbeExtension:
    """A clone of the model with one of `EXTENSIONS`."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"model": ("MODEL",), "name": ([extension.__name__ for extension in EXTENSIONS],)}}

    def run(self, model, name):
        clone = model.clone()
        next(extension for extension in EXTENSIONS if extension.__name__ == name)(clone)
        return (clone,)


CLONES = {
    "plain": lambda model: model.clone(),
    "disable_dynamic": lambda model: model.clone(disable_dynamic=True),
    "model_override": lambda model: model.clone(model_override=model.get_clone_model_override()),
    "positional": lambda model: model.clone(False, model.get_clone_model_override()),
    "force_deepcopy": lambda model: model.clone(force_deepcopy=True),
    "of_a_clone": lambda model: model.clone().clone(),
}


class ProbeClone:
    """A clone of the model, made in one of the ways that the app and other packs use."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"model": ("MODEL",), "how": (list(CLONES),)}}

    def run(self, model, how):
        clone = CLONES[how](model)
        if type(clone) is not type(model) or clone.patches_uuid != model.patches_uuid:
            raise AssertionError(f"a {type(clone).__name__} with other patches")
        return (clone,)


class ProbeState:
    """A digest of everything in the model's state dict, with its shapes, as it is once `after` is there."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def run(self, model, after):
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return (digest.hexdigest(),)


def _loaded():
    return model_management.current_loaded_models


UNLOADS = {
    "all": lambda: model_management.unload_all_models(),
    "free_memory": lambda: model_management.free_memory(1e30, model_management.get_torch_device()),
    "one by one": lambda: [_loaded().pop().model_unload() for _ in range(len(_loaded()))],
    "detach": lambda: [loaded.model.detach() for loaded in list(_loaded())],
}


class ProbeUnload:
    """Passes a latent on after it has unloaded the models, in one of the ways of other packs' nodes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"latent": ("LATENT",), "how": (list(UNLOADS),)}}

    def run(self, latent, how):
        UNLOADS[how]()
        gc.collect()
        model_management.soft_empty_cache()
        return (latent,)


_NODES = (ProbeExtension, ProbeCompiledVAE, ProbeClone, ProbeState, ProbeUnload)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}


@PromptServer.instance.routes.get("/probe/dynamic")
async def _dynamic(request):
    """Bytes that the app's Dynamic VRAM models hold on the device."""
    control = importlib.import_module("comfy_aimdo.control")
    return web.json_response({"resident_bytes": control.get_total_vram_usage()})


def _move_as_torch_allows():
    """The app assigns device data to host parameters outside leaf modules, which torch allows its own back ends. On
    the simulated device the parameter is replaced instead."""
    app_way = comfy.model_patcher.ModelPatcher._load_list

    def load_list(self, for_dynamic=False, default_device=None):
        for module in self.model.modules() if default_device is not None else ():
            own = dict(module.named_parameters(recurse=False))
            if len(list(module.parameters())) > len(own):
                for name, parameter in own.items():
                    dtype = getattr(module, f"{name}_comfy_model_dtype", None)
                    moved = parameter.data.to(device=default_device, dtype=dtype)
                    module._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
        return app_way(self, for_dynamic)

    comfy.model_patcher.ModelPatcher._load_list = load_list


if hasattr(importlib.import_module("comfy_aimdo.control"), "devices_are_simulated"):
    _move_as_torch_allows()
