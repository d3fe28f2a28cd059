"""TEST ONLY node pack: a small double of the GGUF packs, written from what their users and forks rely on.

What it shares with them: quantised weights are a tensor subclass whose storage holds blocks of bytes and which carries
`tensor_type`, `tensor_shape` and `patches`; weights that are not quantised come in the same class; the operations make
a weight of the bytes at each use and apply the patches it carries; the patcher is a subclass put onto the app's by
`__class__`, patches only by hanging them onto the weights, and its `load` always asks for that. The file is one of
tiny_models, quantised when it is loaded: 32 values a block, a 16-bit scale and 32 bytes each.
"""

import comfy.float
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch

BLOCK = 32
PLAIN_TYPES = (None, "F32", "F16", "BF16 as it is")
EIGHT_BITS = "Q8"


class BlockTensor(torch.Tensor):
    """Stored bytes, and beside them what they stand for."""

    @staticmethod
    def __new__(cls, stored, tensor_type=None, tensor_shape=None, patches=()):
        return torch.Tensor.as_subclass(stored, cls)

    def __init__(self, stored, tensor_type=None, tensor_shape=None, patches=()):
        self.tensor_type, self.tensor_shape, self.patches = tensor_type, tensor_shape, list(patches)

    def to(self, *args, **kwargs):
        moved = super().to(*args, **kwargs)
        moved.tensor_type = getattr(self, "tensor_type", None)  # what torch makes of one lacks them
        moved.tensor_shape = getattr(self, "tensor_shape", moved.size())
        moved.patches = list(getattr(self, "patches", ()))
        return moved

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self

    @property
    def shape(self):
        return self.__dict__.get("tensor_shape") or self.size()


def is_packed(tensor) -> bool:
    return tensor is not None and getattr(tensor, "tensor_type", None) not in PLAIN_TYPES


def quantise(weight: torch.Tensor) -> BlockTensor:
    blocks = weight.float().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).to(torch.float16)
    values = (blocks / scale.float().clamp(min=1e-8)).round().clamp(-127, 127).to(torch.int8)
    stored = torch.cat((scale.view(torch.uint8), values.view(torch.uint8)), 1).reshape(weight.shape[0], -1)
    return BlockTensor(stored, EIGHT_BITS, weight.shape)


def unpacked(tensor: BlockTensor, dtype: torch.dtype) -> torch.Tensor:
    stored = torch.Tensor.as_subclass(tensor, torch.Tensor)
    if not is_packed(tensor):
        return stored.to(dtype)
    blocks = stored.reshape(-1, 2 + BLOCK)
    scale = blocks[:, :2].contiguous().view(torch.float16).to(dtype)
    values = blocks[:, 2:].contiguous().view(torch.int8).to(dtype)
    return (scale * values).reshape(tensor.tensor_shape)


class Operations(comfy.ops.manual_cast):
    """The app's, with a Linear that makes its weight at each use."""

    class Linear(comfy.ops.manual_cast.Linear):
        comfy_cast_weights = True

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight = self.bias = None

        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            for name in ("weight", "bias"):
                found = state_dict.get(prefix + name)
                setattr(self, name, None if found is None else torch.nn.Parameter(found, requires_grad=False))

        def made(self, tensor, like):
            """The weight that a stored tensor stands for, where and in the type in which the input is."""
            if tensor is None:
                return None
            tensor = tensor.to(like.device)
            weight = unpacked(tensor, like.dtype)
            for patches, key in getattr(tensor, "patches", ()):
                weight = comfy.lora.calculate_weight(_moved(patches, like.device), weight, key)
            return weight.to(like.dtype)

        def forward_comfy_cast_weights(self, input, *args, **kwargs):  # noqa: A002 - the app's name
            return torch.nn.functional.linear(input, self.made(self.weight, input), self.made(self.bias, input))

        def forward(self, input, *args, **kwargs):  # noqa: A002
            return self.forward_comfy_cast_weights(input)


def _moved(patches, device):
    if isinstance(patches, torch.Tensor):
        return patches.to(device)
    if isinstance(patches, (list, tuple)):
        return type(patches)(_moved(one, device) for one in patches)
    return patches


class BlockModelPatcher(comfy.model_patcher.ModelPatcher):
    """The app's, but patches are hung onto quantised weights and applied where these are used."""

    patch_on_device = False

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        if key not in self.patches:
            return
        weight, patches = comfy.utils.get_attr(self.model, key), self.patches[key]
        if is_packed(weight):
            changed = weight.to(device_to)
            home = self.load_device if self.patch_on_device else self.offload_device
            changed.patches = [(_moved(patches, home), key)]
        else:
            if key not in self.backup:
                self.backup[key] = comfy.model_patcher.collections.namedtuple("Kept", ["weight", "inplace_update"])(
                    weight.to(device=self.offload_device, copy=True), False
                )
            wide = comfy.model_management.cast_to_device(weight, device_to or weight.device, torch.float32, copy=True)
            changed = comfy.float.stochastic_rounding(comfy.lora.calculate_weight(patches, wide, key), weight.dtype)
        comfy.utils.set_attr_param(self.model, key, changed)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for parameter in self.model.parameters():
                if is_packed(parameter):
                    parameter.patches = []
        return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

    def load(self, *args, force_patch_weights=False, **kwargs):
        super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args, **kwargs):
        kind = self.__class__
        self.__class__ = BlockModelPatcher
        try:
            made = super().clone(*args, **kwargs)
        finally:
            self.__class__ = kind
        made.__class__ = BlockModelPatcher
        made.patch_on_device = getattr(self, "patch_on_device", False)
        return made


class MovingModelPatcher(BlockModelPatcher):
    """One that also moves weights in a way of its own: not to be taken over."""

    def clone(self, *args, **kwargs):
        made = super().clone(*args, **kwargs)
        made.__class__ = MovingModelPatcher
        return made

    def partially_unload(self, *args, **kwargs):
        return super().partially_unload(*args, **kwargs)


class GGUFDoubleLoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        names = folder_paths.get_filename_list("diffusion_models")
        return {
            "required": {"unet_name": (names,)},
            "optional": {"patch_on_device": ("BOOLEAN", {"default": False}), "moves": ("BOOLEAN", {"default": False})},
        }

    def load(self, unet_name, patch_on_device=False, moves=False):
        path = folder_paths.get_full_path("diffusion_models", unet_name)
        state = comfy.utils.load_torch_file(path)
        for key, value in state.items():
            packs = key.endswith(".weight") and value.ndim == 2 and "_blocks." in key and value.shape[1] % BLOCK == 0
            kept = value.to(torch.float16)
            state[key] = quantise(value) if packs else BlockTensor(kept, "F16", kept.shape)
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"custom_operations": Operations})
        kind = MovingModelPatcher if moves else BlockModelPatcher
        model = BlockModelPatcher.clone(model)
        model.__class__, model.patch_on_device = kind, patch_on_device
        return (model,)


class GGUFDoubleCLIPLoader:
    """Takes ordinary files as well, which it gives the same operations and patcher."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {"required": {"clip_name": (folder_paths.get_filename_list("text_encoders"),), "type": ("STRING",)}}

    def load(self, clip_name, type):  # noqa: A002 - the app's name
        state = comfy.utils.load_torch_file(folder_paths.get_full_path("text_encoders", clip_name), safe_load=True)
        clip = comfy.sd.load_text_encoder_state_dicts(
            [state],
            clip_type=getattr(comfy.sd.CLIPType, type.upper()),
            model_options={"custom_operations": Operations},
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )
        clip.patcher = BlockModelPatcher.clone(clip.patcher)
        return (clip,)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (GGUFDoubleLoader, GGUFDoubleCLIPLoader)}
